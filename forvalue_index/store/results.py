"""What reading, compacting and checking an index return, as frozen records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class CalibrationSummary:
    """What rows are calibrated with.

    `error_scale` is per geometry: `noise`, the errors of sketched inner products in units of the
    formula for them, and `relative`, what else they err, in units of the inner products. Of
    `vocab_size` tokens, `damped_tokens` were seen so little that the damping outweighs their own
    mean absolute error: all of these are scaled nearly alike.
    """

    digest: str
    samples: int
    label_tokens: int
    damping: float
    vocab_size: int
    damped_tokens: int
    error_scale: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True)
class SourceSummary:
    """How many live samples came from one source."""

    source: str
    samples: int


@dataclass(frozen=True)
class CatalogSummary:
    """What an index holds.

    `loss` and `label_error_mass` are medians over its live samples, the latter over some 8,000 of
    them at random where there are more. `stopped` are the sources of each `add` that did not reach
    its end.
    """

    samples: int
    removed: int
    segments: int
    bytes: int
    sources: tuple[SourceSummary, ...]
    loss: float | None
    label_error_mass: float | None
    stopped: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class CompactReport:
    """What one `compact` did: segments and bytes of segments before and after."""

    segments_before: int
    segments_after: int
    bytes_before: int
    bytes_after: int
    dropped: int


@dataclass(frozen=True)
class Finding:
    """Something wrong with an index: its kind, where and what it is, and what to do about it.

    `samples` are the keys of those that it concerns, where they are known.
    """

    kind: str
    what: str
    cure: str
    repaired: bool = False
    samples: tuple[str, ...] = ()


@dataclass(frozen=True)
class CheckReport:
    """What one `check` looked at, and what it found."""

    segments: int
    samples: int
    findings: tuple[Finding, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong, or no longer."""
        return all(finding.repaired for finding in self.findings)
