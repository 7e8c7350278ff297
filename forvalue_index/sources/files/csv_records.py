"""Records of CSV out of lines, such that a damaged one costs itself and not the rest of a file.

A quote that is not closed where it should be swallows the lines that follow. They are given back:
where one of them is a record of its own, the first line alone is bad.
"""

from __future__ import annotations

import csv
import re
from collections import deque
from collections.abc import Iterable, Iterator

from forvalue_index.sources.files.csv_dialect import LINE_ENDS, Dialect
from forvalue_index.sources.files.rows import Unreadable

# A cell over several lines that is longer has a quote that is not closed.
MOST_CHARACTERS = 2**25
# As far is looked for the end of a cell in which a quote is not doubled.
MOST_LINES = 1000
UNCLOSED = "a quote opened here is not closed where it should be; close it, or double it in a text"
STRAY = "a quote stands alone after an unclosed one; close it, or double it in a text"


class _Lines:
    """Lines of a file as csv.reader takes them, which can be given back."""

    def __init__(self, lines: Iterable[str], first: int) -> None:
        self._lines = iter(lines)
        self._again: deque[str] = deque()
        self.taken: list[str] = []
        self.first = first
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._length > MOST_CHARACTERS and len(self.taken) > 1:
            raise StopIteration
        line = self._again.popleft() if self._again else next(self._lines)
        self.taken.append(line)
        self._length += len(line)
        return line

    def begin(self) -> None:
        """Go on to the next record."""
        self.first += len(self.taken)
        self.taken, self._length = [], 0

    def give_back(self, n_kept: int) -> None:
        """Leave the record its first lines."""
        self._again.extendleft(reversed(self.taken[n_kept:]))
        del self.taken[n_kept:]

    @property
    def raw(self) -> str:
        """The record as it stands in the file."""
        return "".join(self.taken).rstrip(LINE_ENDS)


class Records:
    """Records of lines, each with the number of its first one; blank lines are skipped.

    `n_cells` is how many each of them should have, once it is known; `first` is the number of the
    first line.
    """

    def __init__(self, lines: Iterable[str], dialect: Dialect, first: int = 1) -> None:
        self._lines = _Lines(lines, first)
        self._dialect = dialect
        self._reader = dialect.reader(self._lines)
        self._suspect = 0
        self.n_cells: int | None = None

    def __iter__(self) -> Iterator[tuple[int, list[str] | Unreadable]]:
        return self

    def __next__(self) -> tuple[int, list[str] | Unreadable]:
        record = self._record()
        while not record:
            record = self._record()
        return self._lines.first, record

    def _record(self) -> list[str] | Unreadable:
        lines = self._lines
        lines.begin()
        try:
            cells = next(self._reader)
        except csv.Error as error:
            return self._damaged(str(error))
        if len(lines.taken) == 1 and not self._suspect and not self._dialect.backslash:
            return self._counted(cells)
        if self._dialect.has_odd_backslash(lines.raw):
            return Unreadable("a backslash stands before what is no quote; double it", lines.raw)
        if self.n_cells is not None and cells and len(cells) != self.n_cells:
            return self._ragged(cells)
        if lines.first <= self._suspect and self._is_odd(lines.raw):
            return Unreadable(STRAY, lines.raw)
        self._suspect = self._suspect if lines.first <= self._suspect else 0
        return cells

    def _counted(self, cells: list[str]) -> list[str] | Unreadable:
        if self.n_cells is None or not cells or len(cells) == self.n_cells:
            return cells
        told = f"{len(cells)} cells where the header has {self.n_cells}"
        return Unreadable(f"{told}; quote a cell that holds a separator", cells)

    def _ragged(self, cells: list[str]) -> list[str] | Unreadable:
        if self._gives_back():
            return Unreadable(UNCLOSED, self._lines.raw)
        return self._counted(cells)

    def _damaged(self, reason: str) -> Unreadable:
        lines = self._lines
        if len(lines.taken) == 1 and self._is_odd(lines.raw) and "end of data" not in reason:
            self._take_to_closing_line()
            return Unreadable(f"not CSV: {reason}", lines.raw)
        if self._gives_back() or "end of data" in reason:
            return Unreadable(UNCLOSED, lines.raw)
        return Unreadable(f"not CSV: {reason}", lines.raw)

    def _gives_back(self) -> bool:
        """Give back what followed the first line, where there is a record of its own in it."""
        lines = self._lines
        if not any(map(self._is_record, lines.taken[1:])):
            return False
        self._suspect = lines.first + len(lines.taken) - 1
        lines.give_back(1)
        return True

    def _is_record(self, line: str) -> bool:
        try:
            cells = next(self._dialect.reader(iter([line])), [])
        except csv.Error:
            return False
        return not self._is_odd(line) and bool(cells) and len(cells) == self.n_cells

    def _is_odd(self, raw: str) -> bool:
        quote = self._dialect.quote
        return quote is not None and self._unescaped(raw).count(quote) % 2 == 1

    def _unescaped(self, raw: str) -> str:
        return (
            raw.replace("\\\\", "").replace("\\" + (self._dialect.quote or ""), "")
            if (self._dialect.backslash)
            else raw
        )

    def _take_to_closing_line(self) -> None:
        """Take the lines up to the one that closes the cell whose inner quote is not doubled.

        The next line with an odd quote does, if that ends a cell; else the cell ends in its line.
        """
        lines, quote = self._lines, self._dialect.quote or ""
        between = re.escape(self._dialect.delimiter)
        closes = re.compile(rf"[^{between}{quote}]{quote}({between}|[\r\n]|$)")
        for _ in range(MOST_LINES):
            line = next(lines, None)
            if line is None:
                break
            if self._is_odd(line):
                if closes.search(line) and not re.match(rf"{quote}", line):
                    return
                break
        lines.give_back(1)
