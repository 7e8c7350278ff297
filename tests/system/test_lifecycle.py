"""Whatever is done to an index, in whatever order, it is what a dictionary would be."""

import dataclasses
import os
import shutil
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.sources.columns import to_sample
from forvalue_index.store.catalog.database import CatalogError

pytest_plugins = ("tiny",)

CONTENTS = [
    {"prompt": row["prompt"], "response": row["response"]} for row in rows(4, seed=7, words=3)
]
VALIDATION = rows(1, seed=2, prefix="v")
# Some of them are ids of other samples, too.
KEYS = ("a", "b", "c", "0", "3", "17")
SOURCES = ("one.jsonl", "other.jsonl")
# Batches of other shapes round otherwise; rows are stored in float32.
ROUNDING = 1e-4

ROWS = st.lists(
    st.tuples(
        st.sampled_from(KEYS),
        st.integers(0, len(CONTENTS) - 1),
        st.sampled_from([{}, {"m": 1}, {"m": 2}, {"m": 1, "n": "x"}]),
    ),
    min_size=1,
    max_size=6,
)


@dataclasses.dataclass
class Entry:
    """What the model knows of one stored sample."""

    id: int
    key: str
    content: int
    metadata: dict[str, Any]
    source: str
    live: bool = True


class Model:
    """An index in plain Python."""

    def __init__(self):
        self.entries = []
        self.next_id = 0
        self.sources = set()

    def live(self):
        return [entry for entry in self.entries if entry.live]

    def held(self, key, content):
        """What is stored under a key: a live sample, or a removed one of equal content."""
        mine = [entry for entry in self.entries if entry.key == key]
        alive = [entry for entry in mine if entry.live]
        removed = [entry for entry in mine if entry.content == content]
        return (alive or removed or [None])[-1]

    def named(self, name):
        """The sample of a key, a live one first; of a number after @, or where no key has digits.

        Nothing where a name of digits might mean either.
        """
        digits = any(entry.key.isdecimal() for entry in self.entries)
        of_key = [entry for entry in self.entries if entry.key == name]
        of_number = [entry for entry in self.entries if f"@{entry.id}" == f"@{name.lstrip('@')}"]
        if name.startswith("@") or not (of_key or digits):
            of_key = of_number
        return max(of_key, key=lambda entry: (entry.live, entry.id), default=None)

    def add(self, items, source):
        """Counts of what happens to each row."""
        counts, seen = Counter(read=len(items)), {}
        before = {id(entry): dict(entry.metadata) for entry in self.live()}
        for key, content, metadata in items:
            entry = self.held(key, content)
            if seen.get(key, entry.content if entry else content) != content:
                counts["rejected"] += 1
                continue
            if key in seen:
                counts["duplicates"] += 1
            else:
                seen[key] = content
                counts[self._store(entry, key, content, metadata, source)] += 1
            self.held(key, content).metadata |= metadata
        counts["updated"] = sum(
            before.get(id(entry), entry.metadata) != entry.metadata for entry in self.entries
        )
        return counts

    def _store(self, entry, key, content, metadata, source):
        if entry is None:
            self.entries.append(Entry(self.next_id, key, content, dict(metadata), source))
            self.next_id += 1
        elif not entry.live:
            entry.live, entry.metadata, entry.source = True, dict(metadata), source
            return self._used(source, "restored")
        else:
            return "known"
        return self._used(source, "added")

    def _used(self, source, what):
        self.sources.add(source)
        return what

    def remove(self, condition):
        chosen = [entry for entry in self.live() if condition(entry)]
        for entry in chosen:
            entry.live = False
        return len(chosen)

    def compact(self):
        forgotten = [entry for entry in self.entries if not entry.live]
        self.entries = self.live()
        return len(forgotten)


class Lifecycle(RuleBasedStateMachine):
    """Each step is done to an index and to the model; then both are compared."""

    empty: Path
    reader: Any
    reference: np.ndarray

    @initialize()
    def begin(self):
        self.directory = Path(tempfile.mkdtemp(dir=self.empty.parent))
        shutil.copytree(self.empty, self.directory / "index")
        self.model = Model()
        self.index = self.opened()

    def opened(self):
        index = ValuationIndex.open(self.directory / "index")
        index.model._reader = self.reader
        return index

    def path_of(self, source):
        return str(self.directory / source)

    @rule(items=ROWS, source=st.sampled_from(SOURCES))
    def add(self, items, source):
        data = [{"id": key, **CONTENTS[c], **metadata} for key, c, metadata in items]
        path = write_jsonl(self.directory / source, data)
        version = self.index.version
        report = self.index.add(path, on_bad="skip")
        expected = self.model.add(items, self.path_of(source))
        names = ("read", "added", "restored", "known", "updated", "duplicates", "rejected")
        found = {name: getattr(report, name) for name in names}
        assert found == {name: expected[name] for name in names}
        changed = expected["added"] or expected["restored"] or expected["updated"]
        assert (self.index.version > version) == bool(changed)

    @rule(items=ROWS, source=st.sampled_from(SOURCES))
    def add_twice(self, items, source):
        """The same again changes nothing."""
        self.add(items, source)
        version = self.index.version
        self.add(items, source)
        assert self.index.version == version

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data(), by=st.sampled_from(["key", "id", "number"]))
    def remove_one(self, data, by):
        entry = data.draw(st.sampled_from(self.model.entries))
        name = {"key": entry.key, "id": entry.id, "number": f"@{entry.id}"}[by]
        meant = self.model.named(str(name))
        self.find(str(name))
        if meant is not None:
            assert self.index.remove([name]) == self.model.remove(lambda e: e is meant)

    @precondition(lambda self: self.model.live())
    @rule(data=st.data())
    def remove_an_id(self, data):
        """A condition means the id, though it be the key of another sample."""
        entry = data.draw(st.sampled_from(self.model.live()))
        removed = self.index.remove(where=f"id = {entry.id}")
        assert removed == self.model.remove(lambda e: e is entry) == 1

    @rule(name=st.sampled_from([*KEYS, "1", "2", "5", "99", "@0", "@1", "@3"]))
    def find(self, name):
        meant = self.model.named(name)
        if meant is None:
            with pytest.raises(CatalogError, match="no sample with the key"):
                self.index.sample(name)
        else:
            assert self.index.sample(name).id == meant.id

    @precondition(lambda self: self.model.sources)
    @rule(data=st.data())
    def remove_a_source(self, data):
        source = data.draw(st.sampled_from(sorted(self.model.sources)))
        expected = self.model.remove(lambda entry: entry.source == source)
        assert self.index.remove(source=source) == expected

    @rule(value=st.integers(1, 2))
    def remove_where(self, value):
        expected = self.model.remove(lambda entry: entry.metadata.get("m") == value)
        assert self.index.remove(where=f"metadata.m = {value}") == expected

    @rule()
    def compact(self):
        report = self.index.compact()
        assert report.dropped == self.model.compact()
        assert report.segments_after == (1 if self.model.entries else 0)

    @rule()
    def reopen(self):
        self.index.close()
        self.index = self.opened()

    @rule(repair=st.booleans())
    def check(self, repair):
        assert self.index.check(repair=repair).findings == ()

    @precondition(lambda self: self.model.entries)
    @rule(data=st.data())
    def lose_a_segment(self, data):
        """Nothing is forgotten where it is mended."""
        files = sorted((self.directory / "index" / "segments").iterdir())
        os.truncate(data.draw(st.sampled_from(files)), 100)
        repaired = self.index.check(repair=True)
        assert [(f.kind, f.repaired) for f in repaired.findings] == [("damaged segment", True)]

    @invariant()
    def is_what_the_model_is(self):
        live = sorted(self.model.live(), key=lambda entry: entry.id)
        assert len(self.index) == self.index.info().samples == len(live)
        assert self.index.info().removed == len(self.model.entries) - len(live)
        assert self.index.count("metadata.m = 1") == sum(e.metadata.get("m") == 1 for e in live)
        listed = [
            (s.id, s.sample.key, s.sample.response, s.sample.metadata, s.sample.source)
            for s in self.index.list_samples()
        ]
        assert listed == [
            (e.id, e.key, CONTENTS[e.content]["response"], e.metadata, e.source) for e in live
        ]
        by_source = {source.source: source.samples for source in self.index.info().sources}
        assert by_source == Counter(entry.source for entry in live)

    @invariant()
    def values_are_those_of_the_contents(self):
        live = sorted(self.model.live(), key=lambda entry: entry.id)
        scored = self.index.values(VALIDATION)
        assert scored.ids.tolist() == [entry.id for entry in live]
        expected = np.array([self.reference[entry.content] for entry in live])
        tolerance = ROUNDING * np.abs(self.reference).max()
        np.testing.assert_allclose(scored.scores, expected, atol=tolerance)

    def teardown(self):
        if hasattr(self, "index"):
            self.index.close()
            shutil.rmtree(self.directory)


@pytest.fixture
def machine(tmp_path, model_dir):
    """The machine with an empty index to copy, one model, and the scores of all contents."""
    path = tmp_path / "empty"
    chosen = {"dim": 128, "row_dtype": "float32", "geometry": "fisher"}
    with ValuationIndex.create(path, str(model_dir), **chosen) as index:
        index.calibrate(CONTENTS)
        reader, embedder = index.model.reader, index.model.embedder()
    prepared = [embedder.prepare(to_sample(row)) for row in [*CONTENTS, *VALIDATION]]
    alone = torch.cat([embedder.embed([one]).rows["fisher"] for one in prepared]).double().numpy()
    reference = alone[:-1] @ alone[-1]
    assert np.abs(np.subtract.outer(reference, reference)[np.triu_indices(4, 1)]).min() > (
        100 * ROUNDING * np.abs(reference).max()
    ), "contents are told apart by their scores"
    return type(
        "Machine",
        (Lifecycle,),
        {"empty": path, "reader": reader, "reference": reference},
    )


def test_an_index_is_what_a_dictionary_would_be(machine, thorough):
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=20 if thorough else 8,
            stateful_step_count=15,
            deadline=None,
            # A failing history is short enough to read, and takes minutes to shorten.
            phases=[Phase.explicit, Phase.reuse, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
