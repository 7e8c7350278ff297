import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import UsageError
from forvalue_index.sources.data import Data
from forvalue_index.sources.source import open_sources
from forvalue_index.store.records import Reference
from forvalue_index.store.texts import FileTexts

pytest_plugins = ("tiny",)


@pytest.fixture
def referring(tmp_path, model_dir):
    path = tmp_path / "index"
    with ValuationIndex.create(path, str(model_dir), dim=256, payload="reference") as created:
        yield created


def write_lines(path):
    return write_jsonl(path, rows(6))


def write_lines_with_a_mark(path):
    path.write_bytes(b"\xef\xbb\xbf" + write_lines(path).read_bytes().replace(b"\n", b"\n\n", 1))
    return path


def write_gzip(path):
    path.write_bytes(gzip.compress(write_lines(path).read_bytes()))
    return path


def write_array(path):
    path.write_text(json.dumps(rows(6)))
    return path


def write_csv(path):
    lines = [",".join(rows(1)[0])]
    lines += [",".join(f'"{value}"' for value in row.values()) for row in rows(6)]
    path.write_text("\n".join(lines), "utf-8")
    return path


def write_parquet(path):
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows(6)), path, row_group_size=2)
    return path


WRITERS = {
    "d.jsonl": write_lines,
    "mark.jsonl": write_lines_with_a_mark,
    "d.jsonl.gz": write_gzip,
    "d.json": write_array,
    "d.csv": write_csv,
    "d.parquet": write_parquet,
}


@pytest.mark.parametrize("name", WRITERS)
def test_texts_of_every_format_are_found_again(tmp_path, name):
    path = WRITERS[name](tmp_path / name)
    (source,) = open_sources(str(path))
    samples = list(source.samples())
    references = [
        Reference(name, {}, s.position, s.offset, s.content_hash) for s in reversed(samples)
    ]
    found = FileTexts(tmp_path).read(references)
    assert found == [(s.messages, s.tools) for s in reversed(samples)]
    plain_lines = name.endswith(".jsonl")
    assert all((s.offset is not None) == plain_lines for s in samples)


def test_what_was_ignored_is_ignored_again(tmp_path):
    """Else tools, or a name, would come back and the text be another."""
    turns = [{"role": "assistant", "content": "A", "name": "n"}]
    row = {"messages": turns, "tools": [{"name": "f"}]}
    path = write_jsonl(tmp_path / "d.jsonl", [row])
    (source,) = Data(str(path), ignore="tools,name").open(images=False)
    (sample,) = source.samples()
    reference = Reference("d.jsonl", source.columns, 1, 0, sample.content_hash)
    assert FileTexts(tmp_path).read([reference]) == [(sample.messages, ())]


def test_a_text_that_is_another_now_is_named(tmp_path):
    path = write_lines(tmp_path / "d.jsonl")
    (source,) = open_sources(str(path))
    samples = list(source.samples())
    path.write_text(path.read_text("utf-8").replace('"3 ', '"4 ', 1), "utf-8")
    references = [Reference("d.jsonl", {}, s.position, s.offset, s.content_hash) for s in samples]
    found = FileTexts(tmp_path).read(references)
    changed = "d.jsonl:4 has changed since it was added; restore the file or add it again"
    assert found == [
        *((s.messages, s.tools) for s in samples[:3]),
        changed,
        *((s.messages, s.tools) for s in samples[4:]),
    ]
    path.write_bytes(path.read_bytes()[:20])
    assert all("has changed" in text for text in FileTexts(tmp_path).read(references))
    path.unlink()
    assert all(
        text.endswith("is missing; put it back where it was")
        for text in FileTexts(tmp_path).read(references)
    )


@pytest.mark.parametrize("name", ["../secret.jsonl", "link.jsonl", "/etc/hostname"])
def test_nothing_outside_is_read(tmp_path, name):
    """A catalog may come from a stranger, and name any file."""
    root = tmp_path / "root"
    root.mkdir()
    secret = write_lines(tmp_path / "secret.jsonl")
    (root / "link.jsonl").symlink_to(secret)
    sample = next(open_sources(str(secret))[0].samples())
    reference = Reference(name, {}, sample.position, sample.offset, sample.content_hash)
    (found,) = FileTexts(root).read([reference])
    assert isinstance(found, str)
    assert "leads out of" in found


def test_only_what_lies_below_can_be_located(tmp_path):
    root = tmp_path / "root"
    (root / "data").mkdir(parents=True)
    texts = FileTexts(root)
    assert texts.locate("x", root / "data" / "a.jsonl") == "data/a.jsonl"
    with pytest.raises(UsageError, match=r"does not lie below .*root.*move the data"):
        texts.locate("x", tmp_path / "a.jsonl")
    with pytest.raises(UsageError, match="<stdin> is no file"):
        texts.locate("<stdin>", None)


def test_an_index_that_refers_answers_as_one_that_holds(tmp_path, model_dir, referring):
    data = write_jsonl(tmp_path / "train.jsonl", rows(12))
    referring.add(str(data))
    with ValuationIndex.create(tmp_path / "holding", str(model_dir), dim=256) as holding:
        holding.add(str(data))
        ours, theirs = (i.query(rows(3, seed=2), top=12) for i in (referring, holding))
    assert ours.warnings == theirs.warnings
    assert [(h.id, h.score, h.sample) for h in ours.helpful] == [
        (h.id, h.score, h.sample) for h in theirs.helpful
    ]
    assert referring.manifest.fingerprint == holding.manifest.fingerprint
    stored = referring.sample("r3")
    assert stored.referenced
    assert stored.sample.response == rows(12)[3]["response"]
    assert referring.check().findings == ()


def test_a_changed_file_is_named_and_scores_stay(tmp_path, referring):
    data = write_jsonl(tmp_path / "train.jsonl", rows(12))
    referring.add(str(data))
    before = referring.query(rows(3, seed=2), top=12)
    lines = data.read_text("utf-8").splitlines(keepends=True)
    data.write_text("".join(lines[1:]), "utf-8")
    after = referring.query(rows(3, seed=2), top=12)
    assert [(h.id, h.score, h.sample.key) for h in after.helpful] == [
        (h.id, h.score, h.sample.key) for h in before.helpful
    ]
    assert after.warnings[-1].startswith("the texts of 12 of these samples cannot be shown")
    assert "has changed since it was added" in referring.sample("r3").text_error
    (finding,) = referring.check().findings
    assert finding.kind == "changed data"
    assert finding.what.startswith(
        f"12 texts of {data} are not where they were, first train.jsonl:"
    )
    assert finding.cure == f"restore the file, or run: forvalue add INDEX {data}"


def test_adding_a_changed_file_again_finds_the_texts_that_moved(tmp_path, referring):
    data = write_jsonl(tmp_path / "train.jsonl", rows(12))
    referring.add(str(data))
    items = rows(12)
    write_jsonl(data, [items[5], *items[8:], *items[1:5]])
    report = referring.add(str(data))
    assert (report.known, report.added, report.restored) == (9, 0, 0)
    assert referring.sample("r3").sample.response == items[3]["response"]
    assert referring.sample("r3").sample.position == 8
    (finding,) = referring.check().findings
    assert finding.what.startswith(f"3 texts of {data}")
    referring.remove(["r0", "r6", "r7"])
    assert referring.check().findings == ()
    version = referring.version
    assert referring.add(str(data)).known == 9
    assert referring.version == version


def test_lost_rows_cannot_be_made_anew_without_their_texts(tmp_path, referring):
    data = write_jsonl(tmp_path / "train.jsonl", rows(4))
    referring.add(str(data))
    kept = data.read_bytes()
    data.unlink()
    (segment,) = (tmp_path / "index" / "segments").iterdir()
    segment.unlink()
    report = referring.check(repair=True)
    assert not report.sound
    assert report.findings[-1].kind == "lost segment"
    assert "train.jsonl is missing" in report.findings[-1].what
    data.write_bytes(kept)
    assert referring.check(repair=True).sound
    assert len(referring.values(rows(2, seed=3)).ids) == 4


def test_what_cannot_be_referred_to_is_refused_before_anything_is_stored(tmp_path, referring):
    with pytest.raises(UsageError, match="<iterable> is no file"):
        referring.add(rows(3))
    assert referring.info().stopped == ()


def test_one_name_for_two_files_is_refused(tmp_path, referring, monkeypatch):
    for name, seed in (("a", 0), ("b", 1)):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "train.jsonl", rows(3, seed=seed, prefix=name))
    monkeypatch.chdir(tmp_path / "a")
    referring.add("train.jsonl")
    monkeypatch.chdir(tmp_path / "b")
    with pytest.raises(UsageError, match=r"train.jsonl stands for a/train.jsonl.*full path"):
        referring.add("train.jsonl")
    assert referring.add(str(tmp_path / "b" / "train.jsonl")).added == 3
    assert referring.check().findings == ()


def test_removed_samples_come_back_with_the_place_of_their_text(tmp_path, referring):
    data = write_jsonl(tmp_path / "train.jsonl", rows(5))
    referring.add(str(data))
    referring.remove(["r2"])
    other = write_jsonl(tmp_path / "other.jsonl", rows(5)[2:3])
    assert referring.add(str(other)).restored == 1
    stored = referring.sample("r2")
    assert (stored.sample.source, stored.sample.position) == (str(other), 1)
    assert stored.sample.response == rows(5)[2]["response"]
    assert referring.check().findings == ()
