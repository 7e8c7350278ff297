import json
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from grids import rarely
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rows import rows, write_jsonl
from stored_rows import (
    assert_identical_rows,
    assert_same_rows,
    keys,
    small_batches,
    stored_rows,
    windows_of,
)

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BadSampleError, ModelError, SourceError
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.ingest import add as ingest
from forvalue_index.ingest.tally import Repeat
from forvalue_index.sources.columns import to_sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.writer_lock import LOCK

pytest_plugins = ("tiny",)

# Rows that do not depend on what was added first.
SETTINGS = {"dim": 256, "row_dtype": "float32", "geometry": "raw"}


@pytest.fixture
def index(tmp_path, model_dir):
    """Of float32 rows, so that nothing but arithmetic rounds."""
    path = tmp_path / "index"
    with ValuationIndex.create(path, str(model_dir), **SETTINGS) as created:
        yield created


@pytest.fixture
def embedded(monkeypatch):
    """How many samples each forward pass took, in order."""
    sizes = []
    original = Embedder.embed_batch

    def counting(self, batch, prepared):
        sizes.append(len(batch.indices))
        return original(self, batch, prepared)

    monkeypatch.setattr(Embedder, "embed_batch", counting)
    return sizes


def stop_at(monkeypatch, batch_number, error):
    """Raise in the forward pass of a batch, counted from 1; later ones work again."""
    calls = []
    original = Embedder.embed_batch

    def stopping(self, batch, prepared):
        calls.append(batch)
        if len(calls) == batch_number:
            raise error
        return original(self, batch, prepared)

    monkeypatch.setattr(Embedder, "embed_batch", stopping)


def segments_of(index):
    with index.storage.catalog.snapshot() as snapshot:
        return snapshot.segments()


def listing(path):
    """Files with sizes; SQLite's own side files and the name of the last writer come and go."""
    return {
        str(p.relative_to(path)): p.stat().st_size
        for p in path.rglob("*")
        if p.is_file() and "catalog.sqlite-" not in p.name and p.name != LOCK
    }


def test_a_report_counts_what_was_done(index):
    data = rows(12)
    report = index.add(data)
    assert (report.read, report.added, report.known, report.rejected) == (12, 12, 0, 0)
    assert (report.truncated, report.segments, report.rejected_file) == (0, 1, None)
    stored = index.list_samples()
    assert report.tokens == sum(s.statistics.n_tokens for s in stored)
    assert report.label_tokens == sum(s.statistics.n_label_tokens for s in stored)
    assert set(report.seconds) == {"load", "forward", "total"}
    assert 0 < report.seconds["forward"] < report.seconds["total"]
    assert index.version == 1


def test_samples_are_stored_with_all_that_came_with_them(index, tmp_path):
    data = rows(4)
    path = write_jsonl(tmp_path / "train.jsonl", data)
    index.add(path)
    stored = index.sample("r2")
    assert (stored.id, stored.sample.source, stored.sample.position) == (2, str(path), 3)
    assert stored.sample.prompt == data[2]["prompt"]
    assert stored.sample.response == data[2]["response"]
    assert stored.sample.metadata == {"topic": "war"}


def test_ids_are_in_order_of_input_though_batches_are_in_order_of_length(index):
    small_batches(index)
    data = rows(40)
    index.add(data)
    assert keys(index) == [row["id"] for row in data]
    assert [stored.id for stored in index.list_samples()] == list(range(40))


def test_a_row_depends_on_its_sample_alone(index, tmp_path, model_dir):
    """Not on what else is in the batch, its order or its padding."""
    data = rows(24)
    index.add(data)
    path = tmp_path / "other"
    with ValuationIndex.create(path, str(model_dir), **SETTINGS) as other:
        small_batches(other, 1)
        assert other.add(reversed(data)).added == 24
    assert_same_rows(stored_rows(path), stored_rows(tmp_path / "index"))


def test_known_samples_are_skipped_before_the_forward_pass(index, embedded):
    data = rows(10)
    index.add(data[:6])
    assert sum(embedded) == 6
    report = index.add(data)
    assert (report.read, report.added, report.known) == (10, 4, 6)
    assert sum(embedded) == 10
    report = index.add(data)
    assert (report.read, report.added, report.known, report.segments) == (10, 0, 10, 0)
    assert report.tokens == report.label_tokens == 0
    assert sum(embedded) == 10
    assert index.version == 2


def test_a_sample_without_an_id_is_known_by_its_content(index, embedded):
    data = [{k: row[k] for k in ("prompt", "response")} for row in rows(5)]
    index.add(data)
    report = index.add([*data, {**data[0], "topic": "metadata does not matter"}])
    assert (report.added, report.known, report.duplicates, report.updated) == (0, 5, 1, 1)
    assert sum(embedded) == 5


def test_a_removed_sample_is_restored_without_a_forward_pass(index, embedded, tmp_path):
    data = rows(3)
    index.add(data)
    before = index.sample("r1"), stored_rows(tmp_path / "index")
    assert index.remove(["r1"]) == 1
    report = index.add(data)
    assert (report.known, report.restored, report.added, report.updated) == (2, 1, 0, 0)
    assert (report.segments, report.tokens) == (0, 0)
    assert sum(embedded) == 3
    assert (index.sample("r1"), keys(index)) == (before[0], ["r0", "r1", "r2"])
    assert_identical_rows(stored_rows(tmp_path / "index"), before[1])
    assert index.add(data).known == 3


def test_a_restored_sample_is_where_it_was_read_now(index, tmp_path):
    data = rows(3)
    index.add(write_jsonl(tmp_path / "one.jsonl", data))
    index.remove(["r1"])
    path = write_jsonl(tmp_path / "other.jsonl", [{**data[1], "topic": "new", "more": 1}])
    assert index.add(path).restored == 1
    sample = index.sample("r1").sample
    assert (sample.source, sample.position) == (str(path), 1)
    assert sample.metadata == {"topic": "new", "more": 1}


def test_the_key_of_a_removed_sample_is_free_for_other_content(index, embedded):
    data, other = rows(3), {**rows(3)[1], "response": "another answer"}
    index.add(data)
    index.remove(["r1"])
    assert index.add([other]).added == 1
    assert (index.sample("r1").id, index.sample("r1").sample.response) == (3, "another answer")
    with pytest.raises(BadSampleError, match="its id 'r1' is taken by a sample of other content"):
        index.add(data)
    index.remove(["r1"])
    assert index.add(data).restored == 1
    assert index.sample("r1").id == 1
    assert sum(embedded) == 4


@pytest.mark.parametrize("removed_first", [True, False])
def test_the_first_row_of_a_key_counts_though_a_later_one_was_removed_before(index, removed_first):
    """The first one was rejected, as if the removed sample still had the key."""
    removed, other = rows(1)[0], {**rows(1)[0], "response": "another answer"}
    index.add([removed])
    index.remove(["r0"])
    data = [removed, other] if removed_first else [other, removed]
    report = index.add(data, on_bad="skip")
    expected = (0, 1, 1) if removed_first else (1, 0, 1)
    assert (report.added, report.restored, report.rejected) == expected
    assert index.sample("r0").sample.response == data[0]["response"]


def test_new_metadata_of_a_known_sample_is_stored_without_a_forward_pass(index, embedded, tmp_path):
    data = rows(4)
    index.add(data)
    before = stored_rows(tmp_path / "index")
    report = index.add([data[0], {**data[1], "topic": "new", "more": [1]}, *data[2:]])
    assert (report.known, report.updated, report.added, report.restored) == (4, 1, 0, 0)
    assert sum(embedded) == 4
    assert index.sample("r1").sample.metadata == {"topic": "new", "more": [1]}
    assert index.count("metadata.topic = 'new'") == 1
    assert index.sample("r0").sample.metadata == {"topic": "law"}
    assert_identical_rows(stored_rows(tmp_path / "index"), before)


def test_metadata_that_a_row_does_not_have_stays(index):
    index.add(rows(1))
    version = index.version
    bare = {name: rows(1)[0][name] for name in ("id", "prompt", "response")}
    assert index.add([bare]).updated == 0
    assert (index.sample("r0").sample.metadata, index.version) == ({"topic": "law"}, version)


def test_a_label_of_equal_text_is_named_and_the_last_one_counts(index, tmp_path):
    """In an empty index, the second row was "known", and its label was gone."""
    data = [{"text": "I loved it.", "label": label} for label in (1, 0)]
    path = write_jsonl(tmp_path / "d.jsonl", data)
    report = index.add(path)
    assert (report.read, report.added, report.known) == (2, 1, 0)
    assert (report.duplicates, report.differing, report.updated) == (1, 1, 0)
    assert report.examples == (Repeat(f"{path}:2", f"{path}:1", {"label": 0}),)
    assert index.list_samples()[0].sample.metadata == {"label": 0}


def test_the_last_of_several_rows_of_a_key_counts_and_again_changes_nothing(index, embedded):
    first, second = ({**rows(1)[0], "topic": topic} for topic in ("first", "second"))
    other = rows(3)[1:]
    report = index.add([first, *other, second])
    assert (report.added, report.known, report.updated) == (3, 0, 0)
    assert (report.duplicates, report.differing) == (1, 1)
    for data, topic, updated in [
        ([first, *other, second], "second", 0),
        ([second, *other, first], "first", 1),
        ([second, *other, first], "first", 0),
    ]:
        version = index.version
        report = index.add(data)
        assert (report.known, report.duplicates, report.updated) == (3, 1, updated)
        stored = index.sample("r0").sample.metadata, index.version
        assert stored == ({"topic": topic}, version + updated)
    assert sum(embedded) == 3


def test_a_repeated_sample_is_stored_once(index, embedded):
    data = rows(5)
    report = index.add([*data, data[2], data[2], *data])
    assert (report.read, report.added, report.known) == (12, 5, 0)
    assert (report.duplicates, report.differing, report.examples) == (7, 0, ())
    assert sum(embedded) == 5
    assert keys(index) == [row["id"] for row in data]


def test_repetitions_are_found_across_windows(index, embedded, monkeypatch):
    windows_of(monkeypatch, index, 4)
    data = rows(10)
    report = index.add([*data, *data[:9]])
    assert (report.read, report.added, report.duplicates) == (19, 10, 9)
    assert sum(embedded) == 10


def test_some_of_many_rows_with_other_metadata_are_named(index):
    data = [{**rows(1)[0], "n": n} for n in range(9)]
    report = index.add(data)
    assert (report.duplicates, report.differing) == (8, 8)
    assert [(one.row, one.repeats) for one in report.examples] == [
        (f"<iterable>:{n}", "<iterable>:1") for n in range(2, 7)
    ]


# Rows of three samples; 1 is the same metadata as 1.0, and what a row lacks stays.
REPEATS = st.lists(
    st.fixed_dictionaries(
        {"id": st.sampled_from(["r0", "r1", "r2"])},
        optional={
            "label": st.sampled_from([0, 1, 1.0, "1", None, 2**64]),
            "more": st.sampled_from([{"a": [1]}, {"a": []}]),
        },
    ),
    min_size=1,
    max_size=6,
)


def with_texts(drawn):
    texts = {row["id"]: {n: row[n] for n in ("prompt", "response")} for row in rows(3)}
    return [row | texts[row["id"]] for row in drawn]


def said(metadata, drawn):
    """What the catalog holds after some rows, one after the other."""
    for row in drawn:
        own = {name: value for name, value in row.items() if name != "id"}
        metadata = metadata | {row["id"]: metadata.get(row["id"], {}) | own}
    return metadata


@settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(first=REPEATS, second=REPEATS, removed=st.booleans())
def test_rows_of_one_add_do_what_they_would_do_in_adds_of_their_own(
    index, monkeypatch, first, second, removed
):
    """And the same add again changes nothing, not even for a moment."""
    windows_of(monkeypatch, index, 2)
    index.remove(where="id >= 0")
    index.compact()
    expected = {}
    for drawn in (first, second):
        expected = said(expected, drawn)
        report = index.add(with_texts(drawn))
        counts = (report.added, report.restored, report.known, report.duplicates)
        assert sum(counts) == report.read == len(drawn)
        assert {s.sample.key: s.sample.metadata for s in index.list_samples()} == expected
        version = index.version
        again = index.add(with_texts(drawn))
        assert (again.known, again.updated) == (len({row["id"] for row in drawn}), 0)
        assert (again.duplicates, index.version) == (report.duplicates, version)
        if removed:  # what comes back has the metadata of its rows alone
            expected.pop(drawn[0]["id"])
            index.remove([drawn[0]["id"]])


def test_an_add_that_is_stopped_leaves_no_metadata_that_a_later_row_takes_back(
    index, tmp_path, monkeypatch
):
    small_batches(index, 1)
    windows_of(monkeypatch, index, 2)
    index.add([{**row, "topic": "before"} for row in rows(2)])
    data = [{**row, "topic": topic} for topic in ("first", "last") for row in rows(6)]
    path = write_jsonl(tmp_path / "d.jsonl", data)
    for _ in range(3):
        stop_after(index, 1)
        with pytest.raises(Stopped):
            index.add(path)
        assert index.sample("r0").sample.metadata == {"topic": "before"}
    index.model.on_progress = lambda _: None
    report = index.add(path)
    assert (report.duplicates, report.differing, report.rejected) == (6, 6, 0)
    assert report.added + report.known == 6
    assert {s.sample.metadata["topic"] for s in index.list_samples()} == {"last"}


def test_metadata_too_deep_for_a_catalog_is_a_bad_row_of_a_known_sample_too(index):
    """It ended the whole add, whatever was to be done about bad rows."""
    index.add(rows(2))
    deep = {**rows(1)[0], "deep": json.loads("[" * 60 + "]" * 60)}
    report = index.add([deep, rows(2)[1], {**rows(2)[1], "deep": deep["deep"]}], on_bad="skip")
    assert (report.rejected, report.known, report.duplicates) == (2, 1, 0)


@pytest.mark.parametrize("when", ["stored", "in the same data"])
def test_an_id_that_is_taken_by_other_content_is_a_bad_row(index, when):
    data, clash = rows(5), {**rows(5)[2], "response": "another answer"}
    if when == "stored":
        index.add(data)
        data = []
    said = r"<iterable>:\d: its id 'r2' is taken by a sample of other content; give it another"
    with pytest.raises(BadSampleError, match=said):
        index.add([*data, clash])
    report = index.add([*data, clash, *rows(2, prefix="n", seed=1)], on_bad="skip")
    assert report.rejected == 1
    assert len(index) == 7
    assert index.sample("r2").sample.response == rows(5)[2]["response"]
    assert (
        json.loads(open_rejected(report)[0])["row"]["messages"][-1]["content"] == "another answer"
    )


def test_an_id_is_not_taken_by_a_row_that_was_rejected(index):
    """A good row was rejected because a bad one before it, of the same id, had been seen."""
    long = {"id": "a", "prompt": "a " * 600, "response": "b", "topic": "long"}
    report = index.add([long, {"id": "a", "prompt": "a", "response": "b"}], on_bad="skip")
    assert (report.added, report.rejected) == (1, 1)
    row = json.loads(open_rejected(report)[0])["row"]
    assert (row["id"], row["topic"]) == ("a", "long")
    assert row["messages"][1]["content"] == "b"


def open_rejected(report):
    return Path(report.rejected_file).read_text("utf-8").splitlines()


def test_the_path_of_the_rejected_file_is_that_of_the_index(index, tmp_path):
    report = index.add([*rows(2), {"text": 5}], on_bad="skip")
    assert report.rejected_file.startswith(str(tmp_path / "index" / "rejected"))


@pytest.mark.parametrize(
    ("constant", "value"), [("COMMIT_BYTES", 4 * 256 * 4), ("COMMIT_S", 0.0)], ids=["bytes", "time"]
)
def test_what_is_finished_is_stored_once_it_is_large_or_old_enough(
    index, embedded, monkeypatch, constant, value
):
    """After four rows of 256 floats, that is after the batch that brings the fourth."""
    monkeypatch.setattr(f"forvalue_index.ingest.storing.{constant}", value)
    small_batches(index)
    seen = []
    index.model.on_progress = lambda step: (
        seen.append(len(index)) if step.stage == "embedding" else None
    )
    report = index.add(rows(40))
    expected, waiting = [], 0
    for size in embedded:
        waiting += size
        if constant == "COMMIT_S" or waiting >= 4:
            expected.append(waiting)
            waiting = 0
    expected += [waiting] if waiting else []
    assert [s.file.n_rows for s in segments_of(index)] == expected
    assert report.segments == len(expected) > 5
    assert {0, 40 - sum(expected[-1:])} <= set(seen), "seen by others before the end"
    assert sorted(keys(index)) == sorted(row["id"] for row in rows(40))


def test_a_commit_is_due_before_the_next_batch_would_end_too_late(index, monkeypatch):
    """A clock that only forward passes move, 10 s each: after 30 s it is too late for a third."""
    seconds = [0.0]
    monkeypatch.setattr("forvalue_index.ingest.storing.time.perf_counter", lambda: seconds[0])
    original = Embedder.embed_batch

    def slow(self, batch, prepared):
        seconds[0] += 10.0
        return original(self, batch, prepared)

    monkeypatch.setattr(Embedder, "embed_batch", slow)
    small_batches(index, 1)
    index.add(rows(10))
    assert [s.file.n_rows for s in segments_of(index)] == [3, 3, 3, 1]


def test_a_small_add_is_one_segment(index):
    small_batches(index)
    assert index.add(rows(40)).segments == 1


def window_sizes(index, data):
    read = [0]
    index.model.on_progress = lambda step: read.append(step.done) if step.total is None else None
    index.add(data)
    return [after - before for before, after in pairwise(read)]


def test_a_window_is_bounded_in_rows(index, monkeypatch):
    windows_of(monkeypatch, index, 4)
    assert window_sizes(index, rows(10)) == [4, 4, 2]


def test_a_window_is_bounded_in_characters_too(index, monkeypatch):
    monkeypatch.setattr("forvalue_index.ingest.planning.WINDOW_CHARACTERS", 10)
    texts = ["a" * 4, "b" * 4, "c" * 4, "d" * 25, "e" * 10, "f" * 2]
    assert window_sizes(index, [{"text": text} for text in texts]) == [3, 1, 1, 1]


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("not json", r"train\.jsonl:7: not JSON"),
        ('{"prompt": "p", "response": ""}', r"train\.jsonl:7: 'response' is empty"),
        ('{"prompt": "p", "answer": "a"}', r"train\.jsonl:7: no messages, no prompt"),
        (json.dumps({"prompt": "x " * 600, "response": "r"}), r"train\.jsonl:7: its prompt alone"),
        (json.dumps({"text": "a b c", "deep": json.loads("[" * 60 + "]" * 60)}), "nested deeper"),
    ],
    ids=["json", "empty", "columns", "prompt", "metadata"],
)
class TestBadRow:
    """Row 7 of 12 is bad."""

    @pytest.fixture
    def path(self, tmp_path, bad):
        path = write_jsonl(tmp_path / "train.jsonl", rows(12))
        lines = path.read_text("utf-8").splitlines()
        lines[6] = bad
        path.write_text("\n".join(lines), "utf-8")
        return path

    def test_fail_leaves_the_index_untouched(self, index, path, said, embedded, monkeypatch):
        windows_of(monkeypatch, index, 2)
        directory = path.parent / "index"
        before = listing(directory)
        with pytest.raises(BadSampleError, match=rf"{said}.*Mend the row, or use --on-bad skip$"):
            index.add(path)
        assert embedded == []
        assert listing(directory) == before
        assert (len(index), index.version) == (0, 0)

    def test_skip_stores_the_others_and_keeps_the_bad_one(self, index, path, said):
        report = index.add(path, on_bad="skip")
        assert (report.read, report.added, report.rejected) == (12, 11, 1)
        assert keys(index) == [row["id"] for row in rows(12) if row["id"] != "r6"]
        entries = [json.loads(line) for line in open_rejected(report)]
        assert [set(entry) for entry in entries] == [{"source", "position", "reason", "row"}]
        assert (entries[0]["source"], entries[0]["position"]) == (str(path), 7)
        assert entries[0]["row"]


def test_rows_that_can_be_read_once_are_stored_as_far_as_they_are_good(index, monkeypatch):
    """A generator cannot be checked beforehand: finished windows stay."""
    windows_of(monkeypatch, index, 4)
    good = rows(10)
    with pytest.raises(BadSampleError, match=r"<iterable>:11: 'text' is int"):
        index.add(row for row in [*good, {"text": 5}])
    assert keys(index) == [row["id"] for row in good[:8]]
    assert index.add(row for row in good).added == 2


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=type)
def test_what_is_finished_is_stored_and_the_rest_can_follow(
    index, tmp_path, model_dir, monkeypatch, error
):
    small_batches(index)
    windows_of(monkeypatch, index, 16)
    path = write_jsonl(tmp_path / "train.jsonl", rows(40))
    first_window = len(list(index.model.reader.batches(prepared(index, rows(16)))))
    with monkeypatch.context() as patched:
        stop_at(patched, first_window + 3, error)
        with pytest.raises(type(error)):
            index.add(path)
    finished = keys(index)
    assert 16 < len(finished) < 32
    assert finished[:16] == [row["id"] for row in rows(16)]
    assert finished == sorted(finished, key=lambda key: int(key[1:]))
    assert index.info().stopped == ((str(path),),)
    assert len(stored_rows(tmp_path / "index")) == len(finished)

    report = index.add(path)
    assert (report.read, report.known) == (40, len(finished))
    assert report.added == 40 - len(finished)

    other = tmp_path / "uninterrupted"
    assert index.info().stopped == ()
    with ValuationIndex.create(other, str(model_dir), **SETTINGS) as straight:
        small_batches(straight)
        straight.add(path)
    assert_identical_rows(stored_rows(tmp_path / "index"), stored_rows(other))


def prepared(index, data):
    return [index.model.reader.prepare(to_sample(row)) for row in data]


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_waits_until_what_is_finished_is_stored(index, embedded, monkeypatch):
    """Ctrl-C between the segment file and its record lost the forward passes before it."""
    monkeypatch.setattr("forvalue_index.ingest.storing.COMMIT_BYTES", 1)
    small_batches(index)
    commit = Catalog.commit_segment

    def interrupted(self, *arguments, **options):
        signal.raise_signal(signal.SIGINT)
        return commit(self, *arguments, **options)

    monkeypatch.setattr(Catalog, "commit_segment", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        index.add(rows(10))
    assert [len(index)] == embedded
    assert signal.getsignal(signal.SIGINT) is handler


def test_data_is_added_from_other_threads_too(index):
    """Only the main thread may deal with signals."""
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(index.add, rows(3)).result().added == 3


def test_nothing_finished_stores_nothing(index, monkeypatch):
    stop_at(monkeypatch, 1, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        index.add(rows(3))
    assert (len(index), index.version) == (0, 0)
    assert index.add(rows(3)).added == 3


def test_an_error_in_the_callback_loses_nothing(index):
    def callback(step):
        if step.stage == "embedding":
            raise ZeroDivisionError

    index.model.on_progress = callback
    small_batches(index)
    with pytest.raises(ZeroDivisionError):
        index.add(rows(20))
    assert 0 < len(index) < 20


def test_rejected_rows_are_written_though_the_rest_fails(index, tmp_path, monkeypatch):
    stop_at(monkeypatch, 1, RuntimeError())
    with pytest.raises(RuntimeError):
        index.add([*rows(3), {"text": 5}], on_bad="skip")
    assert len(list((tmp_path / "index" / "rejected").iterdir())) == 1


@pytest.mark.parametrize("data", [[], iter([])], ids=["list", "generator"])
def test_no_row_at_all_is_an_error(index, data):
    with pytest.raises(SourceError, match="<iterable>: there is no row in it, so nothing was add"):
        index.add(data)


def test_an_empty_file_is_an_error(index, tmp_path):
    path = tmp_path / "none.jsonl"
    path.write_text("\n\n")
    with pytest.raises(SourceError, match=r"none\.jsonl: there is no row in it"):
        index.add(path)


def test_nothing_but_bad_rows_is_told_and_no_error(index):
    report = index.add([{"text": ""}, {"text": 3}], on_bad="skip")
    assert (report.read, report.added, report.rejected) == (2, 0, 2)
    assert index.version == 0


def test_truncated_samples_are_counted(tmp_path, model_dir):
    path = tmp_path / "index"
    data = [{"text": "ab " * 40}, {"text": "short"}, {"prompt": "p", "response": "r " * 50}]
    with ValuationIndex.create(path, str(model_dir), dim=256, max_length=32) as index:
        report = index.add(data)
        assert report.truncated == 2
        stored = index.list_samples()
        assert [s.statistics.truncated for s in stored] == [True, False, True]
        assert stored[0].statistics.n_tokens == 32
        assert index.count("truncated = true") == 2


def test_progress_of_a_file_has_totals(index, tmp_path):
    small_batches(index)
    path = write_jsonl(tmp_path / "train.jsonl", rows(30))
    steps = []
    index.model.on_progress = steps.append
    report = index.add(path)
    checking = [step for step in steps if step.stage == "checking"]
    assert [(step.done, step.total) for step in checking] == [(30, None), (30, 30)]
    embedding = [step for step in steps if step.stage == "embedding"]
    assert {step.total for step in embedding} == {30}
    assert [step.done for step in embedding] == sorted({step.done for step in embedding})
    assert (embedding[-1].done, embedding[-1].tokens) == (30, report.tokens)


def test_progress_counts_only_what_is_new(index):
    index.add(rows(10))
    steps = []
    index.model.on_progress = steps.append
    index.add([*rows(14), *rows(14)])
    assert (steps[-1].done, steps[-1].total) == (4, 4)


def test_progress_of_a_generator_has_no_total(index):
    steps = []
    index.model.on_progress = steps.append
    index.add(row for row in rows(5))
    assert [step.stage for step in steps] == ["calibrating", "embedding"]
    assert (steps[0].done, steps[0].total) == (5, 5), "of the first window"
    assert (steps[-1].done, steps[-1].total) == (5, None)


def halves(data):
    return data[: len(data) // 2], data[len(data) // 2 :]


def plain_data(directory, _index):
    return {"data": write_jsonl(directory / "all.jsonl", rows(20, words=5))}


def several_sources(directory, _index):
    """Windows lie across their borders."""
    first, second = halves(rows(20, words=5))
    paths = [("one.jsonl", first), ("other.jsonl", second)]
    return {"data": [write_jsonl(directory / name, items) for name, items in paths]}


def bad_rows_between(directory, _index):
    data = rows(20, words=5)
    for place in (0, 5, 6, 12, 23):
        data.insert(place, {"text": place})
    return {"data": write_jsonl(directory / "bad.jsonl", data), "on_bad": "skip"}


def known_samples_between(directory, index):
    data = rows(26, words=5)
    index.add(data[::4])
    return {"data": write_jsonl(directory / "partly.jsonl", data)}


def removed_samples_between(directory, index):
    data = rows(26, words=5)
    index.add(data[::4])
    index.remove([row["id"] for row in data[::8]])
    return {"data": write_jsonl(directory / "partly.jsonl", data)}


def repeated_rows(directory, _index):
    data = rows(20, words=5)
    return {"data": write_jsonl(directory / "twice.jsonl", [*data[:12], *data[6:], *data[:5]])}


class Stopped(Exception):
    """What a caller's progress raises."""


def stop_after(index, batch_number):
    """Raise after this many batches, counted from 1; returns the list of batches seen."""
    seen = []

    def callback(step):
        if step.stage == "embedding":
            seen.append(step)
            if len(seen) == batch_number:
                raise Stopped

    index.model.on_progress = callback
    return seen


DATA = [
    bad_rows_between,
    known_samples_between,
    *rarely(plain_data, several_sources, removed_samples_between, repeated_rows),
]


@pytest.mark.parametrize("make", DATA)
class TestStoppedAnywhere:
    """Rows are the same to the bit as if the `add` had never stopped."""

    @pytest.fixture
    def index(self, tmp_path, model_dir):
        """Of rows that depend on the calibration, too, with which the first `add` begins."""
        settings = SETTINGS | {"dim": 128, "geometry": "fisher,raw"}
        with ValuationIndex.create(tmp_path / "index", str(model_dir), **settings) as created:
            yield created

    @pytest.fixture
    def begun(self, index, tmp_path, monkeypatch, make):
        """An index as it is before the `add`, how to open copies of it, and the `add`."""
        small_batches(index)
        windows_of(monkeypatch, index, 8)
        call = make(tmp_path, index)
        index.storage.close()
        copies = []

        def copy():
            path = shutil.copytree(tmp_path / "index", tmp_path / f"copy{len(copies)}")
            copies.append(ValuationIndex.open(path))
            copies[-1].model._reader = index.model.reader
            return copies[-1]

        yield copy, call
        for opened in copies:
            opened.close()

    @pytest.fixture
    def straight(self, begun):
        """Rows of an `add` that nothing stops, what it reported, and its number of batches."""
        copy, call = begun
        index = copy()
        seen = stop_after(index, 0)
        report = index.add(**call)
        return stored_rows(index.path), report, len(seen)

    def test_once(self, begun, straight):
        copy, call = begun
        expected, report, n_batches = straight
        assert n_batches > 5
        for batch_number in range(1, n_batches + 1):
            index = copy()
            before = sum(s.file.n_rows for s in segments_of(index))
            stop_after(index, batch_number)
            with pytest.raises(Stopped):
                index.add(**call)
            stored = sum(s.file.n_rows for s in segments_of(index)) - before
            assert len(index.info().stopped) == 1
            index.model.on_progress = lambda _: None
            assert index.add(**call).added == report.added - stored, batch_number
            assert_identical_rows(stored_rows(index.path), expected)
            assert index.info().stopped == ()

    def test_after_each_batch(self, begun, straight):
        copy, call = begun
        expected, report, n_batches = straight
        index, added, stops = copy(), [], 0
        while True:
            stop_after(index, 1)
            try:
                index.add(**call)
            except Stopped:
                stops += 1
                added.append(len(segments_of(index)))
            else:
                break
        assert stops == n_batches, "no batch was embedded twice"
        assert added == sorted(set(added)), "each batch was stored"
        assert_identical_rows(stored_rows(index.path), expected)
        assert report.added == sum(s.file.n_rows for s in segments_of(index)[-n_batches:])

    def test_by_an_error_of_the_model(self, begun, straight, embedded, monkeypatch):
        copy, call = begun
        expected, report, n_batches = straight
        for batch_number in (1, n_batches // 2, n_batches):
            index = copy()
            embedded.clear()
            with monkeypatch.context() as patched:
                stop_at(patched, batch_number, ModelError("infinite numbers"))
                with pytest.raises(ModelError):
                    index.add(**call)
            finished = sum(embedded)
            assert len(embedded) == batch_number - 1
            assert index.add(**call).added == report.added - finished
            assert sum(embedded) == report.added
            assert_identical_rows(stored_rows(index.path), expected)


def test_an_id_that_is_taken_far_away_is_found_before_anything_is_embedded(
    index, tmp_path, embedded
):
    data = [{"id": str(i), "text": f"text {i}"} for i in range(3000)]
    path = write_jsonl(tmp_path / "train.jsonl", [*data, {"id": "7", "text": "another text"}])
    said = r"train\.jsonl:3001: its id '7' is taken by a sample of other content"
    with pytest.raises(BadSampleError, match=said):
        index.add(path)
    assert embedded == []
    assert (len(index), index.version, index.info().stopped) == (0, 0, ())


def test_a_stopped_add_of_other_data_does_not_go_on_with_this_one(index, tmp_path):
    """Samples that it stored are known, and that is all."""
    small_batches(index)
    one = write_jsonl(tmp_path / "one.jsonl", rows(30))
    other = write_jsonl(tmp_path / "other.jsonl", rows(40))
    stop_after(index, 2)
    with pytest.raises(Stopped):
        index.add(one)
    known = len(index)
    index.model.on_progress = lambda _: None
    report = index.add(other)
    assert (report.known, report.added) == (known, 40 - known)
    assert index.info().stopped == ((str(one),),)
    assert index.add(one).known == 30
    assert index.info().stopped == ()


def test_an_add_goes_on_though_its_data_has_changed(index, tmp_path, model_dir):
    """Rows of batches that were stored in part are the same to rounding."""
    small_batches(index)
    data = rows(40)
    path = write_jsonl(tmp_path / "train.jsonl", data)
    stop_after(index, 4)
    with pytest.raises(Stopped):
        index.add(path)
    known = len(index)
    index.model.on_progress = lambda _: None
    changed = [*rows(3, seed=5, prefix="n"), *data[::-1]]
    report = index.add(write_jsonl(path, changed))
    assert (report.known, report.added) == (known, 43 - known)
    other = tmp_path / "other"
    with ValuationIndex.create(other, str(model_dir), **SETTINGS) as straight:
        straight.add(path)
    assert_same_rows(stored_rows(tmp_path / "index"), stored_rows(other))


def test_an_id_too_long_for_a_database_is_a_bad_row(index):
    made = rows(3)
    made[1]["id"] = "x" * 2001
    made[2]["id"] = "ü" * 1000
    report = index.add(made, on_bad="skip")
    assert (report.added, report.rejected) == (2, 1)
    with pytest.raises(
        BadSampleError, match=r"its id 'x+…' is longer than 2,000 bytes; shorten it"
    ):
        index.add(made)


@pytest.fixture
def unsure(index):
    """An index of a model that gives no numbers for texts with the digit 7."""
    weight = index.model.reader.trunk.model.get_input_embeddings().weight
    (token,) = index.model.reader.prepare(to_sample({"text": "a7"})).encoded.token_ids[1:]
    with torch.no_grad():
        before = weight[token].clone()
        weight[token] = float("nan")
    yield index
    with torch.no_grad():
        weight[token] = before


@pytest.mark.parametrize("readable_twice", [True, False])
def test_samples_of_undefined_numbers_are_left_out(unsure, tmp_path, readable_twice, model_dir):
    """They stopped the whole of an `add`, whatever was to be done about bad rows."""
    small_batches(unsure)
    data = [{"id": f"n{i}", "text": f"number {i} and {2 * i}"} for i in range(20)]
    good = [row for row in data if "7" not in row["text"]]
    report = unsure.add(data if readable_twice else iter(data), on_bad="skip")
    assert (report.read, report.added) == (20, len(good))
    assert report.rejected == 20 - len(good) > 1
    assert keys(unsure) == [row["id"] for row in good]
    entries = [json.loads(line) for line in open_rejected(report)]
    assert {entry["position"] for entry in entries} == {8, 18}
    assert all("infinite or undefined numbers" in entry["reason"] for entry in entries)
    assert unsure.check().findings == ()
    again = unsure.add(data, on_bad="skip")
    assert (again.known, again.added, again.rejected) == (len(good), 0, 2)


def test_a_sample_of_undefined_numbers_stops_an_add_that_says_so(unsure):
    small_batches(unsure, 1)
    data = [{"id": "a", "text": "one and one"}, {"id": "b", "text": "7 and 7"}]
    with pytest.raises(BadSampleError, match=r":2: the model gives infinite or undefined numbers"):
        unsure.add(data)
    assert (len(unsure), unsure.version) == (1, 1), "what was finished is stored"


def test_a_refusal_keeps_the_rest_of_its_batch(unsure):
    """Samples after it in the batch, which runs from long to short, were dropped."""
    data = [{"id": "long", "text": "7 and many words after it"}, {"id": "a", "text": "one"}]
    with pytest.raises(BadSampleError, match="for sample long"):
        unsure.add(data)
    assert keys(unsure) == ["a"]


# Reading ahead.


def test_files_are_read_by_a_thread_and_iterables_by_the_caller(index, tmp_path, monkeypatch):
    """Who gave an iterable may have opened what is behind it in this thread."""
    readers, prepare = [], index.model.reader.prepare

    def prepared(sample):
        readers.append(threading.current_thread() is threading.main_thread())
        return prepare(sample)

    monkeypatch.setattr(index.model.reader, "prepare", prepared)
    index.add(row for row in rows(5))
    assert readers == [True] * 5
    readers.clear()
    index.add(rows(5, seed=2, prefix="t"))
    assert readers == [True] * 10  # checked first, then read again
    readers.clear()
    index.add(write_jsonl(tmp_path / "more.jsonl", rows(5, seed=1, prefix="s")))
    assert readers == [True] * 5 + [False] * 5


def test_a_row_refused_while_others_are_embedded_loses_nothing(index, tmp_path, monkeypatch):
    """The window before it is stored, whoever read it."""
    windows_of(monkeypatch, index, 4)
    path = write_jsonl(tmp_path / "data.jsonl", rows(12))
    whole = path.read_text().splitlines(keepends=True)
    check = ingest.check

    def spoiled(*given, **options):
        """The file changes between the check and the run."""
        found = check(*given, **options)
        path.write_text("".join(whole[:9]) + "no row\n")
        return found

    monkeypatch.setattr(ingest, "check", spoiled)
    with pytest.raises(BadSampleError, match=r"data\.jsonl:10"):
        index.add(path)
    assert keys(index) == [f"r{i}" for i in range(8)]
