"""Rows of CSV and TSV files, in the dialect that their first lines show."""

from __future__ import annotations

import csv
import io
import logging
from dataclasses import dataclass
from functools import cached_property, lru_cache

from forvalue_index.sources.cell_values import UNSTORABLE
from forvalue_index.sources.files.csv_dialect import (
    Dialect,
    are_spaced,
    guess_dialect,
    told_delimiter,
)
from forvalue_index.sources.files.csv_records import Records
from forvalue_index.sources.files.data_files import DataFile, Stream, encoding_of
from forvalue_index.sources.files.rows import Columns, Rows, Unreadable, why_unrecognised

LOG = logging.getLogger(__name__)
CELL_LIMIT = 2**31 - 1
HEAD_BYTES = 2**18


@dataclass(frozen=True)
class Header:
    """The names of the cells from `start` to `end` of `n_cells`; those beside have none.

    `spaced` says that a space stands behind every separator, and is none of a cell.
    """

    names: list[str]
    start: int
    end: int
    n_cells: int
    spaced: bool

    @cached_property
    def is_plain(self) -> bool:
        """Whether every cell has a name, and is taken as it is."""
        return len(self.names) == self.n_cells and not self.spaced


def read_csv(file: DataFile, columns: Columns, delimiter: str = ",") -> Rows:
    """Rows of a CSV file with the number of their first line. Raises ValueError without a header.

    Bytes that are no UTF-8 become surrogates, which no text may hold.
    """
    csv.field_size_limit(CELL_LIMIT)
    with file.content() as content:
        encoding, dialect, n_before = _told_by_head(content, delimiter)
    if dialect not in (Dialect(","), Dialect("\t")) or dialect.delimiter != delimiter:
        _say(file.name, f"with {dialect}")
    with (
        file.content() as content,
        io.TextIOWrapper(content, encoding, "surrogateescape", newline="") as text,
    ):
        for _ in range(n_before):
            text.readline()
        records = Records(text, dialect, 1 + n_before)
        _, cells = next(records, (0, []))
        header = _header(cells, columns)
        if header.spaced:
            _say(file.name, "without the space behind each separator")
        records.n_cells = header.n_cells
        for position, cells in records:
            yield position, _row(header, cells)


def _told_by_head(content: Stream, delimiter: str) -> tuple[str, Dialect, int]:
    """Encoding, dialect, and how many lines stand before the header."""
    start = content.read(HEAD_BYTES)
    is_whole = len(start) < HEAD_BYTES
    encoding = encoding_of(start)
    head = start.decode(encoding, "replace" if encoding == "utf-8-sig" else "ignore")
    told = told_delimiter(head)
    if told is None:
        return encoding, guess_dialect(head, delimiter, is_whole=is_whole), 0
    between, begin = told
    return encoding, guess_dialect(head[begin:], between, is_whole=is_whole, is_told=True), 1


def _header(cells: list[str] | Unreadable, columns: Columns) -> Header:
    if isinstance(cells, Unreadable) or UNSTORABLE.search("".join(cells)):
        raise ValueError("the header is not CSV in UTF-8")
    mapped = set(columns.values())
    names = [cell if cell in mapped else cell.strip() for cell in cells]
    # What pandas writes first is its index, what spreadsheets write last nothing.
    start = int(len(names) > 1 and not names[0])
    end = max((i + 1 for i, name in enumerate(names) if name), default=start)
    found = names[start:end]
    if len(set(found)) < len(found):
        raise ValueError(f"a column name appears twice in the header: {', '.join(found)}")
    reason = why_unrecognised(tuple(found), columns) if cells else None
    if reason is not None:
        raise ValueError(f"its first line is no header of a sample: {reason}")
    return Header(found, start, end, len(cells), are_spaced(cells[:end]))


def _row(header: Header, cells: list[str] | Unreadable) -> dict[str, str] | Unreadable:
    if isinstance(cells, Unreadable):
        return cells
    if header.is_plain:
        return dict(zip(header.names, cells, strict=True))
    for number, cell in enumerate(cells[header.end :], header.end + 1):
        if cell.strip():
            return Unreadable(f"cell {number} has no name in the header; name it there", cells)
    if header.spaced:
        cells = [cells[0], *(cell.removeprefix(" ") for cell in cells[1:])]
    return dict(zip(header.names, cells[header.start : header.end], strict=True))


@lru_cache(maxsize=1024)
def _say(name: str, how: str) -> None:
    """Say once what was guessed."""
    LOG.warning("%s is read %s", name, how)
