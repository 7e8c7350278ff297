"""One step of a long task, and who wants to know of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of a long task; `total` is None where it cannot be known beforehand."""

    stage: str
    done: int
    total: int | None = None
    tokens: int = 0


OnProgress = Callable[[Progress], None]


def ignore_progress(progress: Progress) -> None:
    """Report nothing."""
