import ast
import hashlib
import json
import math
import operator
import re
from collections import Counter

import pytest

from forvalue_index.evaluation.demo_data import (
    ADJECTIVES,
    CONSONANT,
    NOUNS,
    OPENERS,
    PROBLEMS,
    TRANSFORMATIONS,
    VERBS,
    VOWEL,
    math_problems,
    mislabel,
    sentence_transformations,
    write_demo_data,
)
from forvalue_index.exceptions import UsageError

GOLDEN = {
    "reverse-words": "naps poet quiet The",
    "alternate-case": "tHe qUiEt pOeT NaPs",
    "ones-between": "The 1 quiet 1 poet 1 naps",
    "vowels-to-stars": "Th* q***t p**t n*ps",
    "double-consonants": "TThhe qquiett ppoett nnappss",
    "capitalise-words": "The Quiet Poet Naps",
    "remove-vowels": "Th qt pt nps",
    "add-ly": "Thely quietly poetly napsly",
    "remove-consonants": "e uie oe a",
    "repeat-words": "The The quiet quiet poet poet naps naps",
}
# Over the numbers in the order in which the question names them.
FORMULAS = {
    "left-over": "n[0] - n[1] - n[2]",
    "recipe": "floor(n[1] * n[2] / n[0])",
    "walk": "n[0] + n[2]",
    "four-baskets": "sum(n)",
    "seats": "prod(n)",
    "age-gap": "n[0] - n[1]",
    "full-bags": "floor(n[1] / n[0])",
    "rent": "floor(prod(n) / 100)",
    "fence": "n[0] + n[1] + n[0] + n[1]",
    "library": "n[2] + n[0] * n[1]",
}
OPERATORS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.floordiv,
}


def arithmetic(node):
    """Evaluate + - * and rounded-down / as a reason writes them."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](arithmetic(node.left), arithmetic(node.right))
    return node.value


def numbers(text):
    return [int(number) for number in re.findall(r"\d+", text)]


def test_every_transformation_has_a_golden_value():
    assert {task.name: task.apply("The quiet poet naps") for task in TRANSFORMATIONS} == GOLDEN


def test_no_word_vanishes_in_a_transformation():
    for word in OPENERS + ADJECTIVES + NOUNS + VERBS:
        assert VOWEL.search(word), word
        assert CONSONANT.search(word), word


def test_sentence_rows():
    train, validation = sentence_transformations(3)
    assert Counter(row["class"] for row in train) == dict.fromkeys(GOLDEN, 90)
    assert Counter(row["class"] for row in validation) == dict.fromkeys(GOLDEN, 10)
    rows = train + validation
    assert len({row["id"] for row in rows}) == 1000
    assert all(re.fullmatch(rf"{row['class']}-00\d\d", row["id"]) for row in rows)
    assert [row["class"] for row in train] != sorted(row["class"] for row in train)

    def sentences(rows):
        return Counter(row["prompt"].rpartition(": ")[2] for row in rows)

    assert set(sentences(train).values()) == set(sentences(validation).values()) == {10}
    assert len(sentences(train)) == 90
    assert not sentences(train).keys() & sentences(validation).keys()
    assert all(len(sentence.split()) == 4 and sentence[-1] == "." for sentence in sentences(rows))


def test_sentence_responses_follow_from_their_prompts():
    apply = {task.name: task.apply for task in TRANSFORMATIONS}
    for row in sentence_transformations(0, 5, 2)[0]:
        sentence = row["prompt"].rpartition(": ")[2].removesuffix(".")
        assert row["response"] == apply[row["class"]](sentence) + "."


@pytest.mark.parametrize("reasons", [False, True])
def test_math_answers_follow_from_their_questions(reasons):
    train, validation = math_problems(5, reasons)
    assert Counter(row["class"] for row in train) == dict.fromkeys(FORMULAS, 90)
    assert Counter(row["class"] for row in validation) == dict.fromkeys(FORMULAS, 10)
    rows = train + validation
    assert len({row["prompt"] for row in rows}) == len({row["id"] for row in rows}) == 1000
    for row in rows:
        drawn = numbers(row["prompt"])
        assert all(1 <= number <= 99 for number in drawn)
        names = {"n": drawn, "floor": math.floor, "prod": math.prod, "sum": sum}
        expected = eval(FORMULAS[row["class"]], {"__builtins__": {}}, names)
        assert int(row["response"].splitlines()[-1]) == expected > 0


def test_reasons_are_one_true_line_before_the_same_answer():
    plain, reasoned = math_problems(5)[0], math_problems(5, reasons=True)[0]
    assert [row["prompt"] for row in plain] == [row["prompt"] for row in reasoned]
    assert not {row["id"] for row in plain} & {row["id"] for row in reasoned}
    for short, long in zip(plain, reasoned, strict=True):
        reason, answer = long["response"].split("\n")
        assert answer == short["response"]
        left, claimed = re.fullmatch(r".*: (.*?)(?: =| gives) (\d+)\.", reason).groups()
        assert arithmetic(ast.parse(left, mode="eval").body) == int(claimed) == int(answer)


def test_problem_names_match_the_formulas():
    assert [problem.name for problem in PROBLEMS] == list(FORMULAS)


@pytest.mark.parametrize("make", [sentence_transformations, math_problems])
def test_a_seed_decides_everything(make):
    assert make(1) == make(1)
    assert make(1) != make(2)


def test_counts_can_be_chosen_up_to_a_limit():
    train, validation = math_problems(0, train_per_class=990, validation_per_class=10)
    assert (len(train), len(validation)) == (9900, 100)
    assert [len(part) for part in sentence_transformations(0, 0, 1)] == [0, 10]
    with pytest.raises(UsageError, match=r"990 training and 11 validation .* at most 1000"):
        sentence_transformations(0, 990, 11)
    with pytest.raises(UsageError, match="-1 training"):
        math_problems(0, train_per_class=-1)


@pytest.mark.parametrize(("share", "count"), [(0.0, 0), (0.2, 40), (0.333, 67), (1.0, 200)])
def test_mislabel_flips_an_exact_share(share, count):
    rows, _ = math_problems(0, train_per_class=20)
    before = json.dumps(rows)
    changed = mislabel(rows, share, seed=4)
    assert json.dumps(rows) == before
    assert sum(row["flipped"] for row in changed) == count
    assert changed == mislabel(rows, share, seed=4)
    answers = {}
    for row in rows:
        answers.setdefault(row["response"], set()).add(row["class"])
    for old, new in zip(rows, changed, strict=True):
        assert {**new, "response": old["response"]} == {**old, "flipped": new["flipped"]}
        assert (old["response"] != new["response"]) == new["flipped"]
        assert not new["flipped"] or answers[new["response"]] - {old["class"]}


def test_mislabel_refuses_what_it_cannot_do():
    rows, _ = sentence_transformations(0, 2)
    with pytest.raises(UsageError, match=r"is 1\.5: choose"):
        mislabel(rows, 1.5, 0)
    with pytest.raises(UsageError, match=r"no other class .* pass rows of several classes"):
        mislabel([row for row in rows if row["class"] == "add-ly"], 0.5, 0)


def test_files(tmp_path):
    paths = write_demo_data(tmp_path / "new" / "demo")
    files = {
        path.name: [json.loads(line) for line in path.read_text().splitlines()] for path in paths
    }
    assert {name: len(rows) for name, rows in files.items()} == {
        "sentences_train.jsonl": 900,
        "sentences_validation.jsonl": 100,
        "sentences_mislabeled.jsonl": 900,
        "math_train.jsonl": 900,
        "math_validation.jsonl": 100,
        "math_reasons_train.jsonl": 900,
        "math_reasons_validation.jsonl": 100,
        "start.jsonl": 300,
        "more.jsonl": 100,
        "validation.jsonl": 10,
    }
    assert sum(row["flipped"] for row in files["sentences_mislabeled.jsonl"]) == 180
    assert sum(row["flipped"] for row in files["start.jsonl"]) == 30
    assert set(Counter(row["class"] for row in files["start.jsonl"]).values()) == {30}
    assert Counter(row["class"] for row in files["more.jsonl"]) == dict.fromkeys(FORMULAS, 10)
    assert {row["class"] for row in files["validation.jsonl"]} == {"reverse-words"}
    shown = {row["prompt"] for row in files["start.jsonl"]}
    assert not shown & {row["prompt"] for row in files["validation.jsonl"]}


def test_files_stay_the_same_for_good(tmp_path):
    """A new digest means that published numbers no longer belong to the published data."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(write_demo_data(tmp_path)):
        digest.update(path.read_bytes())
    assert digest.hexdigest() == "807d2741ad920df0"


def test_another_content_is_never_overwritten(tmp_path):
    first = write_demo_data(tmp_path)
    assert write_demo_data(tmp_path) == first
    first[-1].write_text("mine\n")
    first[0].unlink()
    with pytest.raises(
        UsageError, match=r"validation\.jsonl exists .* seed 0 .* another directory"
    ):
        write_demo_data(tmp_path)
    assert first[-1].read_text() == "mine\n"
    assert not first[0].exists()
