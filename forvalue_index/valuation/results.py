"""What queries, values and explanations return, as frozen records, and what is said of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from forvalue_index.sources.sample import Sample
from forvalue_index.valuation.scoring import Scoring

# Below this median of 1 - p(label) values say clearly less of what training does: a small model
# that was trained on towards memorising its data lost a third of its LDS (see docs/limits.md).
SATURATED = 0.15


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


def saturation_warnings(masses: Mapping[str, float | None]) -> list[str]:
    """What is said of a model that leaves few errors to value, by whose median label error mass."""
    return [
        f"the model is nearly certain of the labels of the {whose}: in half of them the mean of "
        f"1 - p(label) is below {mass:.2g} (threshold {SATURATED}), so values say less than they "
        "should; use an earlier checkpoint"
        for whose, mass in masses.items()
        if mass is not None and mass < SATURATED
    ]
