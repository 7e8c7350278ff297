"""Counts of one `add`, while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass
class Tally:
    """Counts of one `add` while it runs."""

    read: int = 0
    added: int = 0
    restored: int = 0
    known: int = 0
    updated: int = 0
    truncated: int = 0
    label_tokens: int = 0
    tokens: int = 0
    segments: int = 0
    forward_s: float = 0.0


@dataclass(frozen=True)
class AddReport:
    """What one `add` did. Each row read was added, restored, known or rejected.

    Restored samples had been removed. Of the known ones, `updated` have new
    metadata, or images that lie elsewhere.
    `rejected_file` holds the rows that were skipped, if any.
    """

    read: int
    added: int
    restored: int
    known: int
    updated: int
    rejected: int
    truncated: int
    label_tokens: int
    tokens: int
    segments: int
    seconds: Mapping[str, float]
    rejected_file: str | None = None
