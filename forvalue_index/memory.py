"""What to do where memory runs out: the same work on less at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")
# How torch says it where it has no exception of its own for it: on CPUs, and within cuBLAS.
SAID = ("can't allocate memory", "not enough memory", "out of memory", "STATUS_ALLOC_FAILED")


def unless_memory_runs_out(work: Callable[[], Result]) -> Result | None:
    """What `work` gives, or None where there is not the memory for it."""
    try:
        return work()
    except (MemoryError, RuntimeError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not _out_of_memory(error):
            raise
    # Only here, where the error has let go of what the work held.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return None


def _out_of_memory(error: Exception) -> bool:
    known = isinstance(error, MemoryError | torch.OutOfMemoryError)
    return known or any(words in str(error) for words in SAID)
