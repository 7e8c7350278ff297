"""Data frames and tables in memory."""

import decimal

import pandas
import polars
import pyarrow as pa
import pyarrow.dataset as ds
import pytest
from reading import PAIRS, ROWS, metadata, pairs, read

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.source import open_sources

TABLE = pa.Table.from_pylist(ROWS)
HOLDERS = {
    "pandas": lambda: pandas.DataFrame(ROWS, index=[7, 7]),
    "pandas of Arrow": lambda: pandas.DataFrame(ROWS).convert_dtypes(dtype_backend="pyarrow"),
    "polars": lambda: polars.DataFrame(ROWS),
    "table": lambda: TABLE,
    "batch": lambda: TABLE.to_batches()[0],
    "reader": lambda: TABLE.to_reader(),
    "dataset": lambda: ds.dataset(TABLE),
}


@pytest.mark.parametrize("kind", HOLDERS)
def test_whatever_holds_rows(kind):
    (source,) = open_sources(HOLDERS[kind]())
    rows = list(source.samples())
    assert [(row.prompt, row.response) for row in rows] == PAIRS
    assert [(row.position, row.own_id, dict(row.metadata)) for row in rows] == [
        (1, "a", {"topic": "x"}),
        (2, "b", {"topic": "y"}),
    ]
    assert (source.name, source.path, source.origin) == ("<iterable>", None, "arrow")
    assert source.rereadable == (kind != "reader")
    if source.rereadable:
        assert list(source.samples()) == rows


def test_what_pandas_holds_is_python_or_null(tmp_path):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    frame = pandas.DataFrame(
        {
            "messages": [turns, turns],
            "n": pandas.array([1, None], "Int64"),
            "x": [1.5, float("nan")],
            "t": [pandas.Timestamp("2024-02-29"), pandas.NaT],
            "c": pandas.Categorical(["k", None]),
        }
    )
    frame.to_parquet(tmp_path / "d.parquet")
    first = {"n": 1, "x": 1.5, "t": "2024-02-29T00:00:00", "c": "k"}
    for one in (frame, pandas.read_parquet(tmp_path / "d.parquet")):
        assert pairs(one) == [("q", "a"), ("q", "a")]
        assert metadata(one) == [first, dict.fromkeys(first)]


def test_numbers_that_json_cannot_hold():
    assert metadata([{"text": "T", "n": decimal.Decimal("1e400")}]) == [{"n": None}]


def test_many_rows_keep_their_numbers():
    frame = pandas.DataFrame({"text": [str(i) for i in range(2500)]})
    for data in (frame, pa.Table.from_pandas(frame), polars.DataFrame({"text": frame["text"]})):
        assert [(row.position, row.response) for row in read(data)] == [
            (i + 1, str(i)) for i in range(2500)
        ]


def test_frames_that_are_refused():
    twice = pandas.DataFrame([["a", "b"]], columns=["text", "text"])
    with pytest.raises(SourceError, match="the data frame has the column 'text' twice"):
        read(twice)
    with pytest.raises(SourceError, match=r"a LazyFrame has no rows yet: pass frame\.collect\(\)"):
        open_sources(polars.DataFrame(ROWS).lazy())
