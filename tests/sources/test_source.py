import builtins
import csv
import datetime
import decimal
import gzip
import io
import json
import subprocess
import sys
from contextlib import suppress

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forvalue_index.exceptions import MissingDependencyError, SourceError
from forvalue_index.sources.sample import BadRow, Message, Sample
from forvalue_index.sources.source import open_sources

ROWS = [
    {"id": "a", "prompt": "Grüße?", "response": "Ja, 你好 🙂", "topic": "x"},
    {"id": "b", "prompt": "", "response": "two\nlines", "topic": "y"},
]
PAIR = (Message("user", "Q"), Message("assistant", "A"))


def read(data, columns=None):
    return [row for source in open_sources(data, columns) for row in source.samples()]


def bad(data, columns=None):
    """Everything that is bad, as it is shown to a user, with the name of the folder left out."""
    rows = [row for row in read(data, columns) if isinstance(row, BadRow)]
    return [str(row).rpartition("/")[2] for row in rows]


def jsonl(rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def delimited(rows, delimiter):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def parquet(rows, **options):
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer, **options)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def golden(name, positions):
    return [
        Sample(
            messages=(Message("user", row["prompt"]), Message("assistant", row["response"])),
            source=name,
            position=position,
            own_id=row["id"],
            metadata={"topic": row["topic"]},
        )
        for position, row in zip(positions, ROWS, strict=True)
    ]


@pytest.mark.parametrize(
    ("name", "content", "positions"),
    [
        ("d.jsonl", jsonl(ROWS), (1, 2)),
        ("D.NDJSON", jsonl(ROWS), (1, 2)),
        ("crlf.jsonl", jsonl(ROWS).replace(b"\n", b"\r\n"), (1, 2)),
        ("blank.jsonl", b"\n" + jsonl(ROWS).replace(b"\n", b"\n \r\n"), (2, 4)),
        ("bom.jsonl", b"\xef\xbb\xbf" + jsonl(ROWS), (1, 2)),
        ("raw.jsonl", "\n".join(json.dumps(r, ensure_ascii=False) for r in ROWS), (1, 2)),
        ("d.jsonl.gz", gzip.compress(jsonl(ROWS), mtime=0), (1, 2)),
        ("array.json", json.dumps(ROWS, indent=1), (1, 2)),
        ("bom.json", b"\xef\xbb\xbf" + json.dumps(ROWS).encode(), (1, 2)),
        ("wrapped.json", json.dumps({"version": 1, "data": ROWS, "tags": ["a"]}), (1, 2)),
        ("lines.json", b"\n" + jsonl(ROWS), (2, 3)),
        ("d.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0), (1, 2)),
        ("d.csv", delimited(ROWS, ","), (2, 3)),
        ("bom.csv", b"\xef\xbb\xbf" + delimited(ROWS, ","), (2, 3)),
        ("blank.csv", b"\r\n" + delimited(ROWS, ",").replace(b"x\r\n", b"x\r\n\r\n"), (3, 5)),
        ("lf.csv", delimited(ROWS[::-1], ",").replace(b"\r\n", b"\n"), None),
        ("d.TSV", delimited(ROWS, "\t"), (2, 3)),
        ("d.tsv.gz", gzip.compress(delimited(ROWS, "\t"), mtime=0), (2, 3)),
        ("d.parquet", parquet(ROWS), (1, 2)),
        ("groups.parquet", parquet(ROWS, row_group_size=1), (1, 2)),
    ],
)
def test_every_format_gives_the_same_samples(write, name, content, positions):
    path = write(name, content)
    if positions is None:  # a record of two lines comes first: the next one starts on line 4
        assert read(path) == golden(str(path), (4, 2))[::-1]
    else:
        assert read(path) == golden(str(path), positions)
        assert read(str(path)) == golden(str(path), positions)


def test_bad_lines_of_jsonl_are_named_and_the_rest_is_read(write):
    lines = [b'{"text": "one"}', b"{oops}", b"[1]", b"7", b"", b'{"text": "\xff"}', b'{"t": 1}']
    deep = b'{"text": "T", "m": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    path = write("d.jsonl", b"\n".join([*lines, deep, b'{"text": "two"}']))
    rows = read(path)
    assert [(row.position, row.response) for row in rows if isinstance(row, Sample)] == [
        (1, "one"),
        (9, "two"),
    ]
    shown = bad(path)
    assert shown[:3] == [
        "d.jsonl:2: not JSON in UTF-8: Expecting property name enclosed in double quotes: "
        "column 2 (char 1)",
        "d.jsonl:3: the row is list, wanted an object",
        "d.jsonl:4: the row is int, wanted an object",
    ]
    assert shown[3].startswith("d.jsonl:6: not JSON in UTF-8: 'utf-8' codec can't decode byte 0xff")
    assert shown[4].startswith("d.jsonl:7: no messages")
    assert shown[5].startswith("d.jsonl:8: ")
    assert len(shown) == 6
    raw = [row.raw for row in rows if isinstance(row, BadRow)]
    assert raw[:5] == ["{oops}", [1], 7, '{"text": "\ufffd"}', {"t": 1}]


def test_too_deep_rows_are_bad():
    nested = []
    for _ in range(5000):
        nested = [nested]
    (row,) = read([{"text": "T", "m": nested}])
    assert str(row) == "<iterable>:1: the row is nested too deeply; flatten its metadata"


def test_bad_records_of_csv_are_named_by_their_first_line(write):
    text = 'prompt,response\nQ,A\n"two\nlines",A,more\nQ\nQ,"A"x\nQ,""\nQ,"last'
    assert bad(write("d.csv", text)) == [
        "d.csv:3: 3 cells where the header has 2; quote a cell that holds a separator",
        "d.csv:5: 1 cells where the header has 2; quote a cell that holds a separator",
        "d.csv:6: not CSV: ',' expected after '\"'",
        "d.csv:7: 'response' is empty or blank at its end; nothing there to score",
        "d.csv:8: a quote opened here is not closed where it should be; close it, or double it in "
        "a text",
    ]
    assert bad(write("e.tsv", b"text\tm\n\xff\t1\nok\t\xff\n")) == [
        "e.tsv:2: 'text' holds a NUL or something that is not UTF-8; clean it"
    ]


def test_csv_cells_may_be_large(write):
    assert len(read(write("d.csv", "text\n" + "x" * 200_000))[0].response) == 200_000


def test_bad_rows_of_json_and_parquet_are_named_by_number(write):
    rows = [{"text": "T"}, {"text": None}]
    assert bad(write("d.json", json.dumps([*rows, 4]))) == [
        "d.json:2: 'text' is null, wanted text",
        "d.json:3: the row is int, wanted an object",
    ]
    assert bad(write("d.parquet", parquet(rows))) == ["d.parquet:2: 'text' is null, wanted text"]


def test_parquet_types_become_json(write):
    row = {
        "text": "T",
        "day": datetime.datetime(2024, 2, 29),
        "price": decimal.Decimal("1.5"),
        "blob": b"\xff",
        "tags": ["a", None],
    }
    (sample,) = read(write("d.parquet", parquet([row])))
    assert sample.metadata == {
        "day": "2024-02-29T00:00:00",
        "price": 1.5,
        "blob": "<1 bytes>",
        "tags": ["a", None],
    }


def test_an_absent_extra_of_a_message_has_one_hash_in_every_format(write):
    """Parquet fills the fields that only some messages have with nulls."""
    calls = {"role": "assistant", "content": "A", "name": "n"}
    row = {"messages": [{"role": "user", "content": "Q"}, calls]}
    (line,) = read(write("d.jsonl", jsonl([row])))
    (stored,) = read(write("d.parquet", parquet([row])))
    assert line.content_hash == stored.content_hash


def test_a_single_json_object_is_a_row(write):
    row = {"messages": [message.as_dict() for message in PAIR]}
    assert read(write("d.json", json.dumps(row, indent=2)))[0].messages == PAIR


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("d.txt", "x", "unknown format '.txt': use .jsonl, .ndjson, .json, .csv, .tsv, .tar,"),
        ("d", "x", "unknown format ''"),
        ("d.parquet.gz", "x", "unknown format '.parquet.gz'"),
        ("d.json", "", "cannot be read: Expecting value: line 1 column 1"),
        ("d.json", '[{"text": "T"}\n', "cannot be read: Expecting ',' delimiter: line 2"),
        ("d.json", b'["\xff"]', "cannot be read: 'utf-8' codec can't decode byte 0xff"),
        ("d.json", "3", "wanted an array of objects, or an object with one such array"),
        (
            "d.json",
            '{"a": [{}], "b": [{}]}',
            "with one such array, not 2: a, b; check",
        ),
        ("d.json", "[" * 100_000, "cannot be read: "),
        ("d.csv", "a,a\n1,2\n", "a column name appears twice in the header: a, a"),
        ("d.csv", b"text\xff\n", "the header is not CSV in UTF-8"),
        ("d.csv", '"text', "the header is not CSV in UTF-8"),
        ("d.parquet", "PAR1 not really", "cannot be read: "),
        ("d.parquet", b"", "cannot be read: "),
        ("d.jsonl.gz", "not gzip", "cannot be read: Not a gzipped file"),
        ("d.jsonl.gz", gzip.compress(jsonl(ROWS) * 99, mtime=0)[:-20], "cannot be read: "),
    ],
)
def test_unreadable_files_are_one_line_errors(write, name, content, expected):
    path = write(name, content)
    with pytest.raises(SourceError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path} ")
    assert expected in message
    assert "\n" not in message


def test_corrupt_pages_of_parquet_are_an_error(write):
    content = bytearray(parquet([{"text": "word " * 50}] * 500))
    content[60:120] = b"\xff" * 60
    path = write("d.parquet", bytes(content))
    with pytest.raises(SourceError, match="cannot be read"):
        read(path)


def test_missing_files_and_plain_folders(tmp_path):
    with pytest.raises(SourceError, match=r"no\.jsonl does not exist: check the path"):
        open_sources(tmp_path / "no.jsonl")
    with pytest.raises(SourceError, match=r"\*\.jsonl matches no file: check the pattern"):
        open_sources(str(tmp_path / "*.jsonl"))
    with pytest.raises(SourceError, match=r"is a directory without a data file; name one"):
        open_sources(tmp_path)
    with pytest.raises(SourceError, match="cannot be read: File name too long"):
        open_sources("x" * 5000)


def test_a_file_that_may_not_be_read(write, monkeypatch):
    path = write("d.jsonl", jsonl(ROWS))

    def refuse(self, mode):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(SourceError, match=r"d\.jsonl cannot be read: Permission denied; check"):
        read(path)


def test_globs_and_lists_of_paths(write, tmp_path, monkeypatch):
    for name in ("b.jsonl", "a.jsonl", "sub/c.jsonl", "[odd].jsonl"):
        write(name, jsonl([{"text": name}]))
    (tmp_path / "folder.jsonl").mkdir()
    monkeypatch.chdir(tmp_path)

    def names(data):
        return [source.name for source in open_sources(data)]

    assert names("?.jsonl") == ["a.jsonl", "b.jsonl"]
    assert names("**/c*.jsonl") == ["sub/c.jsonl"]
    assert names(str(tmp_path / "sub" / "*")) == [str(tmp_path / "sub" / "c.jsonl")]
    assert names("[odd].jsonl") == ["[odd].jsonl"]
    assert names(["sub/*", tmp_path / "a.jsonl"]) == ["sub/c.jsonl", str(tmp_path / "a.jsonl")]
    assert names(("b.jsonl",)) == ["b.jsonl"]


def test_stdin_can_be_read_twice_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(jsonl(ROWS) + b"{")))
    (source,) = open_sources("-")
    first = list(source.samples())
    assert first[:2] == golden("<stdin>", (1, 2))
    assert str(first[2]).startswith("<stdin>:3: not JSON")
    assert source.rereadable
    assert list(source.samples()) == first
    assert list(tmp_path.iterdir())
    del source
    assert not list(tmp_path.iterdir())


def test_iterables_of_dicts():
    (source,) = open_sources(ROWS)
    assert (source.name, source.rereadable) == ("<iterable>", True)
    assert list(source.samples()) == list(source.samples()) == golden("<iterable>", (1, 2))
    (source,) = open_sources(row for row in ROWS)
    assert (source.name, source.rereadable) == ("<iterable>", False)
    assert list(source.samples()) == golden("<iterable>", (1, 2))
    assert read([]) == []
    assert read([{"text": "T", 3: 4}])[0].metadata == {"3": 4}
    assert bad([{"text": "T"}, ["no"]]) == ["<iterable>:2: the row is list, wanted an object"]


def test_errors_of_an_iterable_are_its_own():
    def broken():
        yield ROWS[0]
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        read(broken())


class Frame:
    """As much of a data frame as is looked at."""

    def iterrows(self):
        return iter(())

    def __iter__(self):
        return iter(["text"])


@pytest.mark.parametrize("data", [None, 3, b"d.jsonl", Frame()])
def test_other_types_are_refused(data):
    name = type(data).__name__
    with pytest.raises(SourceError, match=f"a {name} is no data set: pass a path"):
        open_sources(data)


def test_mappings_and_mixed_lists_are_refused(write):
    with pytest.raises(SourceError, match=r"a dict with keys text is .* pass a list of rows"):
        open_sources({"text": "T"})
    splits = datasets.DatasetDict({"train": datasets.Dataset.from_list(ROWS)})
    with pytest.raises(SourceError, match=r"DatasetDict with keys train is not one .* a split"):
        open_sources(splits)
    with pytest.raises(SourceError, match="object among paths: pass either paths or rows"):
        open_sources([write("d.jsonl", jsonl(ROWS)), {"text": "T"}])


@pytest.fixture
def saved(tmp_path):
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "two")
    return tmp_path


def test_data_sets_loaded_and_saved(saved, capfd):
    capfd.readouterr()
    (source,) = open_sources(datasets.load_from_disk(saved / "one"))
    assert (source.name, source.rereadable) == ("<iterable>", True)
    assert list(source.samples()) == list(source.samples()) == golden("<iterable>", (1, 2))
    assert read(saved / "one") == golden(str(saved / "one"), (1, 2))
    (train,) = open_sources(saved / "two", split="train")
    assert list(train.samples()) == golden(str(saved / "two" / "train"), (1, 2))
    assert list(open_sources(saved / "two" / "train")[0].samples()) == list(train.samples())
    assert [source.name for source in open_sources(str(saved / "*"), split="test")] == [
        str(saved / name) for name in ("one", "two/test")
    ]
    assert capfd.readouterr().out == ""


def test_streamed_data_sets_can_be_read_twice(saved):
    stream = datasets.load_from_disk(saved / "one").to_iterable_dataset()
    (source,) = open_sources(stream)
    assert source.rereadable
    assert list(source.samples()) == list(source.samples()) == golden("<iterable>", (1, 2))


def test_a_saved_data_set_needs_the_library(saved, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name == "datasets":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"pip install 'forvalue-index\[datasets\]'"):
        open_sources(saved / "one")


def test_the_library_of_data_sets_is_imported_only_when_used():
    code = "import sys, forvalue_index.sources.source; sys.exit('datasets' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(TEXT, TEXT.filter(str.strip), TEXT), max_size=4), st.booleans())
def test_any_text_survives_jsonl(tmp_path, triples, ascii_only):
    path = tmp_path / "d.jsonl"
    rows = [{"prompt": p, "response": r, "m": {"k": m}} for p, r, m in triples]
    text = "\n".join(json.dumps(row, ensure_ascii=ascii_only) for row in rows)
    path.write_bytes(text.encode())
    assert read(path) == [
        Sample(
            (Message("user", row["prompt"]), Message("assistant", row["response"])),
            source=str(path),
            position=position,
            metadata={"m": row["m"]},
        )
        for position, row in enumerate(rows, 1)
    ]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=200))
def test_any_bytes_give_rows_or_a_source_error(tmp_path, content):
    for suffix in (".jsonl", ".json", ".csv", ".parquet", ".jsonl.gz"):
        path = tmp_path / f"d{suffix}"
        path.write_bytes(content)
        with suppress(SourceError):
            assert all(isinstance(row, Sample | BadRow) for row in read(path))


def test_conversations_in_the_cells_of_a_csv_file(tmp_path):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A", "weight": "1"}]
    with (tmp_path / "x.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["id", "messages", "tools", "system"])
        writer.writeheader()
        writer.writerow({"id": "a", "messages": json.dumps(turns), "tools": '[{"name": "f"}]'})
    (found,) = open_sources(str(tmp_path / "x.csv"))[0].samples()
    (expected,) = read([{"id": "a", "messages": turns, "tools": [{"name": "f"}]}])
    assert (found.messages, found.tools) == (expected.messages, expected.tools)


def test_a_dialogue_of_a_json_file_is_refused_and_no_documents(tmp_path):
    path = tmp_path / "turns.json"
    path.write_text(json.dumps({"id": 1, "turns": [{"speaker": "A", "text": "hello there"}] * 2}))
    (bad,) = open_sources(str(path))[0].samples()
    assert bad.reason.startswith("turn 1 of 'turns' has the speaker 'A' and no role")
