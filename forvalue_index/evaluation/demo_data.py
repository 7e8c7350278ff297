"""Our own seeded version of the influential-data benchmark, as JSONL rows.

Ten classes of sentence transformations and ten of math problems: a training sample is meant to
help the validation samples of its own class. Only `Random.random` is used, whose sequence Python
guarantees, so that a seed gives the same files everywhere and for good.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from random import Random
from typing import Any, TypeVar

from forvalue_index.exceptions import UsageError

T = TypeVar("T")
Row = dict[str, Any]
Split = tuple[list[Row], list[Row]]

LARGEST_CLASS = 1000
LARGEST_NUMBER = 99
VOWEL = re.compile("[aeiou]", re.IGNORECASE)
CONSONANT = re.compile("[b-df-hj-np-tv-z]", re.IGNORECASE)

# Every word has a vowel and a consonant, so that no transformation leaves an empty word.
OPENERS = ("The", "Our", "This", "Every")
ADJECTIVES = (
    "brave", "calm", "clever", "eager", "famous", "gentle", "grumpy", "honest", "humble",
    "lonely", "loud", "lucky", "modest", "patient", "polite", "quiet", "sleepy", "tired",
)  # fmt: skip
NOUNS = (
    "baker", "captain", "dentist", "doctor", "farmer", "gardener", "juggler", "king", "lawyer",
    "miner", "painter", "pilot", "plumber", "poet", "robot", "sailor", "teacher", "wizard",
)  # fmt: skip
VERBS = (
    "argues", "bows", "coughs", "dances", "giggles", "hums", "jumps", "kneels", "laughs",
    "listens", "mumbles", "naps", "nods", "runs", "shouts", "smiles", "waits", "yawns",
)  # fmt: skip


@dataclass(frozen=True)
class Transformation:
    """A class of sentence tasks. `apply` gets the sentence without its full stop."""

    name: str
    request: str
    apply: Callable[[str], str]


TRANSFORMATIONS = (
    Transformation("reverse-words", "Reverse the words", lambda s: " ".join(s.split()[::-1])),
    Transformation(
        "alternate-case",
        "Alternate lower and upper case, character by character",
        lambda s: "".join(c.upper() if i % 2 else c.lower() for i, c in enumerate(s)),
    ),
    Transformation("ones-between", "Put a 1 between the words", lambda s: " 1 ".join(s.split())),
    Transformation("vowels-to-stars", "Write a * for every vowel", lambda s: VOWEL.sub("*", s)),
    Transformation(
        "double-consonants", "Double every consonant", lambda s: CONSONANT.sub(r"\g<0>\g<0>", s)
    ),
    Transformation("capitalise-words", "Capitalise each word", str.title),
    Transformation("remove-vowels", "Remove the vowels", lambda s: VOWEL.sub("", s)),
    Transformation("add-ly", "Add ly to each word", lambda s: s.replace(" ", "ly ") + "ly"),
    Transformation("remove-consonants", "Remove the consonants", lambda s: CONSONANT.sub("", s)),
    Transformation(
        "repeat-words", "Say each word twice", lambda s: " ".join(f"{w} {w}" for w in s.split())
    ),
)


@dataclass(frozen=True)
class Problem:
    """A class of math problems over four integers. `reason` may name the answer as {answer}."""

    name: str
    question: str
    reason: str
    answer: Callable[[int, int, int, int], int]


PROBLEMS = (
    Problem(
        "left-over",
        "A roll had {c} stamps; {a} went on letters and {b} on parcels. How many are left?",
        "Take both uses off the roll: {c} - ({a} + {b}) = {answer}.",
        lambda a, b, c, d: c - (a + b),
    ),
    Problem(
        "recipe",
        "With {a} eggs a cook makes {b} pancakes. How many whole pancakes do {c} eggs give?",
        "Scale the pancakes and round down: {b} * {c} / {a} gives {answer}.",
        lambda a, b, c, d: b * c // a,
    ),
    Problem(
        "walk",
        "Nils walks {a} minutes to a lake, swims for {b} minutes and walks {c} minutes home. "
        "How many minutes does he walk?",
        "Only the two walks count: {a} + {c} = {answer}.",
        lambda a, b, c, d: a + c,
    ),
    Problem(
        "four-baskets",
        "Four baskets hold {a}, {b}, {c} and {d} plums. How many plums are there?",
        "Add up the baskets: {a} + {b} + {c} + {d} = {answer}.",
        lambda a, b, c, d: a + b + c + d,
    ),
    Problem(
        "seats",
        "A hall has {a} rows with {b} seats in each. How many seats does it have?",
        "Each row has as many seats: {a} * {b} = {answer}.",
        lambda a, b, c, d: a * b,
    ),
    Problem(
        "age-gap",
        "Uncle Otto is {a} years old and his parrot is {b}. By how many years is Otto older?",
        "Compare the ages: {a} - {b} = {answer}.",
        lambda a, b, c, d: a - b,
    ),
    Problem(
        "full-bags",
        "A bag takes {a} marbles. How many bags can be filled from a box of {b} marbles?",
        "Count the full bags and round down: {b} / {a} gives {answer}.",
        lambda a, b, c, d: b // a,
    ),
    Problem(
        "rent",
        "From {a} lamps at {b} coins each, {c} percent go to rent. How many whole coins is it?",
        "Take the share of the sales and round down: {a} * {b} * {c} / 100 gives {answer}.",
        lambda a, b, c, d: a * b * c // 100,
    ),
    Problem(
        "fence",
        "A yard is {a} steps long and {b} steps wide. How many steps of fence go around it?",
        "Go around both sides twice: 2 * ({a} + {b}) = {answer}.",
        lambda a, b, c, d: 2 * (a + b),
    ),
    Problem(
        "library",
        "A library has {a} shelves of {b} books, and {c} books on a desk. How many is that?",
        "Shelves first, then the desk: {a} * {b} + {c} = {answer}.",
        lambda a, b, c, d: a * b + c,
    ),
)


def sentence_transformations(
    seed: int, train_per_class: int = 90, validation_per_class: int = 10
) -> Split:
    """Make training and validation rows; each sentence occurs once in every class."""
    count = _checked_count(train_per_class, validation_per_class)
    rng = Random(f"sentences {seed}")
    words = product(OPENERS, ADJECTIVES, NOUNS, VERBS)
    sentences = [" ".join(four) for four in _shuffled(words, rng)[:count]]
    rows = [
        {
            "id": f"{task.name}-{number:04d}",
            "prompt": f"{task.request}: {sentence}.",
            "response": f"{task.apply(sentence)}.",
            "class": task.name,
        }
        for task in TRANSFORMATIONS
        for number, sentence in enumerate(sentences)
    ]
    return _split(rows, train_per_class, rng)


def math_problems(
    seed: int,
    reasons: bool = False,
    *,
    train_per_class: int = 90,
    validation_per_class: int = 10,
) -> Split:
    """Make training and validation rows; `reasons` only adds a line before each answer."""
    count = _checked_count(train_per_class, validation_per_class)
    rng = Random(f"math {seed}")
    rows = [
        _problem_row(problem, draw, number=number, reasons=reasons)
        for problem in PROBLEMS
        for number, draw in enumerate(islice(_draws(problem, rng), count))
    ]
    return _split(rows, train_per_class, rng)


def mislabel(rows: Sequence[Row], share: float, seed: int) -> list[Row]:
    """Give round(share * n) rows the response of another class, marked by `flipped`."""
    if not 0 <= share <= 1:
        raise UsageError(f"the share of mislabelled rows is {share}: choose one from 0 to 1")
    rng = Random(f"mislabel {seed}")
    flipped = set(_shuffled(range(len(rows)), rng)[: round(share * len(rows))])
    return [
        {**row, "response": _wrong_response(row, rows, rng), "flipped": True}
        if number in flipped
        else {**row, "flipped": False}
        for number, row in enumerate(rows)
    ]


def write_demo_data(directory: Path, seed: int = 0) -> list[Path]:
    """Write all demo files. Another content under one of their names is refused, not replaced."""
    contents = {directory / name: _jsonl(rows) for name, rows in _demo_files(seed).items()}
    for path, content in contents.items():
        if path.exists() and path.read_bytes() != content:
            raise UsageError(
                f"{path} exists with another content than seed {seed} gives: choose another "
                "directory, or move the file away"
            )
    directory.mkdir(parents=True, exist_ok=True)
    for path, content in contents.items():
        path.write_bytes(content)
    return list(contents)


def _demo_files(seed: int) -> dict[str, list[Row]]:
    sentences, validation = sentence_transformations(seed)
    math, math_validation = math_problems(seed)
    reasons, reasons_validation = math_problems(seed, reasons=True)
    return {
        "sentences_train.jsonl": sentences,
        "sentences_validation.jsonl": validation,
        "sentences_mislabeled.jsonl": mislabel(sentences, 0.2, seed),
        "math_train.jsonl": math,
        "math_validation.jsonl": math_validation,
        "math_reasons_train.jsonl": reasons,
        "math_reasons_validation.jsonl": reasons_validation,
        "start.jsonl": mislabel(_numbered_below(30, sentences), 0.1, seed),
        "more.jsonl": _numbered_below(10, math),
        "validation.jsonl": [row for row in validation if row["class"] == "reverse-words"],
    }


def _problem_row(problem: Problem, draw: tuple[int, ...], *, number: int, reasons: bool) -> Row:
    values = dict(zip("abcd", draw, strict=True)) | {"answer": problem.answer(*draw)}
    label, response = problem.name, "{answer}"
    if reasons:
        label, response = f"{problem.name}-reason", problem.reason + "\n{answer}"
    return {
        "id": f"{label}-{number:04d}",
        "prompt": problem.question.format(**values),
        "response": response.format(**values),
        "class": problem.name,
    }


def _draws(problem: Problem, rng: Random) -> Iterator[tuple[int, ...]]:
    """Yield numbers for ever that make different questions with answers above zero."""
    asked = set()
    while True:
        draw = tuple(1 + int(LARGEST_NUMBER * rng.random()) for _ in "abcd")
        question = problem.question.format(**dict(zip("abcd", draw, strict=True)))
        if question not in asked and problem.answer(*draw) > 0:
            asked.add(question)
            yield draw


def _checked_count(train: int, validation: int) -> int:
    if min(train, validation) < 0 or train + validation > LARGEST_CLASS:
        raise UsageError(
            f"{train} training and {validation} validation rows per class are not possible: "
            f"choose counts from 0 that sum to at most {LARGEST_CLASS}"
        )
    return train + validation


def _split(rows: list[Row], train_per_class: int, rng: Random) -> Split:
    train = _numbered_below(train_per_class, rows)
    trained = {row["id"] for row in train}
    return _shuffled(train, rng), [row for row in rows if row["id"] not in trained]


def _numbered_below(count: int, rows: Iterable[Row]) -> list[Row]:
    """Choose the first `count` of each class: the last four digits of an id number its rows."""
    return [row for row in rows if int(row["id"][-4:]) < count]


def _shuffled(items: Iterable[T], rng: Random) -> list[T]:
    return sorted(items, key=lambda _: rng.random())


def _wrong_response(row: Row, rows: Sequence[Row], rng: Random) -> str:
    others = [
        other["response"]
        for other in rows
        if other["class"] != row["class"] and other["response"] != row["response"]
    ]
    if not others:
        raise UsageError(
            f"no other class has another response for {row['id']}: pass rows of several classes"
        )
    return str(others[int(len(others) * rng.random())])


def _jsonl(rows: Iterable[Row]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()
