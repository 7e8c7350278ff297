import json

import pyarrow.csv
import pyarrow.parquet
import pytest

from forvalue_index.exceptions import UsageError
from forvalue_index.valuation.exports import ExportError, write_values, writer_for

NAMES = ["id", "key", "source", "score", "stderr"]
CHUNKS = [
    {
        "id": [0, 2**40],
        "key": ["a", 'b "quoted", ü\nline'],
        "source": ["x.jsonl", "<stdin>"],
        "score": [-1.5, 0.1],
        "stderr": [0.0, 1e-8],
    },
    {"id": [2**40 + 1], "key": ["c"], "source": [""], "score": [1e30], "stderr": [2.0]},
]
READERS = {
    ".parquet": lambda path: pyarrow.parquet.read_table(path).to_pylist(),
    ".csv": lambda path: pyarrow.csv.read_csv(
        path,
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(column_types={"key": "string"}),
    ).to_pylist(),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text("utf-8").splitlines()],
}


def listing(path):
    return sorted(p.name for p in path.iterdir())


@pytest.mark.parametrize("suffix", READERS)
def test_what_is_written_is_read_back(tmp_path, suffix):
    path = tmp_path / f"values{suffix}"
    write_values(path, iter(CHUNKS))
    found = READERS[suffix](path)
    assert [list(row) for row in found] == [NAMES] * 3
    expected = [
        dict(zip(NAMES, values, strict=True))
        for chunk in CHUNKS
        for values in zip(*(chunk[name] for name in NAMES), strict=True)
    ]
    for row, wanted in zip(found, expected, strict=True):
        # Stored as 32-bit floats, whose nearest to 0.1 is not the one of 64 bits.
        for name in ("score", "stderr"):
            assert row.pop(name) == pytest.approx(wanted.pop(name), rel=1e-6)
        assert row == wanted
    assert listing(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", READERS)
def test_no_values_make_a_file_without_rows(tmp_path, suffix):
    path = tmp_path / f"values{suffix}"
    write_values(path, iter([]))
    assert READERS[suffix](path) == []
    assert listing(tmp_path) == [path.name]


def test_parquet_has_the_types_of_the_contract(tmp_path):
    write_values(tmp_path / "v.parquet", CHUNKS)
    schema = pyarrow.parquet.read_schema(tmp_path / "v.parquet")
    types = ["int64", "string", "string", "float", "float"]
    assert [(field.name, str(field.type)) for field in schema] == list(
        zip(NAMES, types, strict=True)
    )


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_that_is_there_stays_until_the_new_one_is_whole(tmp_path, suffix):
    path = tmp_path / f"values{suffix}"
    write_values(path, CHUNKS[:1])

    def broken():
        yield CHUNKS[1]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_values(path, broken())
    assert len(READERS[suffix](path)) == 2
    assert listing(tmp_path) == [path.name]


@pytest.mark.parametrize("suffix", READERS)
def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path, suffix):
    with pytest.raises(ZeroDivisionError):
        write_values(tmp_path / f"values{suffix}", ({"id": [1 // n]} for n in (0,)))
    assert listing(tmp_path) == []


@pytest.mark.parametrize("name", ["values.xlsx", "values", "values.parquet.gz", ".csv"])
def test_an_unknown_suffix_is_refused(tmp_path, name):
    with pytest.raises(UsageError, match=r"ends in .*; use one of \.parquet, \.csv, \.jsonl"):
        write_values(tmp_path / name, CHUNKS)
    assert listing(tmp_path) == []


def test_a_suffix_is_the_same_in_capitals(tmp_path):
    assert writer_for(tmp_path / "V.PARQUET") is writer_for(tmp_path / "v.parquet")


def test_a_directory_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UsageError, match="none is not a directory; create it"):
        writer_for(tmp_path / "none" / "values.csv")


@pytest.mark.parametrize("suffix", READERS)
def test_a_file_that_cannot_be_written_is_named(tmp_path, suffix):
    """The system's error was raised as it was, and with it a traceback on the command line."""
    path = tmp_path / f"values{suffix}"
    path.mkdir()
    with pytest.raises(ExportError, match=f"values{suffix} cannot be written .*; write elsewhere"):
        write_values(path, CHUNKS)
    assert [*tmp_path.iterdir()] == [path]


def test_a_read_only_directory_is_refused_before_anything_is_computed(tmp_path, monkeypatch):
    # Root may write everywhere, so the system's answer is given here.
    monkeypatch.setattr("os.access", lambda path, mode: path != tmp_path)
    with pytest.raises(ExportError, match="read-only"):
        writer_for(tmp_path / "values.csv")
