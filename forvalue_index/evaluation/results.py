"""What the evaluations return, as frozen records. Nothing here reads a file or a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number and its bootstrap confidence interval.

    `low` and `high` are None where too little was observed to tell.
    """

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Evaluated:
    """What was evaluated: an index, the training samples taken from it, and a validation set.

    `labels` are the tokens that rows of the index stand for. `seconds` are wall-clock.
    """

    index: str
    fingerprint: str
    index_version: int
    labels: str
    training_samples: int
    validation_samples: int
    seconds: Mapping[str, float]
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Retrieval:
    """How one method finds the training samples of a validation sample's class.

    Means over validation samples, and standard deviations over them.
    """

    method: str
    auc: Estimate
    auc_std: float
    recall: Estimate
    recall_std: float


@dataclass(frozen=True)
class RetrievalResult:
    """How each method retrieves classes; `chance` is the mean recall of guessing."""

    evaluated: Evaluated
    label: str
    classes: int
    chance: float
    methods: tuple[Retrieval, ...]
    remark: str


@dataclass(frozen=True)
class Detection:
    """How one method finds flagged samples when those that look worst are inspected first.

    `rule` says what looks bad to it. `found` are shares of the flagged samples, one for each of
    the result's `inspected` shares; `curve` likewise for its `curve_inspected`.
    """

    method: str
    rule: str
    auc: Estimate
    found: tuple[float, ...]
    curve: tuple[float, ...]


@dataclass(frozen=True)
class MislabeledResult:
    """How each method finds flagged training samples.

    `base_rate` is the share of flagged ones: inspecting at random finds as much as it inspects.
    `output` is the file that the curves were drawn to.
    """

    evaluated: Evaluated
    flag: str
    label: str | None
    flagged: int
    base_rate: float
    inspected: tuple[float, ...]
    curve_inspected: tuple[float, ...]
    methods: tuple[Detection, ...]
    remark: str
    output: str | None = None


@dataclass(frozen=True)
class Fidelity:
    """How scores of one method agree with exact ones of `reference`.

    Rank correlations for the mean of the validation set and over its samples, 0 where scores are
    all equal. `top_kept` is the share of the exact top that is among as many by the method,
    `top_reranked` of those among its candidates; `bottom_...` likewise from the harmful end.
    `error_over_stderr` is the root mean square of errors in units of that of the standard errors
    that are printed, `within_two_stderrs` the share of errors of at most two of them; None where
    there are none.
    """

    method: str
    reference: str
    mean_rank_correlation: float
    rank_correlation: Estimate
    top_kept: float
    bottom_kept: float
    top_reranked: float
    bottom_reranked: float
    error_over_stderr: float | None
    within_two_stderrs: float | None


@dataclass(frozen=True)
class FidelityResult:
    """Agreement with exact scores; shares are of the exact `k`, among `candidates`."""

    evaluated: Evaluated
    k: int
    candidates: int
    rows: tuple[Fidelity, ...]


@dataclass(frozen=True)
class TailPatch:
    """Gains in nats a label token of the validation set after one step on samples of a method.

    `top_over_random` and `random_over_bottom` are differences of means: above 0 where the method
    knows what helps, and what hurts.
    """

    method: str
    top: Estimate
    bottom: Estimate
    top_over_random: Estimate
    random_over_bottom: Estimate


@dataclass(frozen=True)
class TailPatchResult:
    """What single steps do; `random` is the gain of samples at random."""

    evaluated: Evaluated
    k: int
    learning_rate: float
    random: Estimate
    methods: tuple[TailPatch, ...]


@dataclass(frozen=True)
class Lds:
    """The linear datamodelling score of one method; `kind` is sketched, exact or empty."""

    method: str
    kind: str
    score: Estimate


@dataclass(frozen=True)
class LdsResult:
    """What retraining says. `spread` is the standard deviation of a loss over halves, in nats."""

    evaluated: Evaluated
    subsets: int
    recipe: Mapping[str, float | int | None]
    spread: float
    methods: tuple[Lds, ...]
