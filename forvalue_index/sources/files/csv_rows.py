"""Rows of CSV and TSV files, in the dialect that their first lines show."""

from __future__ import annotations

import csv
import io
import logging
from functools import lru_cache

from forvalue_index.sources.cell_values import UNSTORABLE
from forvalue_index.sources.files.csv_dialect import Dialect, guess_dialect
from forvalue_index.sources.files.csv_records import Records
from forvalue_index.sources.files.data_files import DataFile, Stream, encoding_of
from forvalue_index.sources.files.rows import Columns, Rows, Unreadable, why_unrecognised

LOG = logging.getLogger(__name__)
CELL_LIMIT = 2**31 - 1
HEAD_BYTES = 2**18


def read_csv(file: DataFile, columns: Columns, delimiter: str = ",") -> Rows:
    """Rows of a CSV file with the number of their first line. Raises ValueError without a header.

    Bytes that are no UTF-8 become surrogates, which no text may hold.
    """
    csv.field_size_limit(CELL_LIMIT)
    with file.content() as content:
        encoding, dialect = _told_by_head(content, delimiter)
    if dialect not in (Dialect(","), Dialect("\t")) or dialect.delimiter != delimiter:
        _say(file.name, dialect)
    with (
        file.content() as content,
        io.TextIOWrapper(content, encoding, "surrogateescape", newline="") as text,
    ):
        records = Records(text, dialect)
        header = _header(records, columns)
        records.n_cells = len(header)
        for position, cells in records:
            yield position, _row(header, cells)


def _told_by_head(content: Stream, delimiter: str) -> tuple[str, Dialect]:
    start = content.read(HEAD_BYTES)
    is_whole = len(start) < HEAD_BYTES
    encoding = encoding_of(start)
    head = start.decode(encoding, "replace" if encoding == "utf-8-sig" else "ignore")
    return encoding, guess_dialect(head, delimiter, is_whole=is_whole)


def _header(records: Records, columns: Columns) -> list[str]:
    _, header = next(records, (0, []))
    if isinstance(header, Unreadable) or UNSTORABLE.search("".join(header)):
        raise ValueError("the header is not CSV in UTF-8")
    if len(set(header)) < len(header):
        raise ValueError(f"a column name appears twice in the header: {', '.join(header)}")
    reason = why_unrecognised(tuple(header), columns) if header else None
    if reason is not None:
        raise ValueError(f"its first line is no header of a sample: {reason}")
    return header


def _row(header: list[str], cells: list[str] | Unreadable) -> dict[str, str] | Unreadable:
    return cells if isinstance(cells, Unreadable) else dict(zip(header, cells, strict=True))


@lru_cache(maxsize=1024)
def _say(name: str, dialect: Dialect) -> None:
    """Say once what was guessed."""
    LOG.warning("%s is read with %s", name, dialect)
