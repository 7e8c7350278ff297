import json
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.catalog import Catalog
from forvalue_index.exceptions import BadSampleError, SourceError
from forvalue_index.features import Embedder
from forvalue_index.storage import Storage

pytest_plugins = ("tiny",)

# Rounding differs with the shapes of a batch: matrix products of other sizes sum in another order.
SAME_TO_ROUNDING = 1e-5


@pytest.fixture
def index(tmp_path, model_dir):
    """Of float32 rows, so that nothing but arithmetic rounds."""
    path = tmp_path / "index"
    with ValuationIndex.create(path, str(model_dir), dim=256, row_dtype="float32") as created:
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


def small_batches(index, token_budget=128):
    index.embedder.token_budget = token_budget


def keys(index):
    return [stored.sample.key for stored in index.list_samples(limit=10_000)]


def stored_rows(path):
    """Key -> row, as a reader of the directory finds them."""
    storage = Storage.open(path)
    by_id = {id_: key for id_, key, _ in storage.catalog.identities()}
    found = {
        by_id[id_]: row
        for block in storage.blocks()
        for id_, row in zip(block.ids.tolist(), block.rows, strict=True)
    }
    storage.close()
    return found


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        gap = torch.linalg.vector_norm(found[key] - row) / torch.linalg.vector_norm(row)
        assert gap < SAME_TO_ROUNDING, key


def listing(path):
    """Files with sizes; SQLite's own side files come and go."""
    return {
        str(p.relative_to(path)): p.stat().st_size
        for p in path.rglob("*")
        if p.is_file() and "catalog.sqlite-" not in p.name
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
    with ValuationIndex.create(path, str(model_dir), dim=256, row_dtype="float32") as other:
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
    assert (report.added, report.known) == (0, 6)
    assert sum(embedded) == 5


def test_a_removed_sample_stays_known(index):
    data = rows(3)
    index.add(data)
    index._storage.catalog.remove([1])
    assert index.add(data).known == 3
    assert len(index) == 2


def test_a_repeated_sample_is_stored_once(index, embedded):
    data = rows(5)
    report = index.add([*data, data[2], data[2], *data])
    assert (report.read, report.added, report.known) == (12, 5, 7)
    assert sum(embedded) == 5
    assert keys(index) == [row["id"] for row in data]


def test_repetitions_are_found_across_windows_and_chunks(index, embedded, monkeypatch):
    monkeypatch.setattr("forvalue_index.ingest.WINDOW_SAMPLES", 4)
    monkeypatch.setattr("forvalue_index.ingest.READ_ROWS", 3)
    data = rows(10)
    report = index.add([*data, *data[:9]])
    assert (report.read, report.added, report.known) == (19, 10, 9)
    assert sum(embedded) == 10


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


def test_windows_are_stored_one_by_one(index, monkeypatch):
    monkeypatch.setattr("forvalue_index.ingest.WINDOW_SAMPLES", 4)
    seen = []
    index._on_progress = lambda step: seen.append(len(index)) if step.stage == "embedding" else None
    report = index.add(rows(10))
    assert report.segments == 3
    assert seen == [0, 4, 8]
    assert [s.file.n_rows for s in index._storage.catalog.segments()] == [4, 4, 2]
    assert keys(index) == [row["id"] for row in rows(10)]


def test_a_window_is_bounded_in_tokens_too(index, monkeypatch):
    monkeypatch.setattr("forvalue_index.ingest.WINDOW_BATCHES", 2)
    small_batches(index, 100)
    report = index.add(rows(20))
    sizes = [s.file.n_rows for s in index._storage.catalog.segments()]
    assert len(sizes) == report.segments > 3
    assert sum(sizes) == 20


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
        monkeypatch.setattr("forvalue_index.ingest.WINDOW_SAMPLES", 2)
        monkeypatch.setattr("forvalue_index.ingest.READ_ROWS", 3)
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
    monkeypatch.setattr("forvalue_index.ingest.WINDOW_SAMPLES", 4)
    good = rows(10)
    with pytest.raises(BadSampleError, match=r"<iterable>:11: 'text' is int"):
        index.add(row for row in [*good, {"text": 5}])
    assert keys(index) == [row["id"] for row in good[:8]]
    assert index.add(row for row in good).added == 2


@pytest.mark.parametrize("error", [RuntimeError("out of memory"), KeyboardInterrupt()], ids=type)
def test_what_is_finished_is_stored_and_the_rest_can_follow(
    index, tmp_path, model_dir, monkeypatch, error
):
    monkeypatch.setattr("forvalue_index.ingest.WINDOW_SAMPLES", 16)
    small_batches(index)
    path = write_jsonl(tmp_path / "train.jsonl", rows(40))
    first_window = len(list(index.embedder.batches(prepared(index, rows(16)))))
    with monkeypatch.context() as patched:
        stop_at(patched, first_window + 3, error)
        with pytest.raises(type(error)):
            index.add(path)
    finished = keys(index)
    assert 16 < len(finished) < 32
    assert finished[:16] == [row["id"] for row in rows(16)]
    assert finished == sorted(finished, key=lambda key: int(key[1:]))
    assert len(stored_rows(tmp_path / "index")) == len(finished)

    report = index.add(path)
    assert (report.read, report.known) == (40, len(finished))
    assert report.added == 40 - len(finished)

    other = tmp_path / "uninterrupted"
    with ValuationIndex.create(other, str(model_dir), dim=256, row_dtype="float32") as straight:
        straight.add(path)
    assert_same_rows(stored_rows(tmp_path / "index"), stored_rows(other))


def prepared(index, data):
    from forvalue_index.columns import to_sample

    return [index.embedder.prepare(to_sample(row)) for row in data]


def test_an_interrupt_waits_until_a_window_is_stored(index, monkeypatch):
    """Ctrl-C between the segment file and its record lost all forward passes of a window."""
    monkeypatch.setattr("forvalue_index.ingest.WINDOW_SAMPLES", 4)
    commit = Catalog.commit_segment

    def interrupted(self, *arguments):
        signal.raise_signal(signal.SIGINT)
        return commit(self, *arguments)

    monkeypatch.setattr(Catalog, "commit_segment", interrupted)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        index.add(rows(10))
    assert len(index) == 4
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

    index._on_progress = callback
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
    index._on_progress = steps.append
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
    index._on_progress = steps.append
    index.add([*rows(14), *rows(14)])
    assert (steps[-1].done, steps[-1].total) == (4, 4)


def test_progress_of_a_generator_has_no_total(index):
    steps = []
    index._on_progress = steps.append
    index.add(row for row in rows(5))
    assert {step.stage for step in steps} == {"embedding"}
    assert (steps[-1].done, steps[-1].total) == (5, None)
