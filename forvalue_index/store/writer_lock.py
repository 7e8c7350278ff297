"""One writer at a time: a lock that the operating system lets go of when its holder dies."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout

from forvalue_index.exceptions import BusyIndexError, ReadOnlyIndexError
from forvalue_index.progress import OnProgress, Progress, ignore_progress

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
        ReadOnlyIndexError: the directory cannot be written to.
    """
    path = index / LOCK
    lock = FileLock(path, thread_local=False)
    try:
        _acquire(lock, timeout_s=0.0)
    except Timeout:
        if not wait:
            raise BusyIndexError(
                f"{index} is being written to by {_holder(path)}. Wait for it to finish, or give "
                "--wait"
            ) from None
        while not lock.is_locked:
            on_progress(Progress("waiting", 0, 1))
            with suppress(Timeout):
                _acquire(lock, timeout_s=REPORT_S)
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


def _acquire(lock: FileLock, *, timeout_s: float) -> None:
    try:
        lock.acquire(timeout=timeout_s, poll_interval=POLL_S)
    except Timeout:  # an OSError, too
        raise
    except OSError as error:
        raise ReadOnlyIndexError(
            f"{Path(lock.lock_file).parent} cannot be written to ({error.strerror}). See to the "
            "rights to it, or copy the index to where you may write"
        ) from error


def _holder(path: Path) -> str:
    try:
        holder = json.loads(path.read_text("utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process, which has only just begun"
