"""What the use-cases return, as frozen records. Nothing here reads a file or a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Sample


@dataclass(frozen=True)
class ScoredSample:
    """One answer of a query. `stderr` is 0 and `exact` true where the score is not sketched."""

    rank: int
    id: int
    score: float
    stderr: float
    exact: bool
    sample: Sample


@dataclass(frozen=True)
class ValidationResult:
    """The answers for one validation sample alone; `validation` counts from 0 in input order."""

    validation: int
    helpful: tuple[ScoredSample, ...]
    harmful: tuple[ScoredSample, ...]


@dataclass(frozen=True)
class QueryResult:
    """What a validation set says about the indexed samples. `seconds` are wall-clock."""

    index: str
    fingerprint: str
    index_version: int
    geometry: str
    validation_samples: int
    validation_label_tokens: int
    searched: int
    helpful: tuple[ScoredSample, ...]
    harmful: tuple[ScoredSample, ...]
    per_sample: tuple[ValidationResult, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Values:
    """A score for every live sample: parallel arrays in order of id."""

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    stderrs: NDArray[np.float32]


@dataclass(frozen=True)
class AddReport:
    """What one `add` did. Each row read was added, restored, known or rejected.

    Restored samples had been removed. Of the known ones, `updated` have new metadata.
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
    """Something wrong with an index: its kind, where and what it is, and what to do about it."""

    kind: str
    what: str
    cure: str
    repaired: bool = False


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
