"""Data sets as samples: files, globs, stdin, saved data sets and iterables of dicts.

A reader numbers the rows of one format. A bad row never stops a source.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from forvalue_index.columns import (
    UNSTORABLE,
    checked_columns,
    kind_of,
    layout_of,
    to_sample,
)
from forvalue_index.exceptions import (
    BadSampleError,
    MissingDependencyError,
    SourceError,
)
from forvalue_index.records import BadRow, Sample

CSV_CELL_LIMIT = 2**31 - 1
PARQUET_BATCH_ROWS = 1024

Rows = Iterator[tuple[int, Any]]
Reader = Callable[[Path], Rows]


@dataclass(frozen=True)
class _Unreadable:
    """What a reader yields in place of a row that its format does not allow."""

    reason: str
    raw: Any = None


@dataclass(eq=False)
class RowSource:
    """The contracts.Source over whatever `read` yields: positions with rows."""

    name: str
    read: Callable[[], Rows]
    columns: Mapping[str, str]
    rereadable: bool = True

    def samples(self) -> Iterator[Sample | BadRow]:
        """Every row, as a sample or as the reason why it is none. Raises SourceError."""
        for position, row in self.read():
            yield self._checked(position, row)

    def _checked(self, position: int, row: Any) -> Sample | BadRow:
        bad = partial(BadRow, self.name, position)
        if isinstance(row, _Unreadable):
            return bad(row.reason, row.raw)
        if not isinstance(row, Mapping):
            return bad(f"the row is {kind_of(row)}, wanted an object", row)
        try:
            return to_sample(row, self.columns, source=self.name, position=position)
        except BadSampleError as error:
            return bad(str(error), row)
        except RecursionError:
            return bad("the row is nested too deeply; flatten its metadata")


def open_sources(data: Any, columns: Mapping[str, str] | None = None) -> list[RowSource]:
    """Open a path, a glob, "-" for stdin, a list of these, or an iterable of dicts.

    A saved data set makes one source, or one per split. `columns` says which column holds a field
    of FIELDS, where the names of the columns do not tell.
    """
    columns = checked_columns(columns or {})
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, list | tuple) and any(isinstance(item, str | Path) for item in data):
        return [source for item in data for source in _open_path(item, columns)]
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, list(data)[:8]))
        raise SourceError(
            f"a {type(data).__name__} with keys {keys} is not one data set: choose a split, as in "
            "data['train'], or pass a list of rows"
        )
    if not isinstance(data, Iterable) or isinstance(data, bytes) or hasattr(data, "iterrows"):
        raise SourceError(
            f"a {type(data).__name__} is no data set: pass a path, a datasets.Dataset or an "
            "iterable of dicts (for a data frame, frame.to_dict('records'))"
        )
    rereadable = iter(data) is not data
    return [RowSource("<iterable>", lambda: enumerate(data, 1), columns, rereadable)]


def _open_path(path: Any, columns: Mapping[str, str]) -> list[RowSource]:
    if not isinstance(path, str | Path):
        raise SourceError(f"{kind_of(path)} among paths: pass either paths or rows, not both")
    if str(path) == "-":
        return [_open_stdin(columns)]
    with _readable(str(path)):
        return [
            RowSource(name, partial(_rows_of, name, read, Path(name)), columns)
            for match in _expand(str(path))
            for name, read in _readers(match)
        ]


def _open_stdin(columns: Mapping[str, str]) -> RowSource:
    """JSONL from stdin, kept in a temporary file for as long as the source lives."""
    with tempfile.NamedTemporaryFile(delete=False) as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
    path = Path(spool.name)
    source = RowSource("<stdin>", partial(_rows_of, "<stdin>", _read_jsonl, path), columns)
    weakref.finalize(source, path.unlink, missing_ok=True)
    return source


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever a file system or a file format raises into one SourceError."""
    try:
        yield
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SourceError(f"{name} cannot be read: {reason}; check the file") from error


def _rows_of(name: str, read: Reader, path: Path) -> Rows:
    with _readable(name):
        yield from read(path)


def _expand(name: str) -> list[str]:
    """Return the path, or what it matches as a pattern: files and saved data sets, sorted."""
    if Path(name).exists():
        return [name]
    if not glob.has_magic(name):
        raise SourceError(f"{name} does not exist: check the path, or pass - for stdin")
    found = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    matches = sorted(match for match in found if Path(match).is_file() or _saved_splits(match))
    if not matches:
        raise SourceError(f"{name} matches no file: check the pattern, and quote it in a shell")
    return matches


def _readers(name: str) -> list[tuple[str, Reader]]:
    """Names of the data sets at a path, each with what reads it."""
    path = Path(name)
    if path.is_dir():
        splits = _saved_splits(name)
        if not splits:
            raise SourceError(
                f"{name} is a directory but no saved data set: name its files, as in {name}/*.jsonl"
            )
        _load_from_disk()
        return [(split, _read_saved) for split in splits]
    suffix = path.suffix.lower()
    if suffix == ".gz" and Path(path.stem).suffix.lower() in TEXT_READERS:
        suffix = Path(path.stem).suffix.lower()
    readers = TEXT_READERS | {".parquet": _read_parquet}
    if suffix not in readers:
        raise SourceError(
            f"{name} has the unknown format '{suffix}': use {', '.join(readers)}, or a gzip of a "
            "text format, as .jsonl.gz"
        )
    return [(name, readers[suffix])]


def _saved_splits(name: str) -> list[str]:
    """List the folders that `save_to_disk` of a Dataset, or of a DatasetDict, left here."""
    path = Path(name)
    splits = path / "dataset_dict.json"
    if splits.is_file():
        return [str(path / split) for split in json.loads(splits.read_text("utf-8"))["splits"]]
    return [name] if (path / "state.json").is_file() else []


def _load_from_disk() -> Callable[[str], Iterable[Any]]:
    try:
        from datasets import load_from_disk
    except ImportError as error:
        raise MissingDependencyError(
            "a saved data set needs the datasets library, which is not installed: "
            "pip install 'forvalue-index[datasets]'"
        ) from error
    return load_from_disk  # type: ignore[no-any-return]


def _read_saved(path: Path) -> Rows:
    yield from enumerate(_load_from_disk()(str(path)), 1)


def _read_parquet(path: Path) -> Rows:
    with ParquetFile(path) as file:
        batches = file.iter_batches(batch_size=PARQUET_BATCH_ROWS)
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _read_jsonl(path: Path) -> Rows:
    with _open(path) as lines:
        for position, line in enumerate(lines, 1):
            if position == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            if line.strip():
                yield position, _parse_line(line)


def _parse_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode())
    except (ValueError, RecursionError) as error:
        # The parser counts lines within this one.
        reason = str(error).replace("line 1 ", "")
        raw = line.decode("utf-8", "replace").rstrip("\r\n")
        return _Unreadable(f"not JSON in UTF-8: {reason}", raw)


def _read_json(path: Path) -> Rows:
    """Read an array of objects, an object with one inside, or one row; else try JSONL."""
    with _open(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    try:
        document = json.loads(content.decode())
    except ValueError:
        if not isinstance(_parse_line(content.lstrip().partition(b"\n")[0]), dict):
            raise
        yield from _read_jsonl(path)
    else:
        yield from enumerate(_array(document), 1)


def _array(document: Any) -> list[Any]:
    if isinstance(document, list):
        return document
    if isinstance(document, dict):
        with suppress(BadSampleError):
            layout_of(tuple(document), ())
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


def _records(reader: Any) -> Iterator[tuple[int, list[str] | _Unreadable]]:
    """Pair each record with the line that it starts on; blank lines are skipped."""
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield start, _Unreadable(f"not CSV: {error}")
        else:
            if cells:
                yield start, cells


def _row(header: list[str], cells: list[str] | _Unreadable) -> dict[str, str] | _Unreadable:
    if isinstance(cells, _Unreadable):
        return cells
    if len(cells) != len(header):
        told = f"{len(cells)} cells where the header has {len(header)}"
        return _Unreadable(f"{told}; quote a cell that holds a separator", cells)
    return dict(zip(header, cells, strict=True))


TEXT_READERS: dict[str, Reader] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": partial(_read_csv, delimiter="\t"),
}
