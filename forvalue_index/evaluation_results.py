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
