"""What is done about bad rows: `add` ends at the first, or writes them to a file of the index."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.ingest.notices import Reasons
from forvalue_index.sources.cell_values import storable
from forvalue_index.sources.images import DATA_URL
from forvalue_index.sources.sample import BadRow

OnBadRow = Callable[[BadRow], None]


def refuse_bad_row(row: BadRow) -> None:
    """End `add`, saying which row is bad and why."""
    raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")


def ignore_bad_row(row: BadRow) -> None:
    """Leave it out; what is checked is read again, and written down then."""


class Rejects:
    """The rows that were left out, with the reasons: a JSONL file, made with the first of them."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"
        self._file: IO[str] | None = None
        self.count = 0
        self.reasons = Reasons()

    @property
    def path(self) -> str | None:
        """The file, or None while there is none."""
        return None if self._file is None else str(self._path)

    def write(self, row: BadRow) -> None:
        """Append one row."""
        if self._file is None:
            self._path.parent.mkdir(exist_ok=True)
            self._file = self._path.open("x", encoding="utf-8")
        entry = {"source": row.source, "position": row.position, "reason": row.reason}
        self._file.write(json.dumps({**entry, "row": row.raw}, default=_cell) + "\n")
        self.count += 1
        self.reasons.count(row.reason)

    def close(self) -> None:
        """Close the file, if there is one."""
        if self._file is not None:
            self._file.close()


def _cell(value: Any) -> Any:
    """What JSON can hold of a cell; images as `add` reads them again."""
    if isinstance(value, bytes) and not _is_text(value):
        return f"{DATA_URL};base64,{base64.b64encode(value).decode()}"
    return storable(value)


def _is_text(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
