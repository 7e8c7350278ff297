"""The rows of a data file: one reader a format, which numbers them."""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow.parquet import ParquetFile

from forvalue_index.exceptions import BadSampleError, missing_extra
from forvalue_index.sources.cell_values import UNSTORABLE
from forvalue_index.sources.conventions import find_columns

CSV_CELL_LIMIT = 2**31 - 1
# Rows that are held at once; of those with images, fewer, by their bytes.
PARQUET_BATCH_ROWS, SAVED_BATCH_ROWS = 1024, 64
PARQUET_BATCH_BYTES = 2**26

# Position, row and, where a reader can go back to it, the offset of its line in bytes.
Rows = Iterator[tuple[int, Any] | tuple[int, Any, int]]
Reader = Callable[[Path], Rows]


@dataclass(frozen=True)
class Unreadable:
    """What a reader yields in place of a row that its format does not allow."""

    reason: str
    raw: Any = None


def datasets_loader() -> Callable[[str], Any]:
    """What reads a saved data set. Raises MissingDependencyError where it is not installed."""
    try:
        from datasets import load_from_disk
    except ImportError as error:
        need = "a saved data set needs the datasets library, which is not installed:"
        raise missing_extra(need, "datasets") from error
    return load_from_disk  # type: ignore[no-any-return]


def read_saved(path: Path) -> Rows:
    """Rows of a data set that the datasets library saved; images as the bytes of their files."""
    data = datasets_loader()(str(path)).with_format("arrow")
    tables = data.iter(batch_size=SAVED_BATCH_ROWS)
    yield from enumerate((row for table in tables for row in table.to_pylist()), 1)


def read_parquet(path: Path) -> Rows:
    """Rows of a Parquet file, with a bounded number of them in memory."""
    with ParquetFile(path) as file:
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        row_bytes = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
        most = max(1, min(PARQUET_BATCH_ROWS, PARQUET_BATCH_BYTES // max(1, row_bytes)))
        batches = file.iter_batches(batch_size=most)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if _is_gzip(path) else path.open("rb")


def _is_gzip(path: Path) -> bool:
    return path.suffix.lower() == ".gz"


def read_jsonl(path: Path) -> Rows:
    """Rows of a JSONL file, plain or gzipped, with the number of their line."""
    offset = 0
    with _open(path) as lines:
        for position, line in enumerate(lines, 1):
            if line.strip():
                yield (position, _parse_line(line), *([] if _is_gzip(path) else [offset]))
            offset += len(line)


def lines_at(path: Path, lines: list[tuple[int, int]]) -> Iterator[tuple[int, Any, int]]:
    """Rows of a JSONL file by position and offset in bytes."""
    with path.open("rb") as file:
        for position, offset in lines:
            file.seek(offset)
            yield position, _parse_line(file.readline()), offset


def _parse_line(line: bytes) -> Any:
    line = line.removeprefix(codecs.BOM_UTF8)
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        # The parser counts lines within this one.
        reason = str(error).replace("line 1 ", "")
        raw = line.decode("utf-8", "replace").rstrip("\r\n")
        return Unreadable(f"not JSON in UTF-8: {reason}", raw)


def _read_json(path: Path) -> Rows:
    """Read an array of objects, an object with one inside, or one row; else try JSONL."""
    with _open(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        document = json.loads(content.decode())
    except ValueError:
        if not isinstance(_parse_line(content.lstrip().partition(b"\n")[0]), dict):
            raise
        yield from read_jsonl(path)
    else:
        yield from enumerate(_array(document), 1)


def _array(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        with suppress(BadSampleError):
            find_columns(tuple(document), ())
            return [document]
        arrays = [v for v in document.values() if isinstance(v, list) and v]
        arrays = [array for array in arrays if all(isinstance(row, dict) for row in array)]
        if len(arrays) == 1:
            return arrays[0]
    raise ValueError("wanted an array of objects, or an object with one such array")


def _read_csv(path: Path, delimiter: str = ",") -> Rows:
    csv.field_size_limit(CSV_CELL_LIMIT)
    with io.TextIOWrapper(_open(path), "utf-8-sig", "surrogateescape", newline="") as text:
        records = _records(csv.reader(text, delimiter=delimiter, strict=True))
        _, header = next(records, (0, []))
        if not isinstance(header, list) or UNSTORABLE.search("".join(header)):
            raise ValueError("the header is not CSV in UTF-8")
        if len(set(header)) < len(header):
            raise ValueError(f"a column name appears twice in the header: {', '.join(header)}")
        for position, cells in records:
            yield position, _row(header, cells)


def _records(reader: Any) -> Iterator[tuple[int, list[str] | Unreadable]]:
    """Pair each record with the line that it starts on; blank lines are skipped."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, Unreadable(f"not CSV: {error}")
        else:
            if cells:
                yield start, cells


def _row(header: list[str], cells: list[str] | Unreadable) -> dict[str, str] | Unreadable:
    if isinstance(cells, Unreadable):
        return cells
    if len(cells) != len(header):
        told = f"{len(cells)} cells where the header has {len(header)}"
        return Unreadable(f"{told}; quote a cell that holds a separator", cells)
    return dict(zip(header, cells, strict=True))


# By suffix; each of them may be gzipped.
TEXT_READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
}
