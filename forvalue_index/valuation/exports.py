"""Writing values to a file: Parquet, CSV or JSONL, by suffix."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from forvalue_index.exceptions import ForValueError, UsageError
from forvalue_index.store.durable import replacing

COLUMNS: list[pa.Field[Any]] = [
    pa.field("id", pa.int64()),
    pa.field("key", pa.string()),
    pa.field("source", pa.string()),
    pa.field("score", pa.float32()),
    pa.field("stderr", pa.float32()),
]
SCHEMA = pa.schema(COLUMNS)

Writer = Callable[[Path, Iterator[pa.RecordBatch]], None]


class ExportError(ForValueError):
    """A file of results cannot be written."""


def write_values(path: Path, tables: Iterable[dict[str, Any]]) -> None:
    """Write columns `id, key, source, score, stderr`, a chunk of rows at a time.

    The file appears under its name when it is whole.

    Raises:
        UsageError: the suffix is unknown, or the directory does not exist.
        ExportError: the file cannot be written.
    """
    writer = writer_for(path)
    try:
        with replacing(path) as partial:
            writer(partial, (pa.RecordBatch.from_pydict(t, schema=SCHEMA) for t in tables))
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error


def writer_for(path: Path) -> Writer:
    """The writer that belongs to a suffix. Raises what `write_values` does, as far as it shows."""
    writer = WRITERS.get(path.suffix.lower())
    if writer is None:
        known = ", ".join(WRITERS)
        raise UsageError(f"{path} ends in {path.suffix or 'no suffix'}; use one of {known}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory; create it, or write elsewhere")
    if not os.access(path.parent, os.W_OK):
        raise unwritable(path, "the directory is read-only")
    return writer


def unwritable(path: Path, reason: str) -> ExportError:
    """The error of a file that cannot be written."""
    return ExportError(f"{path} cannot be written ({reason}); write elsewhere, or mend that")


def _write_parquet(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    with pa.parquet.ParquetWriter(path, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_csv(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    with pa.csv.CSVWriter(path, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _write_jsonl(path: Path, batches: Iterator[pa.RecordBatch]) -> None:
    import json

    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            file.writelines(json.dumps(row) + "\n" for row in batch.to_pylist())


WRITERS: dict[str, Writer] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
