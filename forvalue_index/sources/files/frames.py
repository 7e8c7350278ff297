"""Rows of objects in memory: data frames, tables of Arrow, data sets, and any iterable of dicts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.cell_values import ARROW
from forvalue_index.sources.files.arrow_rows import BATCH_ROWS, rows_of
from forvalue_index.sources.files.dataset_library import one_split, refuse_config, refuse_split
from forvalue_index.sources.files.dataset_library import rows_in_memory as library_rows
from forvalue_index.sources.files.rows import DataSet, Rows

NAME = "<iterable>"


def data_set_in(data: Any, split: str | None, config: str | None) -> DataSet:
    """What reads the rows of an object. Raises SourceError where it has none."""
    refuse_config(NAME, config)
    if isinstance(data, Mapping):
        data = _split_of(data, split)
    else:
        refuse_split(f"a {type(data).__name__}", None, split)
    return replace(_rows_in(data), images=Path.cwd())


def _split_of(data: Mapping[Any, Any], split: str | None) -> Any:
    """One split of a DatasetDict, or of what else has rows under names."""
    keys = ", ".join(map(str, list(data)[:8]))
    if split is None:
        raise SourceError(
            f"a {type(data).__name__} with keys {keys} is not one data set: choose a split, as in "
            "split='train' or data['train'], or pass a list of rows"
        )
    chosen = one_split(f"a {type(data).__name__}", dict(data), split)
    if isinstance(chosen, Mapping):
        raise SourceError(
            f"'{split}' of a {type(data).__name__} holds no rows; pass a list of them"
        )
    return chosen


def _rows_in(data: Any) -> DataSet:
    home = type(data).__module__.partition(".")[0]
    if home == "pyarrow" and hasattr(data, "scanner"):
        return DataSet(NAME, lambda _: rows_of(data.schema, _scanned(data)), origin=ARROW)
    if home == "pandas" and hasattr(data, "iterrows"):
        return DataSet(NAME, lambda _: _pandas_rows(data), origin=ARROW)
    if hasattr(data, "__arrow_c_stream__") and not hasattr(data, "to_frame"):
        once = isinstance(data, pa.RecordBatchReader)
        return DataSet(NAME, lambda _: _stream_rows(data), origin=ARROW, rereadable=not once)
    if isinstance(data, pa.RecordBatch):
        return _rows_in(pa.Table.from_batches([data]))
    if home == "datasets":
        return library_rows(data)
    _refuse_what_has_no_rows(data)
    return DataSet(NAME, lambda _: enumerate(data, 1), rereadable=iter(data) is not data)


def _refuse_what_has_no_rows(data: Any) -> None:
    if hasattr(data, "collect") and hasattr(data, "collect_schema"):
        raise SourceError(f"a {type(data).__name__} has no rows yet: pass frame.collect()")
    if not isinstance(data, Iterable) or isinstance(data, bytes) or hasattr(data, "iterrows"):
        raise SourceError(
            f"a {type(data).__name__} is no data set: pass a path, a datasets.Dataset, a pandas or "
            "polars data frame, a table of pyarrow or an iterable of dicts"
        )


def _scanned(data: Any) -> Iterator[pa.RecordBatch]:
    yield from data.scanner(batch_size=BATCH_ROWS).to_batches()


def _stream_rows(data: Any) -> Rows:
    with pa.RecordBatchReader.from_stream(data) as stream:
        yield from rows_of(stream.schema, stream)


def _pandas_rows(frame: Any) -> Rows:
    """Rows of a data frame without its index; whatever pandas takes for missing is null."""
    names = [str(name) for name in frame.columns]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise SourceError(f"the data frame has the column '{twice}' twice; rename one of the two")
    for start in range(0, len(frame), BATCH_ROWS):
        part = frame.iloc[start : start + BATCH_ROWS]
        cells = part.astype(object).where(part.notna(), None)
        rows = zip(*(cells.iloc[:, at] for at in range(len(names))), strict=True)
        for position, row in enumerate(rows, start + 1):
            yield position, dict(zip(names, map(_as_python, row), strict=True))


def _as_python(value: Any) -> Any:
    """Lists in place of arrays, as pandas holds what it reads from Parquet."""
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        return _as_python(value.tolist())
    if isinstance(value, dict):
        return {name: _as_python(item) for name, item in value.items()}
    return [_as_python(item) for item in value] if isinstance(value, list | tuple) else value
