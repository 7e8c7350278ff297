"""What of an index may be read: files that one has the right to, and that are files.

An index may come from a stranger: a pipe in place of a file is waited for for ever, and a device or
a huge file fills the memory.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

# Documents hold settings, a chat template and numbers: a hundredth of this is much.
MOST_DOCUMENT_BYTES = 64 * 2**20


class StrangeFileError(OSError):
    """Something lies where a file belongs, and is none, or is far too large."""


def is_unreadable(path: Path) -> bool:
    """Whether the right to read a file is lacking."""
    # Not by opening it: to close a database would let go of all locks of this process on it.
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK)


def refuse_strange_file(path: Path) -> None:
    """Raise StrangeFileError unless a regular file lies here; nothing may, too."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISREG(mode):
        raise StrangeFileError(f"{path} is no file")


def read_document(path: Path) -> Any:
    """What a file of JSON holds.

    Raises ValueError where it is no JSON, or nested too deep, and as `read_text`.
    """
    return parsed_document(read_text(path))


def read_text(path: Path) -> str:
    """What a file of UTF-8 holds.

    Raises:
        OSError: it cannot be read, is no regular file or is far too large.
        UnicodeDecodeError: it is no UTF-8.
    """
    # Not to wait where it is a pipe.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:  # noqa: PTH123
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise StrangeFileError(f"{path} is no file")
        if facts.st_size > MOST_DOCUMENT_BYTES:
            raise StrangeFileError(f"{path} has {facts.st_size:,} bytes, far more than it needs")
        content = file.read(MOST_DOCUMENT_BYTES)
    return content.decode("utf-8")


def parsed_document(text: str) -> Any:
    """What JSON holds. Raises ValueError where it is none, or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deep") from error
