"""What rows brought that no model reads, and why rows were rejected: counted, to be said once."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from forvalue_index.model.encoded import Encoded
from forvalue_index.sources.sample import Sample

# Reasons differ in what they quote and count. Of more kinds than these only the number is kept.
QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"|\b\d[\d,.]*")
MOST_REASONS = 100
OTHER_REASONS = "other reasons"


@dataclass
class Notices:
    """Of rows: how many have a column, or a field of a turn, that is not read.

    `unread` are columns that are metadata alone, `unrendered` fields of turns that the chat
    template passes over, in new samples. `cut` counts conversations that do not end with the
    assistant, whose last turns were left out.
    """

    unread: Counter[str] = field(default_factory=Counter)
    unrendered: Counter[str] = field(default_factory=Counter)
    cut: int = 0

    def notice(self, sample: Sample) -> None:
        """Count what a row has that is not read."""
        self.unread.update(sample.unread)
        self.cut += sample.cut_turns > 0

    def notice_encoded(self, encoded: Encoded) -> None:
        """Count what the template passes over of a new sample."""
        self.unrendered.update(set(encoded.unrendered))

    def add(self, other: Notices) -> None:
        """Count what others counted, too."""
        self.unread += other.unread
        self.unrendered += other.unrendered
        self.cut += other.cut


class Reasons:
    """How many rows were rejected, by the kind of reason."""

    def __init__(self) -> None:
        self._kinds: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def count(self, reason: str) -> None:
        """Count a reason, without its advice and without what it quotes."""
        reason = reason.partition(";")[0]
        kind = QUOTED.sub("…", reason)
        if kind not in self._kinds and len(self._kinds) >= MOST_REASONS:
            reason = kind = OTHER_REASONS
        self._kinds[kind] += 1
        self._first.setdefault(kind, reason)

    @property
    def counts(self) -> Counter[str]:
        """Rows by what their reasons have in common; one that stands alone is said whole."""
        return Counter({self._first[k] if n == 1 else k: n for k, n in self._kinds.items()})
