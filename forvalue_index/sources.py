"""Data sets as samples: files, globs, stdin, saved data sets and iterables of dicts.

A reader numbers the rows of one format. `_layout` finds, once per set of columns, which column
plays which part. `to_sample` checks one row and converts it. A bad row never stops a source.
"""

from __future__ import annotations

import codecs
import csv
import glob
import gzip
import io
import json
import math
import re
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache, partial
from numbers import Integral
from pathlib import Path
from typing import Any

from pyarrow import ArrowException
from pyarrow.parquet import ParquetFile

from forvalue_index.exceptions import (
    BadSampleError,
    MissingDependencyError,
    SourceError,
    UsageError,
)
from forvalue_index.records import TEXT_ROLE, BadRow, Message, Sample

FIELDS = ("prompt", "response", "messages", "text", "id")
# Field -> lower-case column, in order of preference.
CONVENTIONS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "prompt", "response": "completion"},
    {"prompt": "question", "response": "answer"},
    {"prompt": "instruction", "input": "input", "response": "output"},
    {"text": "text"},
)
OPTIONAL = {"input"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
# NUL is refused by PostgreSQL, half a surrogate pair by every UTF-8 encoder.
UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")
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
            return bad(f"the row is {_kind(row)}, wanted an object", row)
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
    columns = _checked_columns(columns or {})
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
        raise SourceError(f"{_kind(path)} among paths: pass either paths or rows, not both")
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
            _layout(tuple(document), ())
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


def parse_columns(text: str) -> dict[str, str]:
    """Read `prompt=Q,response=A` as field -> column in the data."""
    columns: dict[str, str] = {}
    for part in text.split(","):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not (field and equals and column) or field in columns:
            raise UsageError(
                f"'{part}' in columns '{text}' is malformed or repeated: write FIELD=COLUMN,... "
                f"with fields {', '.join(FIELDS)}"
            )
        columns[field] = column
    return _checked_columns(columns)


def to_sample(
    row: Mapping[Any, Any],
    columns: Mapping[str, str] | None = None,
    *,
    source: str = "",
    position: int = 0,
) -> Sample:
    """Convert one row. The BadSampleError of a bad one gives the reason, not the place."""
    row = {str(name): value for name, value in row.items()}
    layout = _layout(tuple(row), tuple((columns or {}).items()))
    cells = {field: row[column] for field, column in layout.items()}
    metadata = {name: value for name, value in row.items() if name not in layout.values()}
    return Sample(
        messages=_messages(cells, layout),
        source=source,
        position=position,
        own_id=_own_id(cells.get("id")),
        metadata=_storable(metadata),
    )


def _checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    unknown = sorted(columns.keys() - set(FIELDS))
    if unknown:
        raise UsageError(
            f"columns names unknown fields: {', '.join(unknown)}; use {', '.join(FIELDS)}"
        )
    return dict(columns)


@lru_cache(maxsize=1024)
def _layout(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Field -> column. A mapped field wins over, and else completes, the first convention met."""
    columns = dict(mapped)
    listing = ", ".join(names[:20]) or "(none)"
    for field, column in mapped:
        if column not in names:
            raise BadSampleError(f"no column '{column}' for {field}; the row has: {listing}")
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    for convention in CONVENTIONS:
        found = {
            field: columns.get(field, by_name.get(name, ""))
            for field, name in (convention | {"id": "id"}).items()
            if field in columns or name in by_name
        }
        if (columns.keys() - {"id"}) <= convention.keys() <= found.keys() | OPTIONAL:
            return found
    raise BadSampleError(
        f"no messages, no prompt with response, and no text among the columns: {listing}; "
        "map them with --columns, as in prompt=QUESTION,response=REPLY"
    )


def _messages(cells: Mapping[str, Any], layout: Mapping[str, str]) -> tuple[Message, ...]:
    if "text" in layout:
        text = _text(cells["text"], f"'{layout['text']}'")
        return _complete((Message(TEXT_ROLE, text),), layout["text"])
    if "messages" in layout:
        column = layout["messages"]
        if not isinstance(cells["messages"], list | tuple):
            raise BadSampleError(f"'{column}' is {_kind(cells['messages'])}, wanted a list")
        return _complete(_turns(cells["messages"], column, "user"), column)
    prompt, more = cells["prompt"], cells.get("input")
    if more not in (None, ""):
        prompt = _text(prompt, f"'{layout['prompt']}'")
        prompt = f"{prompt}\n\n{_text(more, repr(layout['input']))}"
    turns = _turns(prompt, layout["prompt"], "user")
    answer = _turns(cells["response"], layout["response"], "assistant")
    return _complete(turns + answer, layout["response"])


def _turns(value: Any, column: str, role: str) -> tuple[Message, ...]:
    """Read a cell as turns: text is one turn of `role`, a list is a list of messages."""
    if not isinstance(value, list | tuple):
        return (Message(role, _text(value, f"'{column}'")),)
    return tuple(_turn(turn, f"turn {n} of '{column}'") for n, turn in enumerate(value, 1))


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadSampleError(f"{place} is {_kind(turn)}, wanted an object with role and content")
    sharegpt = "from" in turn and "role" not in turn
    names = ("from", "value") if sharegpt else ("role", "content")
    missing = [name for name in names if name not in turn]
    role = turn.get(names[0])
    # A null extra is how Parquet spells an absent one: dropping it keeps hashes equal over formats.
    extra = {k: _storable(v) for k, v in turn.items() if k not in names and v is not None}
    calls_tools = role == "assistant" and bool(extra.get("tool_calls"))
    if missing and not (calls_tools and missing == ["content"]):
        raise BadSampleError(f"{place} has no {' and no '.join(missing)}")
    role = _text(role, f"the role of {place}")
    if role in ("", TEXT_ROLE):
        raise BadSampleError(f"the role of {place} is '{role}', wanted user, assistant, ...")
    content = turn.get(names[1])
    if content is None and calls_tools:
        content = ""
    role = SHAREGPT_ROLES.get(role, role) if sharegpt else role
    return Message(role, _text(content, f"the content of {place}"), extra)


def _complete(messages: tuple[Message, ...], column: str) -> tuple[Message, ...]:
    """Pass the messages on if there is something to score at their end."""
    roles = [message.role for message in messages]
    if not messages:
        raise BadSampleError(f"'{column}' is empty; wanted turns that end with the assistant's")
    if roles[-1] not in ("assistant", TEXT_ROLE):
        told = f"the last turn is '{roles[-1]}'" if "assistant" in roles else "no assistant turn"
        raise BadSampleError(f"'{column}': {told}; wanted turns that end with the assistant's")
    if not messages[-1].content.strip() and not messages[-1].extra.get("tool_calls"):
        raise BadSampleError(f"'{column}' is empty or blank at its end; nothing there to score")
    return messages


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise BadSampleError(f"{place} is {_kind(value)}, wanted text")
    if UNSTORABLE.search(value):
        raise BadSampleError(f"{place} holds a NUL or something that is not UTF-8; clean it")
    return value


def _own_id(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return _text(value, "the id") if value else None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise BadSampleError(f"the id is {_kind(value)}, wanted text or int")
    return str(int(value))


def _kind(value: Any) -> str:
    name = type(value).__name__
    return {"str": "text", "dict": "object", "NoneType": "null"}.get(name, name)


def _storable(value: Any) -> Any:
    """Convert to what JSON can hold; what is not finite becomes None."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return _storable(text) if "\ufffd" not in text else f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {_storable(str(name)): _storable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _storable(value.tolist()) if hasattr(value, "tolist") else _storable(str(value))
