"""Counts of one `add`, while it runs and when it is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from forvalue_index.ingest.notices import Notices

# How many rows that repeat others with other metadata are named.
MOST_EXAMPLES = 5


@dataclass(frozen=True)
class Repeat:
    """A row, as file:line, the earlier one of equal content and key, and metadata that differs."""

    row: str
    repeats: str
    metadata: Mapping[str, Any]


@dataclass
class Tally:
    """Counts of one `add` while it runs."""

    read: int = 0
    added: int = 0
    relabelled: int = 0
    restored: int = 0
    known: int = 0
    updated: int = 0
    duplicates: int = 0
    differing: int = 0
    truncated: int = 0
    label_tokens: int = 0
    tokens: int = 0
    segments: int = 0
    forward_s: float = 0.0
    examples: list[Repeat] = field(default_factory=list)
    notices: Notices = field(default_factory=Notices)


@dataclass(frozen=True)
class AddReport:
    """What one `add` did. Each row read was added, restored, known, a duplicate or rejected.

    Of the added ones, `relabelled` take the place of samples that were read or labelled otherwise.
    Restored samples had been removed. Known ones were in the index before; of these, `updated`
    have new metadata, or images that lie elsewhere. Duplicates repeat an earlier row of this
    `add`, `differing` of them with other metadata, of which the last counts; `examples` are the
    first of these. `rejected_file` holds the rows that were skipped, if any, and `reasons` counts
    them by what their reasons have in common.

    `unread` counts rows by columns of text, or of what prompts are made of, that are metadata
    alone; `unrendered` new samples by fields of turns that the chat template passes over; `cut`
    conversations that do not end with the assistant, and count up to its last turn.
    """

    read: int
    added: int
    relabelled: int
    restored: int
    known: int
    updated: int
    duplicates: int
    differing: int
    rejected: int
    truncated: int
    label_tokens: int
    tokens: int
    segments: int
    seconds: Mapping[str, float]
    examples: Sequence[Repeat] = ()
    unread: Mapping[str, int] = field(default_factory=dict)
    unrendered: Mapping[str, int] = field(default_factory=dict)
    cut: int = 0
    reasons: Mapping[str, int] = field(default_factory=dict)
    rejected_file: str | None = None
