"""Processes that write to and read from one index at once, for `test_concurrency.py`.

Imports and the model are loaded once, then every process costs a fork. A process that meets an
error that was not promised, or a read that does not fit together, ends with what it saw; the
report on standard output has, for each process, how often it did what, and its failure.

python concurrency_driver.py '{"path": .., "model": .., "catalog": .., "seconds": .., "seed": ..}'
"""

import contextlib
import csv
import faulthandler
import gc
import importlib
import json
import os
import random
import re
import sys
import time
import traceback
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import torch
from rows import WORDS, rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.devices import default_device
from forvalue_index.exceptions import BadSampleError, BusyIndexError
from forvalue_index.ingest import storing
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.sources.source import open_sources
from forvalue_index.store.create import wanted_settings
from forvalue_index.valuation import values
from forvalue_index.valuation.query import AnswerCounts, Question, answer
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import embed_validation, read_samples, tokenised

WRITERS, READERS = 2, 8
HANGS_S = 60
POOL = 200
# Never removed, and given new metadata all at once.
ANCHORS = 10
# Several commits within one `add`.
COMMIT_ROWS = 8
DIM, GEOMETRY = 256, "fisher"
SETTINGS = {"dim": DIM, "geometry": GEOMETRY}
# One that a tenth of the pool hurts.
VALIDATION = rows(2, seed=1, words=1, prefix="v")
# Twice half a unit in the last place of bfloat16: rows of one content may round to neighbours.
BFLOAT16_STEP = 2**-8
BUSY = r"is being written to by (process \d+ on .+ since|another process, which has)"
TAKEN = "is taken by a sample of other content"


def pool():
    """Samples by key, most with two contents, of which an index holds one at a time."""
    chosen = random.Random(5)
    first = {row["id"]: row for row in rows(POOL, seed=11)}
    other = {
        key: row | {"response": " ".join(chosen.choices(WORDS, k=6))} for key, row in first.items()
    }
    anchors = {row["id"]: row for row in rows(ANCHORS, seed=12, prefix="anchor")}
    return first, other, anchors


class Reference:
    """What every content is worth to the validation set, computed before anything else runs."""

    def __init__(self, directory, model):
        self.validation = write_jsonl(directory / "validation.jsonl", VALIDATION)
        self.first, self.other, self.anchors = pool()
        self.worth, self.slack = {}, {}
        self.contents = {}
        with ValuationIndex.create(directory / "reference", model, **SETTINGS) as index:
            for content in (self.first, self.other):
                everything = [*content.values(), *self.anchors.values()]
                index.remove(where="id >= 0")
                index.add(everything)
                self._note(index)
        self.largest_slack = max(self.slack.values())

    def _note(self, index):
        query = validation_set(index)[1].mean
        with index.storage.view() as view:
            stored = view.catalog.samples(view.catalog.live_ids())
            for block in view.blocks(GEOMETRY):
                for id_, row in zip(block.ids.tolist(), block.rows.numpy(), strict=True):
                    sample = stored[id_].sample
                    self.contents.setdefault(sample.key, set()).add(sample.content_hash)
                    self.worth[sample.content_hash] = float(row @ query)
                    slack = BFLOAT16_STEP * float(np.abs(row) @ np.abs(query))
                    self.slack[sample.content_hash] = slack + 1e-6

    def check_sample(self, sample):
        assert sample.content_hash in self.contents[sample.key], f"{sample} has another's text"

    def check_score(self, sample, score):
        self.check_sample(sample)
        expected, slack = self.worth[sample.content_hash], self.slack[sample.content_hash]
        assert abs(score - expected) <= slack, f"{sample}: {score}, not {expected} ± {slack}"


def validation_set(index):
    """The validation set, read and embedded."""
    read = tokenised(index.model.reader, read_samples(open_sources(VALIDATION)))
    return read, embed_validation(index.model.embedder(), GEOMETRY, read)


class Writer:
    """Adds, removes, changes and compacts, as chance has it."""

    def __init__(self, name, directory, config, reference):
        self.chosen = random.Random(f"{config['seed']} {name}")
        self.directory, self.reference, self.path = directory / name, reference, config["path"]
        self.directory.mkdir()
        # One waits for the other, who does not wait in turn.
        self.wait = name == "writer-0"
        self.round = 0
        self.did = Counter()
        self.index = ValuationIndex.open(self.path)
        self.known = [*reference.first]

    def step(self):
        acts = {self.add: 6, self.remove: 3, self.remove_some: 1, self.mark: 2, self.compact: 2}
        (act,) = self.chosen.choices([*acts], [*acts.values()])
        if self.chosen.random() < 0.1:
            self.index.close()
            self.index = ValuationIndex.open(self.path)
        try:
            act()
        except BusyIndexError as error:
            self.expect(BUSY, error)
            self.did["busy"] += 1
            time.sleep(self.chosen.random() / 20)
        else:
            self.did[act.__name__] += 1
            if self.wait:  # or the one that does not wait never has its turn
                time.sleep(self.chosen.random() / 5)

    def expect(self, pattern, error):
        """Of the errors that are promised, one that waits meets one alone."""
        assert re.search(pattern, str(error)), error
        assert not (self.wait and pattern == BUSY), error

    def _data(self, items):
        name = self.chosen.choice(("a", "b", "c"))
        return str(write_jsonl(self.directory / f"{name}.jsonl", items))

    def add(self):
        content = self.chosen.choice((self.reference.first, self.reference.other))
        keys = self.chosen.sample(self.known, self.chosen.randint(1, 40))
        data = self._data([content[key] | {"round": self.round} for key in keys])
        try:
            report = self.index.add(data, wait=self.wait, on_bad="fail")
        except BadSampleError as error:
            self.expect(TAKEN, error)
            self.did["taken"] += 1
            # Their content or none: what is live under these keys goes, and comes back as this.
            keys = ", ".join(f"'{key}'" for key in keys)
            self.index.remove(where=f"key IN ({keys})", wait=self.wait)
            report = self.index.add(data, wait=self.wait, on_bad="skip")
        self.did["rows added"] += report.added
        self.did["rows restored"] += report.restored
        self.did["rows updated"] += report.updated

    def remove(self):
        with self.index.storage.catalog.snapshot() as snapshot:
            live = [key for _, key, _ in snapshot.identities() if not key.startswith("anchor")]
        named = self.chosen.sample(live, min(len(live), self.chosen.randint(1, 15)))
        if named:
            # The other writer may have removed some of them since, or compacted them away.
            keys = ", ".join(f"'{key}'" for key in named)
            self.did["rows removed"] += self.index.remove(where=f"key IN ({keys})", wait=self.wait)

    def remove_some(self):
        topic = self.chosen.choice(("law", "art", "war"))
        where = f"metadata.topic = '{topic}' AND NOT key LIKE 'anchor%'"
        self.did["rows removed"] += self.index.remove(where=where, wait=self.wait)

    def mark(self):
        """New metadata for all anchors at once."""
        self.round += 1
        mark = f"{self.directory.name} {self.round}"
        report = self.index.add(
            self._data([row | {"mark": mark} for row in self.reference.anchors.values()]),
            wait=self.wait,
        )
        assert (report.read, report.known, report.updated) == (ANCHORS,) * 3, report

    def compact(self):
        report = self.index.compact(wait=self.wait)
        self.did["rows dropped"] += report.dropped
        self.did["segments merged"] += report.segments_before - report.segments_after


class Reader:
    """Reads in every way there is, and looks whether what it reads fits together."""

    def __init__(self, name, directory, config, reference):
        self.chosen = random.Random(f"{config['seed']} {name}")
        self.reference, self.path = reference, config["path"]
        self.output = directory / f"{name}.csv"
        # Half of them keep one index open all the time.
        self.keeps = int(name.partition("-")[2]) % 2 == 0
        self.index = None
        self.did = Counter()
        self.version = 0

    def step(self):
        if self.index is None:
            self.index = ValuationIndex.open(self.path)
        act = self.chosen.choice((self.values, self.export, self.query, self.ask, self.read))
        act()
        if self.chosen.random() < 0.05:
            self.check()
        self.did[act.__name__] += 1
        if not self.keeps:
            self.index.close()
            self.index = None

    def _advance(self, version):
        assert version >= self.version, f"version {version} after {self.version}"
        self.did["versions seen"] += version > self.version
        self.version = version

    def values(self):
        """All scores, and what a snapshot of the same state says."""
        with self.index.storage.view() as view:
            self._advance(view.version)
            scored = values.scanned_values(
                view,
                validation_set(self.index)[1],
                Scoring(GEOMETRY),
                errors=self.index.storage.frozen.sketch_error(GEOMETRY),
            )
            assert (np.diff(scored.ids) > 0).all(), scored.ids
            assert len(scored.ids) == view.catalog.count()
            assert scored.ids.tolist() == view.catalog.live_ids().tolist()
            stored = view.catalog.samples(scored.ids)
            for id_, score in zip(scored.ids.tolist(), scored.scores, strict=True):
                self.reference.check_score(stored[id_].sample, score)
            keys = [one.sample.key for one in stored.values()]
            assert len(set(keys)) == len(keys), "a key is live twice"
            assert sum(key.startswith("anchor") for key in keys) == ANCHORS

    def export(self):
        """Scores in a file, under their keys."""
        scored = self.index.values(self.reference.validation, output=self.output)
        with self.output.open(encoding="utf-8", newline="") as file:
            lines = [*csv.DictReader(file)]
        assert [int(line["id"]) for line in lines] == scored.ids.tolist()
        for line in lines:
            contents = self.reference.contents[line["key"]]
            near = [
                abs(float(line["score"]) - self.reference.worth[content])
                <= self.reference.slack[content]
                for content in contents
            ]
            assert any(near), line

    def query(self):
        """The best and the worst of what is live in the very state that is asked."""
        top, bottom = self.chosen.randint(1, 12), self.chosen.randint(1, 12)
        validation, embedded = validation_set(self.index)
        with self.index._search.current(Scoring(GEOMETRY)) as (valuer, snapshot):
            assert valuer.version == snapshot.version()
            result = answer(
                valuer, snapshot, Question(validation, embedded, AnswerCounts(top, bottom))
            )
            live = [one.sample for one in snapshot.samples(snapshot.live_ids()).values()]
        self._advance(result.index_version)
        assert result.searched == len(live)
        self._check_hits(result, top, bottom)
        worth = sorted(self.reference.worth[sample.content_hash] for sample in live)
        for hits, expected in ((result.helpful, worth[::-1]), (result.harmful, worth)):
            scores = np.array([hit.score for hit in hits])
            # Sorted scores move no further than the scores themselves.
            apart = np.abs(scores - expected[: len(scores)])
            assert (apart <= self.reference.largest_slack).all(), (scores, expected)

    def ask(self):
        """A query as users put it."""
        top, bottom = self.chosen.randint(1, 12), self.chosen.randint(1, 12)
        result = self.index.query(
            VALIDATION, top=top, bottom=bottom, per_sample=self.chosen.random() < 0.2
        )
        self._advance(result.index_version)
        self._check_hits(result, top, bottom)
        for each in result.per_sample:
            for hits in (each.helpful, each.harmful):
                assert len({hit.id for hit in hits}) == len(hits)

    def _check_hits(self, result, top, bottom):
        assert len(result.helpful) == min(top, result.searched)
        assert len(result.harmful) == min(bottom, result.searched)
        for hits, sign in ((result.helpful, -1), (result.harmful, 1)):
            scores = [sign * hit.score for hit in hits]
            assert scores == sorted(scores)
            assert [hit.rank for hit in hits] == [*range(1, len(hits) + 1)]
            assert len({hit.id for hit in hits}) == len(hits)
            assert len({hit.sample.key for hit in hits}) == len(hits)
            for hit in hits:
                self.reference.check_score(hit.sample, hit.score)
        hurts = result.harmful[0].score < 0
        assert hurts != any("no sample has a negative score" in said for said in result.warnings)
        self.did["both signs"] += hurts and result.helpful[0].score > 0

    def read(self):
        """Samples and numbers, without a model."""
        with self.index.storage.view() as view:
            snapshot = view.catalog
            self._advance(view.version)
            summary, live = snapshot.summary(), snapshot.live_ids().tolist()
            assert summary.samples == len(live) == sum(s.samples for s in summary.sources)
            assert summary.samples + summary.removed == snapshot.total()
            assert summary.segments == len(snapshot.segments())
            listed = snapshot.list_samples(limit=10 * POOL)
            assert [one.id for one in listed] == live
            for one in listed:
                self.reference.check_sample(one.sample)
            marks = {
                one.sample.metadata["mark"]
                for one in snapshot.list_samples("key LIKE 'anchor%'", limit=2 * ANCHORS)
            }
            assert len(marks) == 1, f"anchors are changed in part: {marks}"
            assert [*snapshot.identities()] == [
                (one.id, one.sample.key, one.sample.source) for one in listed
            ]
            blocks = [*view.blocks(GEOMETRY)]
            assert np.concatenate([block.ids for block in blocks]).tolist() == live
        found = self.index.list_samples("metadata.topic = 'law'", limit=5)
        assert all(one.sample.metadata["topic"] == "law" for one in found)
        assert self.index.sample("anchor3").sample.key == "anchor3"
        summary = self.index.info()
        assert summary.samples == sum(source.samples for source in summary.sources)

    def check(self):
        findings = self.index.check().findings
        assert not findings, findings
        self.did["check"] += 1


def work(role, name, directory, config, reference):
    """Be one of the processes; returns its report."""
    started, failure = time.perf_counter(), None
    worker, did = None, Counter()
    try:
        worker = role(name, directory, config, reference)
        did = worker.did
        while time.perf_counter() - started < config["seconds"]:
            worker.step()
            did["steps"] += 1
        if worker.index is not None:
            worker.index.close()
    except BaseException:
        failure = traceback.format_exc()
    seconds = time.perf_counter() - started
    return {"name": name, "seconds": seconds, "did": did, "failure": failure}


def fork(role, name, directory, config, reference):
    pid = os.fork()
    if not pid:
        try:
            # One that hangs says where, and is found to have ended badly.
            faulthandler.dump_traceback_later(3 * config["seconds"] + HANGS_S, exit=True)
            report = work(role, name, directory, config, reference)
            (directory / f"{name}.json").write_text(json.dumps(report), encoding="utf-8")
        finally:
            os._exit(0)
    return pid


def last_look(path):
    """What a check finds when all is over, and after a compaction, and what is left."""
    with ValuationIndex.open(path) as index:
        findings = [str(f) for f in index.check().findings]
        before = index.info().samples
        index.compact()
        findings += [str(f) for f in index.check().findings]
        summary = index.info()
        files = len(index.storage.segments.files())
    same = summary.samples == before and not summary.removed and summary.segments == files
    return {"findings": findings, "same": same, "summary": str(summary)}


def prepare(config, directory):
    storing.COMMIT_BYTES = COMMIT_ROWS * DIM * 2
    backbone = Backbone.load(wanted_settings(config["model"], {}), device=default_device())
    Backbone.load = staticmethod(lambda *_, **__: cached(backbone))
    reference = Reference(directory, config["model"])
    with ValuationIndex.create(
        config["path"], config["model"], catalog=config["catalog"], **SETTINGS
    ) as index:
        index.calibrate(directory / "reference")
        index.add([row | {"mark": "none"} for row in reference.anchors.values()])
        index.add([*reference.first.values()][: POOL // 2])
        Reader("reader-0", directory, config, reference).step()
    with contextlib.suppress(ImportError):
        importlib.import_module("psycopg")
    return reference


@cache
def cached(backbone):
    """The model does not change, so its digest is computed once."""
    identity = backbone.identity()
    backbone.identity = lambda: identity
    return backbone


def main(config):
    torch.set_num_threads(1)
    directory = Path(config["path"]).with_name("processes")
    directory.mkdir()
    reference = prepare(config, directory)
    gc.collect()
    gc.freeze()
    names = [(Writer, f"writer-{i}") for i in range(WRITERS)]
    names += [(Reader, f"reader-{i}") for i in range(READERS)]
    pids = [fork(role, name, directory, config, reference) for role, name in names]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    reports = [
        json.loads((directory / f"{name}.json").read_text("utf-8"))
        if not code
        else {"name": name, "seconds": 0, "did": {}, "failure": f"ended by {code}"}
        for (_, name), code in zip(names, codes, strict=True)
    ]
    json.dump({"processes": reports, "after": last_look(config["path"])}, sys.stdout)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
