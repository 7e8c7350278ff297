"""Several threads at work: on the next item while the caller has one, or on many items at once."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
# Each thread may hold an image of the largest size that is decoded.
MOST_THREADS = 16


def prefetched(items: Iterator[Item]) -> Generator[Item]:
    """The same items; a thread makes the next one while the caller works on one.

    What `items` raises is raised in its turn. Closing it waits for the item in the making.
    """
    end = object()
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, items, end)
        while (item := coming.result()) is not end:
            coming = thread.submit(next, items, end)
            yield item  # type: ignore[misc]  # not the end


def parallel_map(function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
    """What a function makes of each item, in order; for functions that let other threads work.

    What it raises of the first item that it fails at is raised once no thread is at work.
    """
    if len(items) < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(min(len(items), n_threads())) as threads:
        return list(threads.map(function, items))


def n_threads() -> int:
    """As many as this process may use processors, up to MOST_THREADS."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on macOS and Windows
    usable = len(affinity(0)) if affinity else os.cpu_count() or 1
    return min(usable, MOST_THREADS)
