"""Files that are there whole or not at all, whenever the machine stops.

And changes that no Ctrl-C leaves half done.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# What a name is that a file has until it is whole; in versions before, there was no number.
_PARTIAL = re.compile(r"(.+?)(\.[0-9a-f]{32})?\.partial", re.DOTALL)
# Characters of a name that a partial file begins with: more might be too long for a file system.
_MOST_OF_NAME = 50


def whole_name(name: str) -> str | None:
    """The name that a file would have got, where it was left when it was half written."""
    match = _PARTIAL.fullmatch(name)
    return match[1] if match else None


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """An empty file to write to, which gets the name `path` when it is whole.

    Where it fails, nothing of it is left, and what was at `path` is as it was. Nobody can foresee
    its name, and have a link there that would be followed.
    """
    number = uuid.uuid4().hex
    partial = path.with_name(f"{path.name[:_MOST_OF_NAME]}.{number}.partial")
    try:
        partial.touch(exist_ok=False)
        yield partial
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink()
        raise


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that, whenever the machine stops, it is there whole or not at all."""
    try:
        with replacing(path) as partial, partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)  # a write does not know it, and a user must
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C wait until a change is whole: half done, the work in it would be lost."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)
