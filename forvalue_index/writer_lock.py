"""One writer at a time: a lock that the operating system lets go of when its holder dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from forvalue_index.contracts import OnProgress, ignore_progress
from forvalue_index.exceptions import BusyIndexError
from forvalue_index.records import Progress

LOCK = "writer.lock"
POLL_S = 0.1
REPORT_S = 1.0


@contextmanager
def writer_lock(
    index: Path, *, wait: bool = False, on_progress: OnProgress = ignore_progress
) -> Iterator[None]:
    """Be the one writer of an index directory while the context lasts.

    Raises:
        BusyIndexError: another process writes and `wait` is false; the message names it.
    """
    path = index / LOCK
    lock = FileLock(path, thread_local=False)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if not wait:
            raise BusyIndexError(
                f"{index} is being written to by {_holder(path)}. Wait for it to finish, or give "
                "--wait"
            ) from None
        while not lock.is_locked:
            on_progress(Progress("waiting", 0, 1))
            with suppress(Timeout):
                lock.acquire(timeout=REPORT_S, poll_interval=POLL_S)
        on_progress(Progress("waiting", 1, 1))
    try:
        # Into the locked file itself: what a dead writer leaves in it is never asked for.
        since = datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
        with suppress(OSError):  # on a full disk; it is a help to others, no more
            path.write_text(json.dumps(holder) + "\n", "utf-8")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has only just begun"
