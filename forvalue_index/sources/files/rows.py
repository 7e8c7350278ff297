"""What readers make of data: numbered rows, and where those come from."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import Any

from pyarrow import ArrowException

from forvalue_index.exceptions import BadSampleError, ForValueError, SourceError
from forvalue_index.sources.cell_values import JSON
from forvalue_index.sources.shapes.conventions import find_columns

# Position, row and, where a reader can go back to it, the offset of its line in bytes.
Rows = Iterator[tuple[int, Any] | tuple[int, Any, int]]
# Field -> column, as the user maps them.
Columns = Mapping[str, str]
DAMAGE = (OSError, EOFError, ValueError, RecursionError, zlib.error, LZMAError, ArrowException)


@dataclass(frozen=True)
class Unreadable:
    """What a reader yields in place of a row that its format does not allow."""

    reason: str
    raw: Any = None


@dataclass(frozen=True)
class DataSet:
    """One data set: what it is called, and what reads its rows.

    `path` is where it lies on this machine, `images` where paths of its images count from, and
    `origin` where its cells come from.
    """

    name: str
    read: Callable[[Columns], Rows]
    path: Path | None = None
    images: Path | None = None
    origin: str = JSON
    rereadable: bool = True


def is_recognised(names: tuple[str, ...], columns: Columns) -> bool:
    """Whether columns with these names make a sample."""
    return why_unrecognised(names, columns) is None


def why_unrecognised(names: tuple[str, ...], columns: Columns) -> str | None:
    """Why columns with these names make no sample, or None where they do."""
    try:
        find_columns(names, tuple(columns.items()))
    except BadSampleError as error:
        return str(error)
    return None


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever a file system or a file format raises into one SourceError."""
    try:
        yield
    except DAMAGE as error:
        raise _unreadable(name, error, "check the file") from error


@contextmanager
def reachable(name: str) -> Iterator[None]:
    """The same for what lies elsewhere: each library of a protocol has errors of its own."""
    try:
        yield
    except ForValueError:
        raise
    except Exception as error:
        advice = "check the address, the network and your rights"
        cause = error.__cause__
        if isinstance(error, FileNotFoundError):
            if cause is None or getattr(cause, "status", None) == 404:
                raise SourceError(f"{name} does not exist: check the address") from error
            raise _unreadable(name, f"{type(cause).__name__}: {cause}", advice) from error
        known = isinstance(error, DAMAGE)
        said = error if known else f"{type(error).__name__}: {error}"
        raise _unreadable(name, said, advice) from error


def _unreadable(name: str, error: Exception | str, advice: str) -> SourceError:
    said = getattr(error, "strerror", None) or " ".join(str(error).split())
    reason = said or type(error).__name__
    return SourceError(f"{name} cannot be read: {reason.rstrip('.')}; {advice}")
