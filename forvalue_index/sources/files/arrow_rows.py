"""Rows of Parquet, of Arrow's own files and Feather, and of tables in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from itertools import chain
from typing import Any

import pyarrow as pa
from pyarrow import ipc
from pyarrow.parquet import ParquetFile

from forvalue_index.sources.files.arrow_cells import (
    cell,
    has_maps,
    json_decoders,
    refuse_repeated_names,
)
from forvalue_index.sources.files.data_files import DataFile
from forvalue_index.sources.files.rows import Columns, Rows

# Rows that are held at once; of those with images, fewer, by their bytes.
BATCH_ROWS, BATCH_BYTES = 1024, 2**26
FILE_MAGIC, FEATHER_V1_MAGIC = b"ARROW1", b"FEA1"


def read_parquet(file: DataFile, columns: Columns) -> Rows:
    """Rows of a Parquet file, with a bounded number of them in memory."""
    source = file.anywhere() if file.path is None else nullcontext(file.path)
    with source as raw, ParquetFile(raw) as parquet:
        groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
        row_bytes = max((g.total_byte_size // max(1, g.num_rows) for g in groups), default=0)
        batches = parquet.iter_batches(batch_size=_rows_at_once(row_bytes))
        yield from rows_of(parquet.schema_arrow, batches)


def read_arrow(file: DataFile, columns: Columns) -> Rows:
    """Rows of an Arrow IPC file or stream, or of a Feather file, batch by batch."""
    with file.anywhere() as raw:
        magic = raw.read(len(FILE_MAGIC))
        raw.seek(0)
        if magic.startswith(FEATHER_V1_MAGIC):
            from pyarrow import feather  # Few files are so old.

            table = feather.read_table(raw)
            yield from rows_of(table.schema, table.to_batches())
        elif magic == FILE_MAGIC:
            with ipc.open_file(raw) as reader:
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
                yield from rows_of(reader.schema, map(_checked, batches))
        else:
            with ipc.open_stream(raw) as stream:
                yield from rows_of(stream.schema, map(_checked, stream))


def rows_of(schema: pa.Schema, batches: Iterable[pa.RecordBatch]) -> Rows:
    """Numbered rows of batches. Raises ValueError for a name that comes twice."""
    refuse_repeated_names(schema)
    decoders = json_decoders(schema)
    # Arrow is several times faster where it need not look for maps.
    options = {"maps_as_pydicts": "strict"} if any(has_maps(f.type) for f in schema) else {}
    rows = chain.from_iterable(_rows(part, options) for batch in batches for part in _parts(batch))
    for position, row in enumerate(rows, 1):
        for name, decode in decoders.items():
            row[name] = decode(row[name])
        yield position, row


def _rows_at_once(row_bytes: int) -> int:
    return max(1, min(BATCH_ROWS, BATCH_BYTES // max(1, row_bytes)))


def _parts(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    at_once = _rows_at_once(batch.nbytes // max(1, batch.num_rows))
    return (batch.slice(start, at_once) for start in range(0, batch.num_rows, at_once))


def _rows(batch: pa.RecordBatch, options: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return batch.to_pylist(**options)
    except Exception:  # Of one cell among them; each type raises errors of its own.
        names, columns = batch.schema.names, [map(cell, column) for column in batch.columns]
        return [dict(zip(names, cells, strict=True)) for cells in zip(*columns, strict=True)]


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch, where it leads nowhere out of its own memory. Raises ArrowInvalid.

    A cell that is no UTF-8 is the concern of its row.
    """
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):
                raise pa.ArrowInvalid(f"the column '{name}' is damaged: {error}") from error
    return batch
