"""Which dialect a CSV or TSV file is in, told once from its first lines.

The usual one, quotes `"` that are doubled where they are text, holds wherever it fits. Another one
is taken only where the usual one does not fit, one alone does, and its marks are there.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

DELIMITERS = {",": "commas", ";": "semicolons", "|": "bars", "\t": "tabs"}
LINE_ENDS = "\r\n"
TOLD = re.compile(r"\"?sep=([^\r\n\"])\"?\1*(\r\n|\r|\n|$)", re.IGNORECASE)


@dataclass(frozen=True)
class Dialect:
    """What stands between cells, what quotes them, and whether a backslash makes a quote text.

    `spaced` says that spaces stand before quotes and cells, and are none of them.
    """

    delimiter: str = ","
    quote: str | None = '"'
    backslash: bool = False
    spaced: bool = False

    def __str__(self) -> str:
        between = f"{DELIMITERS[self.delimiter]} between cells"
        if self.quote is None:
            return f"{between} and no quotes around any"
        escape = ", which a backslash makes text" if self.backslash else ""
        spaces = ", without the spaces before cells" if self.spaced else ""
        return f"{between} and quotes {self.quote}{escape}{spaces}"

    def reader(self, lines: Iterator[str]) -> Iterator[list[str]]:
        """What makes records of lines. Raises csv.Error for a damaged one."""
        if self.quote is None:
            quoting: dict[str, Any] = {"quoting": csv.QUOTE_NONE}
        else:
            escape = "\\" if self.backslash else None
            quoting = {"quotechar": self.quote, "escapechar": escape}
        quoting["skipinitialspace"] = self.spaced
        return csv.reader(lines, delimiter=self.delimiter, strict=True, **quoting)

    def has_odd_backslash(self, raw: str) -> bool:
        """Whether a backslash stands before what needs none, and would be lost."""
        if not self.backslash or "\\" not in raw:
            return False
        escaped = f"[{re.escape(f'{self.quote}{self.delimiter}')}\\\\\r\n]"
        return "\\" in re.sub(rf"\\{escaped}", "", raw)

    def wraps(self, cell: str) -> bool:
        """Whether a cell as it stands in the file is quoted, and closed at its end alone."""
        quote = self.quote or '"'
        inner = cell[1:-1].replace(quote * 2, "")
        return len(cell) > 1 and cell[0] == cell[-1] == quote and quote not in inner


def told_delimiter(head: str) -> tuple[str, int] | None:
    """The separator that a first line `sep=;` sets, as Excel reads it, and where the next begins.

    Raises ValueError for one that is not read.
    """
    told = TOLD.match(head)
    if told is None:
        return None
    if told[1] not in DELIMITERS:
        names = ", ".join(DELIMITERS.values())
        raise ValueError(f"its first line sets the separator '{told[1]}'; write it with {names}")
    return told[1], told.end()


def guess_dialect(head: str, delimiter: str, *, is_whole: bool, is_told: bool = False) -> Dialect:
    """The dialect of a file that begins so. Raises ValueError where several fit.

    `delimiter` is the usual one of its format, or one that the file has told; a head that is not
    whole may end in a record.
    """
    header = next(iter(_lines(head)), "").rstrip(LINE_ENDS)
    if delimiter == "," and not is_told:
        delimiter = _delimiter(header, head, is_whole=is_whole)
    spaced = Dialect(delimiter, spaced=True)
    are_marked = f'{delimiter} "' in head and are_spaced(_cells(header, delimiter))
    if are_marked and _fits(spaced, head, is_whole=is_whole):
        return spaced
    usual = Dialect(delimiter)
    if _fits(usual, head, is_whole=is_whole):
        others = list(_hidden(header, head, delimiter))
    else:
        others = list(_others(head, delimiter))
    others = [other for other in others if _fits(other, head, is_whole=is_whole)]
    if len(others) > 1:
        raise ValueError(
            f"it can be read with {' or with '.join(map(str, others))}; write it with commas and "
            'quotes ", as csv.writer does'
        )
    chosen = others[0] if others else usual
    if chosen.has_odd_backslash(head):
        raise ValueError(
            "backslashes stand before quotes that are text, and also before other characters, "
            'where nobody knows what they mean; write it with doubled quotes, ""'
        )
    return chosen


def are_spaced(names: Sequence[str]) -> bool:
    """Whether a space stands behind every separator of a header."""
    return len(names) > 1 and all(name.startswith(" ") for name in names[1:])


def _delimiter(header: str, head: str, *, is_whole: bool) -> str:
    """What stands between cells: what the header has, and where it has several, what fits."""
    present = [d for d in DELIMITERS if len(_cells(header, d)) > 1]
    if len(present) < 2:
        return present[0] if present else ","
    fitting = [
        delimiter
        for delimiter in present
        if any(
            _fits(dialect, head, is_whole=is_whole)
            for dialect in (Dialect(delimiter), *_others(head, delimiter))
        )
    ]
    if "," in fitting or ("," in present and not fitting):
        return ","
    if len(fitting) == 1:
        return fitting[0]
    names = " or ".join(DELIMITERS[d] for d in fitting or present)
    raise ValueError(f"its header has {names} between names, and nobody knows which; use commas")


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(Dialect(delimiter).reader(iter([line])), [])
    except csv.Error:
        return line.split(delimiter)


def _hidden(header: str, head: str, delimiter: str) -> Iterator[Dialect]:
    """Dialects that show where the usual one fits, too: their quotes would become text."""
    single = Dialect(delimiter, "'")
    if all(map(single.wraps, header.split(delimiter))):
        yield single
    if delimiter == "\t" or '\\"' not in head:
        return
    between = re.escape(delimiter)
    left = re.sub(r"\\.", "", head)
    all_escaped = not re.search(rf'[^{between}\r\n]"[^{between}\r\n]', left)
    if all_escaped and re.search(rf'\\"[^"{between}\r\n]', head):
        yield Dialect(delimiter, backslash=True)


def _others(head: str, delimiter: str) -> Iterator[Dialect]:
    """Dialects whose marks are there."""
    between = re.escape(delimiter)
    if re.search(rf"(^|{between})'", head, re.MULTILINE):
        yield Dialect(delimiter, "'")
    if '\\"' in head:
        yield Dialect(delimiter, backslash=True)
    cells = re.split(rf"{between}|[\r\n]+", head)
    if delimiter == "\t" and not any(map(Dialect().wraps, cells)):
        yield Dialect(delimiter, quote=None)


def _fits(dialect: Dialect, head: str, *, is_whole: bool) -> bool:
    """Whether every record has as many cells as the first; the last of a part may be cut."""
    counts: list[int] = []
    damaged = False
    records = dialect.reader(iter(_lines(head)))
    while not damaged:
        try:
            counts.append(len(next(records)))
        except StopIteration:
            break
        except csv.Error as error:
            damaged = is_whole or "unexpected end" not in str(error)
            if not damaged:
                return len({n for n in counts if n}) == 1
    counts = [n for n in (counts if is_whole else counts[:-1]) if n]
    return not damaged and len(set(counts)) <= 1


def _lines(head: str) -> Iterable[str]:
    return io.StringIO(head, newline="")
