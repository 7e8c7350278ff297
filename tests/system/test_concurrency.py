"""Several processes at one index: two that write and eight that read, and readers of old states."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.sources.source import open_sources
from forvalue_index.valuation.query import AnswerCounts, Question, answer
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import embed_validation, read_samples, tokenised

pytest_plugins = ("tiny", "databases")

DRIVER = Path(__file__).parents[1] / "support/concurrency_driver.py"
# A writer that waits for the other one takes a fifth of this on two busy cores.
SECONDS_A_STEP = 15
VALIDATION = rows(2, seed=1, words=1, prefix="v")


def together(tmp_path, model_dir, catalog, seconds):
    """What the processes report, each of which must have done its share without a failure."""
    seed = int.from_bytes(os.urandom(4))
    config = {
        "path": str(tmp_path / "index"),
        "model": str(model_dir),
        "catalog": catalog,
        "seconds": seconds,
        "seed": seed,
    }
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    driver = subprocess.Popen(
        [sys.executable, "-W", "error", str(DRIVER), json.dumps(config)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    try:
        answer, said = driver.communicate(timeout=4 * seconds + 240)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(driver.pid, signal.SIGKILL)
    assert not driver.returncode, said
    report = json.loads(answer)
    processes = report["processes"]
    failures = [p["name"] + ": " + p["failure"] for p in processes if p["failure"]]
    assert not failures, f"seed {seed}, {len(failures)} failed\n" + "\n".join([*failures, said])
    for process in processes:
        did, rate = process["did"], process["did"]["steps"] / process["seconds"]
        print(f"{process['name']}: {rate:.1f} steps/s {did}")  # noqa: T201 - shown with -s
        assert did["steps"] >= max(1, seconds / SECONDS_A_STEP), process
        if process["name"].startswith("reader"):
            assert did["versions seen"] >= seconds / SECONDS_A_STEP / 2, process
    changes = [p["did"]["steps"] - p["did"].get("busy", 0) for p in processes[:2]]
    assert min(changes) >= 1, processes
    assert sum(changes) >= 2 * seconds / SECONDS_A_STEP, processes
    assert report["after"]["findings"] == [], f"seed {seed}"
    assert report["after"]["same"], f"seed {seed}: {report['after']}"
    return processes


def total(processes, name):
    return sum(process["did"].get(name, 0) for process in processes)


@pytest.fixture(scope="session")
def seconds(request, thorough):
    """How long processes write and read at once."""
    return request.config.getoption("--concurrency-seconds") or (60 if thorough else 10)


def test_two_writers_and_eight_readers_on_sqlite(tmp_path, model_dir, seconds):
    processes = together(tmp_path, model_dir, "sqlite", seconds)
    assert len(processes) == 10
    if seconds >= 30:
        everything = (
            *("add", "remove", "mark", "compact", "busy", "taken"),
            *("rows added", "rows restored", "rows updated", "rows removed", "rows dropped"),
            *("values", "export", "query", "ask", "read", "check", "both signs"),
        )
        assert all(total(processes, name) for name in everything), processes


def test_two_writers_and_eight_readers_on_postgresql(
    tmp_path, model_dir, postgresql_database, seconds
):
    seconds = max(seconds / 4, 15)
    processes = together(tmp_path, model_dir, postgresql_database, seconds)
    assert total(processes, "busy") or seconds < 10


@pytest.fixture(params=["sqlite", "postgresql"])
def pair(request, tmp_path, model_dir):
    """An index opened twice, as by two processes: one reads and the other one writes."""
    catalog = "sqlite"
    if request.param == "postgresql":
        catalog = request.getfixturevalue("postgresql_database")
    path, model = tmp_path / "index", str(model_dir)
    with (
        ValuationIndex.create(path, model, catalog=catalog, dim=256, geometry="raw") as writer,
        ValuationIndex.open(path) as reader,
    ):
        for start in range(0, 30, 10):
            writer.add(rows(30)[start : start + 10])
        yield reader, writer


def files(index):
    return index.storage.segments.files()


def test_values_that_are_being_computed_outlive_the_files_they_are_computed_from(pair):
    reader, writer = pair
    before = reader.values(VALIDATION)
    old, deleted = files(writer), []

    def compact_after_one_block(progress):
        if progress.stage == "scoring" and not deleted:
            assert progress.done < progress.total
            writer.remove(["r0", "r15", "r29"])
            writer.compact()
            deleted.extend(path for path in old if not path.exists())

    reader.model.on_progress = compact_after_one_block
    during = reader.values(VALIDATION)
    assert deleted == old
    assert during.ids.tolist() == before.ids.tolist() == [*range(30)]
    assert during.scores.tolist() == before.scores.tolist()
    after = reader.values(VALIDATION)
    assert after.ids.tolist() == [i for i in range(30) if i not in (0, 15, 29)]


def test_an_export_names_samples_that_were_forgotten_while_it_ran(pair, tmp_path):
    reader, writer = pair
    done = []

    def forget(progress):
        if progress.stage == "scoring" and not done:
            done.append(writer.remove(where="id >= 10"))
            writer.compact()

    reader.model.on_progress = forget
    reader.values(VALIDATION, output=tmp_path / "values.jsonl")
    lines = (tmp_path / "values.jsonl").read_text("utf-8").splitlines()
    assert done == [20]
    assert [json.loads(line)["key"] for line in lines] == [f"r{i}" for i in range(30)]
    assert len(reader) == 10


def test_a_snapshot_finds_the_text_of_hits_that_were_removed_and_forgotten_since(pair):
    reader, writer = pair
    validation = tokenised(reader.model.reader, read_samples(open_sources(VALIDATION)))
    embedded = embed_validation(reader.model.embedder(), "raw", validation)
    with reader._search.current(Scoring()) as (valuer, snapshot):
        writer.remove(where="id >= 0")
        writer.compact()
        assert (len(writer), files(writer)) == (0, [])
        result = answer(valuer, snapshot, Question(validation, embedded, AnswerCounts(30, 30)))
    assert result.searched == 30
    for hit in result.helpful:
        assert hit.sample.key == f"r{hit.id}"
        assert hit.sample.response == rows(30)[hit.id]["response"]
    assert reader.query(VALIDATION).searched == 0


def test_a_query_sees_what_others_have_changed_since_the_last_one(pair):
    reader, writer = pair

    def best():
        result = reader.query(VALIDATION, top=40)
        assert result.index_version == writer.version
        return {hit.sample.key: hit for hit in result.helpful}

    first = best()
    assert first.keys() == {f"r{i}" for i in range(30)}
    writer.add(rows(5, seed=1, prefix="s"))
    assert best().keys() == first.keys() | {f"s{i}" for i in range(5)}
    writer.remove(["s1", "r3"])
    left = first.keys() - {"r3"} | {"s0", "s2", "s3", "s4"}
    assert best().keys() == left
    writer.compact()
    compacted = best()
    assert compacted.keys() == left
    assert all(compacted[key].score == first[key].score for key in left & first.keys())
    writer.add([rows(30)[3], rows(30)[4] | {"topic": "peace"}])
    last = best()
    assert last.keys() == left | {"r3"}
    assert last["r3"].id > max(hit.id for hit in compacted.values())
    assert last["r4"].sample.metadata["topic"] == "peace"


def test_a_query_is_answered_from_memory_where_nothing_has_changed(pair):
    reader, writer = pair
    reader.query(VALIDATION)
    (valuer,) = reader._search._held.values()
    reader.query(VALIDATION)
    assert [*reader._search._held.values()] == [valuer]
    writer.remove(["r1"])
    reader.query(VALIDATION)
    assert valuer not in reader._search._held.values()


def test_a_view_reads_on_while_its_index_is_compacted_again_and_again(pair):
    reader, writer = pair
    with reader.storage.view() as view:
        for name in ("r0", "r10", "r20"):
            writer.remove([name])
            writer.compact()
        assert [i for block in view.blocks("raw") for i in block.ids.tolist()] == [*range(30)]
        assert view.catalog.sample("r10").sample.response == rows(30)[10]["response"]
