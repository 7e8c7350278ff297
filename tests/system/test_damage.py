"""Never a wrong answer: an index with damaged files answers rightly, or says that it is damaged."""

import dataclasses
import json
import random
import shutil

import numpy as np
import pytest
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import ForValueError

pytest_plugins = ("tiny",)

VALIDATION = rows(2, seed=2, prefix="v")
FLIPS = 240
SEED = 0


@pytest.fixture(scope="module")
def sound(tmp_path_factory, model_dir):
    """An index with a plain segment, one with gaps and one of removed samples, and its model."""
    path = tmp_path_factory.mktemp("sound") / "index"
    with ValuationIndex.create(path, str(model_dir), dim=64, geometry="fisher") as index:
        index.add(rows(12))
        index.remove(["r2", "r3", "r7"])
        index.compact()
        index.add(rows(8, seed=1, prefix="s"))
        index.remove(["s1"])
        reader = index.model.reader
    assert len(list((path / "segments").iterdir())) == 2
    return path, reader


def answers(path, reader, output):
    """All that can be asked of an index: for each question the answer, or the error it raised."""
    found = {}

    def ask(question, answer):
        try:
            found[question] = answer()
        except ForValueError:
            found[question] = ForValueError

    try:
        index = ValuationIndex.open(path)
    except ForValueError:
        return found
    with index:
        index.model._reader = reader
        ask("query", lambda: question_of(index.query(VALIDATION, top=30, per_sample=True)))
        ask("values", lambda: values_of(index, output))
        ask("query again", lambda: question_of(index.query(VALIDATION, top=3)))
        for prefix, count in (("r", 12), ("s", 8)):
            for i in range(count):
                ask(f"{prefix}{i}", lambda name=f"{prefix}{i}": shown(index.sample(name)))
    return found


def question_of(result):
    return (result.searched, result.helpful, result.harmful, result.per_sample)


def shown(stored):
    """Without the name of its segment, which is no part of its checksum, as it changes."""
    return dataclasses.replace(stored, segment="")


def values_of(index, output):
    """Without keys and sources of the file: the catalog's checksums are not read for them."""
    scored = index.values(VALIDATION, output=output)
    arrays = (scored.ids.tolist(), scored.scores.tolist(), scored.stderrs.tolist())
    written = [json.loads(line) for line in output.read_text("utf-8").splitlines()]
    return (*arrays, [(row["id"], row["score"], row["stderr"]) for row in written])


@pytest.fixture(scope="module")
def truth(sound, tmp_path_factory):
    path, reader = sound
    found = answers(path, reader, tmp_path_factory.mktemp("truth") / "values.jsonl")
    lost = [name for name, answer in found.items() if answer is ForValueError]
    assert lost == ["r2", "r3", "r7"], "forgotten when they were compacted"
    assert len(found["values"][0]) == found["query"][0] == 16
    assert np.isfinite(found["values"][1]).all()
    return found


class Trial:
    """Copies of the sound index to damage."""

    def __init__(self, sound, truth, directory):
        self.source, self.reader = sound
        self.truth = truth
        self.path, self.output = directory / "index", directory / "values.jsonl"

    def wrong(self, name, damage):
        """The questions that are answered wrongly once `damage` is done to a file."""
        shutil.copytree(self.source, self.path)
        try:
            damage(self.path / name)
            found = answers(self.path, self.reader, self.output)
        finally:
            shutil.rmtree(self.path)
        return [
            question
            for question, answer in found.items()
            if answer is not ForValueError and answer != self.truth[question]
        ]


@pytest.fixture
def trial(sound, truth, tmp_path):
    return Trial(sound, truth, tmp_path)


def files_of(path):
    names = [str(p.relative_to(path)) for p in sorted(path.rglob("*")) if p.is_file()]
    return [name for name in names if "writer.lock" not in name]


def flip(position, bit):
    def damage(path):
        content = bytearray(path.read_bytes())
        content[position] ^= 1 << bit
        path.write_bytes(content)

    return damage


def test_a_flipped_bit_anywhere_never_gives_a_wrong_answer(sound, trial, thorough):
    """A few hundred positions over all files, most of them in the catalog, the largest one."""
    dice = random.Random(SEED)
    names = files_of(trial.source)
    assert len(names) == 7
    sizes = {name: (trial.source / name).stat().st_size for name in names}
    wrong = []
    for number in range(FLIPS if thorough else FLIPS // 3):
        name = names[number // 2 % len(names)] if number % 2 else "catalog.sqlite"
        position, bit = dice.randrange(sizes[name]), dice.randrange(8)
        questions = trial.wrong(name, flip(position, bit))
        wrong += [(name, position, bit, questions)] if questions else []
    assert wrong == []


def cut_to(share):
    def damage(path):
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * share)])

    return damage


def cut_by(n_bytes):
    return lambda path: path.write_bytes(path.read_bytes()[:-n_bytes])


def zero_a_page(number):
    """As a file system leaves what it lost in a power cut."""

    def damage(path):
        content = bytearray(path.read_bytes())
        content[number * 4096 : (number + 1) * 4096] = bytes(4096)
        path.write_bytes(content)

    return damage


@pytest.mark.parametrize(
    "name",
    [
        *("catalog.sqlite", "index.json", "sketch.safetensors", "calibration.safetensors"),
        "segments",
    ],
)
def test_a_file_that_is_cut_off_or_gone_never_gives_a_wrong_answer(trial, name):
    names = [found for found in files_of(trial.source) if found.startswith(name)]
    damages = [cut_to(share) for share in (0, 0.01, 0.2, 0.5, 0.7, 0.9, 0.97)]
    damages += [cut_by(n_bytes) for n_bytes in (1, 2, 8, 100)]
    damages += [lambda path: path.unlink(), lambda path: path.write_bytes(b"\0" * 5000)]
    for found in names:
        assert [trial.wrong(found, damage) for damage in damages] == [[]] * len(damages)


def test_a_page_of_the_catalog_that_was_never_written_gives_no_wrong_answer(trial):
    n_pages = (trial.source / "catalog.sqlite").stat().st_size // 4096
    wrong = {page: trial.wrong("catalog.sqlite", zero_a_page(page)) for page in range(n_pages)}
    assert not any(wrong.values()), wrong


def test_segments_that_changed_places_never_give_a_wrong_answer(trial):
    one, other = (name for name in files_of(trial.source) if name.startswith("segments"))
    source = trial.source / other
    assert trial.wrong(one, lambda path: shutil.copy(source, path)) == []
