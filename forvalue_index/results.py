"""What the use-cases return, as frozen records. Nothing here reads a file or a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import Sample

# Below this median of 1 - p(label) values say clearly less of what training does: a small model
# that was trained on towards memorising its data lost a third of its LDS (see README, Limits).
SATURATED = 0.15


@dataclass(frozen=True)
class Scoring:
    """What a score is: the inner product in a geometry, or a cosine where normalised.

    A whitened query is multiplied by (R + L I)^-1 in the space of rows, see `whitening`. `search`
    is the kind of index that candidates come from; None chooses one by the number of rows.
    """

    geometry: str = "raw"
    normalize: bool = False
    whiten: bool = False
    search: str | None = None


@dataclass(frozen=True)
class TuneTrial:
    """One way to search codes: `refine` candidates for each answer, `probes` lists of them.

    `top` and `bottom` are the recall at the helpful and the harmful end; `seconds` a query.
    """

    refine: int
    probes: int | None
    top: float
    bottom: float
    seconds: float


@dataclass(frozen=True)
class TuneReport:
    """What `tune` tried on `queries` rows of an index for `answers` answers, and what it keeps."""

    search: str
    geometry: str
    normalized: bool
    rows: int
    queries: int
    answers: int
    recall: float
    trials: tuple[TuneTrial, ...]
    chosen: TuneTrial | None


@dataclass(frozen=True)
class ScoredSample:
    """One answer of a query. `stderr` is 0 and `exact` true where the score is not sketched.

    There is no `stderr` where there is no exact score to err from, as with whitened queries.
    """

    rank: int
    id: int
    score: float
    stderr: float | None
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
    """What a validation set says about the indexed samples.

    `reranked` samples were scored exactly; only these are among the answers, where there are any.
    `seconds` are wall-clock. `label_error_mass` is the median of 1 - p(label) of the validation
    set, `index_error_mass` that of the index. `search` is the kind of index that was searched, for
    samples that meet `where`.
    """

    index: str
    fingerprint: str
    index_version: int
    validation_samples: int
    validation_label_tokens: int
    searched: int
    helpful: tuple[ScoredSample, ...]
    harmful: tuple[ScoredSample, ...]
    per_sample: tuple[ValidationResult, ...] = ()
    scoring: Scoring = field(default_factory=Scoring)
    search: str = "flat"
    where: str | None = None
    reranked: int = 0
    label_error_mass: float | None = None
    index_error_mass: float | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Values:
    """A score for every live sample: parallel arrays in order of id.

    Standard errors are 0 where scores are exact, and NaN where there is none.
    """

    ids: NDArray[np.int64]
    scores: NDArray[np.float32]
    stderrs: NDArray[np.float32]


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
class TokenTerm:
    """One token and what it adds to a score: 0 where it is no label that counts.

    `text` is what it adds to the text before it; `loss` in nats is None where it is no label. The
    tokens of image number `image` of the sample are one of these, at the position of the first.
    """

    position: int
    token: int
    text: str
    term: float = 0.0
    loss: float | None = None
    image: int | None = None


@dataclass(frozen=True)
class ExplainedSample:
    """The tokens of one sample; their terms sum to `score`, its part of the whole."""

    sample: Sample
    score: float
    tokens: tuple[TokenTerm, ...]

    @property
    def largest(self) -> float:
        """The largest absolute term."""
        return max((abs(token.term) for token in self.tokens), default=0.0)

    def strongest(self, count: int) -> list[TokenTerm]:
        """The label tokens of largest absolute terms, strongest first."""
        labels = [token for token in self.tokens if token.loss is not None]
        return sorted(labels, key=lambda token: -abs(token.term))[:count]


@dataclass(frozen=True)
class Explanation:
    """The exact score of training sample `id` for a validation set, token by token.

    `validation` splits the same score over the validation samples, where that was asked for.
    """

    id: int
    scoring: Scoring
    training: ExplainedSample
    validation_samples: int
    validation_label_tokens: int
    validation: tuple[ExplainedSample, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def score(self) -> float:
        """The sum of all terms."""
        return self.training.score


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
