"""Samples that earlier versions read or labelled otherwise are named, and embedded anew by choice.

An earlier version is one whose rules are put in place of those of today while it adds.
"""

import dataclasses

import pytest
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources import source
from forvalue_index.sources.columns import to_sample

pytest_plugins = ("tiny",)

MORE = [
    {"id": "w", "messages": [
        {"role": "user", "content": "try"},
        {"role": "assistant", "content": "bad", "weight": 0},
        {"role": "user", "content": "again"},
        {"role": "assistant", "content": "good"},
    ]},
    {"prompt": "Hello?", "response": "Bonjour.", "system": "Answer in French."},
    {"prompt": "Bye?", "response": "Au revoir.", "topic": "french"},
]  # fmt: skip


def read_as_before(row, *arguments, **options):
    """Weights and system columns were not followed."""
    sample = to_sample(row, *arguments, **options)
    messages = [
        dataclasses.replace(m, extra={k: v for k, v in m.extra.items() if k != "train"})
        for m in sample.messages
        if m.role != "system"
    ]
    metadata = {**sample.metadata, **({"system": row["system"]} if "system" in row else {})}
    return dataclasses.replace(sample, messages=tuple(messages), metadata=metadata)


@pytest.fixture
def old(index, tmp_path, monkeypatch):
    """An index to which an earlier version added samples, of which two were read otherwise."""
    path = tmp_path / "d.jsonl"
    write_jsonl(path, [*rows(4), *MORE])
    with monkeypatch.context() as patched:
        patched.setattr(source, "to_sample", read_as_before)
        index.add(path)
    return index, path


def test_samples_that_are_read_otherwise_now_are_named(old):
    index, path = old
    assert index.check().sound
    (finding,) = index.check(labels=True).findings
    assert finding.kind == "other labels"
    assert len(finding.samples) == 2
    assert finding.samples[0] == "w"
    assert finding.what.startswith(f"2 samples of {path} are read or labelled otherwise now: w (")
    assert finding.cure.endswith(f": forvalue add INDEX {path} --relabel")


def test_they_are_embedded_anew_and_the_others_stay(old, tmp_path, model_dir):
    index, path = old
    before = {stored.sample.key: stored for stored in index.list_samples()}
    report = index.add(path, relabel=True)
    assert (report.added, report.relabelled, report.known, report.read) == (2, 2, 5, 7)
    after = {stored.sample.key: stored for stored in index.list_samples()}
    assert len(after) == 7
    same = before.keys() & after.keys() - {"w"}
    assert len(same) == 5
    assert all(before[key].id == after[key].id for key in same)
    assert after["w"].statistics.n_label_tokens < before["w"].statistics.n_label_tokens
    with ValuationIndex.create(
        tmp_path / "fresh", str(model_dir), dim=256, geometry="raw"
    ) as fresh:
        fresh.add(path)
        expected = {s.sample.key: s.statistics for s in fresh.list_samples()}
        assert {key: s.statistics.n_label_tokens for key, s in after.items()} == {
            key: statistics.n_label_tokens for key, statistics in expected.items()
        }
        question = [{"prompt": "Hello?", "response": "Bonjour."}]
        ids = [after[s.sample.key].id for s in fresh.list_samples()]
        values = index.values(question)
        scores = dict(zip(values.ids.tolist(), values.scores.tolist(), strict=True))
        # Other batches round otherwise.
        assert [scores[id_] for id_ in ids] == pytest.approx(
            fresh.values(question).scores, rel=1e-3
        )


def test_once_is_enough(old):
    index, path = old
    index.add(path, relabel=True)
    assert index.check(labels=True).sound
    version = index.version
    report = index.add(path, relabel=True)
    assert (report.added, report.relabelled, report.known) == (0, 0, 7)
    assert index.version == version
    index.compact()
    assert index.check(labels=True).sound
    assert len(index) == 7


def test_without_the_option_a_changed_row_is_refused_or_new(old):
    """As one that has other content under an id, or content of its own."""
    index, path = old
    with pytest.raises(BadSampleError, match="its id 'w' is taken by a sample of other content"):
        index.add(path)
    report = index.add(path, on_bad="skip")
    assert (report.added, report.rejected, report.known) == (1, 1, 5)


def test_an_index_that_is_up_to_date_has_no_such_samples(index, tmp_path):
    path = write_jsonl(tmp_path / "d.jsonl", [*rows(4), *MORE])
    index.add(path)
    assert index.check(labels=True).sound
    other = write_jsonl(tmp_path / "other.jsonl", [{"id": "w", "prompt": "x", "response": "y"}])
    report = index.add(other, relabel=True, on_bad="skip")
    assert (report.rejected, report.relabelled) == (1, 0), "another row under the same id"


def test_a_row_that_is_refused_now_is_named_and_its_sample_stays(index, tmp_path, monkeypatch):
    row = {"id": "a", "messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": "y", "reasoning_content": "hm"},
    ]}  # fmt: skip
    path = write_jsonl(tmp_path / "d.jsonl", [row])

    def without_thoughts(row, *arguments, **options):
        sample = to_sample(row, *arguments, **options)
        messages = (sample.messages[0], dataclasses.replace(sample.messages[1], extra={}))
        return dataclasses.replace(sample, messages=messages)

    with monkeypatch.context() as patched:
        patched.setattr(source, "to_sample", without_thoughts)
        index.add(path)
    report = index.add(path, relabel=True, on_bad="skip")
    assert (report.added, report.relabelled, report.rejected) == (0, 0, 1)
    assert "leaves out reasoning_content" in next(iter(report.reasons))
    assert len(index) == 1


def test_what_was_added_with_options_is_up_to_date(index, tmp_path):
    index.add([{"id": "t", "input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]}])
    pair = {"prompt": "q", "response": "a", "system": "Be brief.", "context": "Long ago."}
    index.add(write_jsonl(tmp_path / "a.jsonl", [pair]), ignore="system,context")
    beside = {"q": "q2", "a": "a2", "messages": [{"role": "user", "content": "x"}]}
    mapped = {"prompt": "q", "response": "a"}
    index.add(write_jsonl(tmp_path / "b.jsonl", [beside]), columns=mapped)
    assert index.check(labels=True).sound
