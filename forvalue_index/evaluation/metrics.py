"""Measures of an evaluation, from arrays of numbers. The home of scikit-learn and SciPy.

Samples with equal scores are in no order. Measures that need one take its expectation over all
orders of them, so that a method that gives many zeros is neither helped nor hurt by its luck.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.evaluation.results import Estimate
from forvalue_index.exceptions import UsageError, evaluation_extra

with evaluation_extra():
    from scipy import stats
    from sklearn.metrics import roc_auc_score

Numbers = NDArray[np.floating[Any]]
Marks = NDArray[np.bool_]

CONFIDENCE = 0.95
MEAN_RESAMPLES = 10_000
AUC_RESAMPLES = 1_000
# Resamples held in memory at a time are so many numbers at most.
RESAMPLED_NUMBERS = 4_000_000


class DetectionCurve(NamedTuple):
    """Shares, from 0 to 1: of all samples that are inspected, and of the flagged ones found by it.

    Points [point] are joined by straight lines; both arrays rise from 0 to 1.
    """

    inspected: Numbers
    found: Numbers

    def found_at(self, inspected: float | Numbers) -> Numbers:
        """The share of flagged samples that is found once a share of all is inspected."""
        return np.asarray(np.interp(inspected, self.inspected, self.found))


def auc(scores: Numbers, positive: Marks) -> float:
    """How often a positive sample scores above a negative one; equal scores count one half.

    Args:
        scores: [sample], larger is more positive.
        positive: [sample].

    Raises:
        UsageError: all samples are positive, or none is, or a score is undefined.
    """
    _refuse_unusable(scores, positive)
    return float(roc_auc_score(positive, scores))


def auc_interval(
    scores: Numbers, positive: Marks, *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """`auc` with its bootstrap interval over samples, positive and negative ones drawn apart.

    The ends are None where there is one positive or one negative sample. Raises as `auc` does.
    """
    value = auc(scores, positive)
    parts = scores[positive], scores[~positive]
    if min(map(len, parts)) < 2:
        return Estimate(value, None, None)
    low, high = _bootstrap_interval(
        parts, _auc_of_parts, AUC_RESAMPLES, seed=seed, confidence=confidence
    )
    return Estimate(value, low, high)


def recall_at_class_size(scores: Numbers, positive: Marks) -> float:
    """Share of the n best-scored samples that are positive, n being how many positive ones are.

    Raises as `auc` does.
    """
    _refuse_unusable(scores, positive)
    size = int(positive.sum())
    last = np.partition(scores, -size)[-size]
    above, tied = scores > last, scores == last
    # The ranks that are left go to as many of the tied samples, drawn at random.
    left = size - int(above.sum())
    expected = left * float((tied & positive).sum()) / float(tied.sum())
    return (float((above & positive).sum()) + expected) / size


def detection_curve(values: Numbers, flagged: Marks) -> DetectionCurve:
    """What inspecting samples finds, those with the lowest values first.

    Samples of equal value lie on one straight line: the expectation over their orders. Raises as
    `auc` does.
    """
    _refuse_unusable(values, flagged)
    _, group = np.unique(values, return_inverse=True)
    sizes = np.bincount(group)
    hits = np.bincount(group, weights=flagged)
    inspected = np.concatenate([[0.0], np.cumsum(sizes) / len(values)])
    found = np.concatenate([[0.0], np.cumsum(hits) / hits.sum()])
    return DetectionCurve(inspected, found)


def spearman(a: Numbers, b: Numbers) -> float:
    """Rank correlation of two arrays [sample]; NaN where one of them is constant.

    Raises UsageError for arrays of unequal length, or of fewer than two numbers.
    """
    if a.shape != b.shape or len(a) < 2:
        raise UsageError(
            f"a rank correlation needs two arrays of one length, 2 or more; not {a.shape} and "
            f"{b.shape}"
        )
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(stats.spearmanr(a, b).statistic)


def share_kept(
    exact: Numbers, approximate: Numbers, k: int, *, candidates: int | None = None
) -> float:
    """Share of the `k` best by `exact` [sample] among the `candidates` (or k) best by the other.

    For the k worst pass both negated. Equal scores go by position, as a search gives them. Raises
    UsageError where there are fewer than k samples.
    """
    if exact.shape != approximate.shape or not 1 <= k <= len(exact):
        raise UsageError(
            f"the {k} best of {exact.shape} and {approximate.shape} scores cannot be compared; "
            "choose from 1 to the number of samples"
        )
    return len(np.intersect1d(_best(exact, k), _best(approximate, candidates or k))) / k


def mean_interval(values: Numbers, *, seed: int = 0, confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent values [observation] with its bootstrap percentile interval.

    The ends are None where there is one value alone. Raises UsageError where there is none.
    """
    if len(values) == 0:
        raise UsageError("there is no mean of nothing; give at least one value")
    mean = float(np.mean(values))
    if len(values) < 2:
        return Estimate(mean, None, None)
    low, high = _bootstrap_interval(
        (values,), np.mean, MEAN_RESAMPLES, seed=seed, confidence=confidence
    )
    return Estimate(mean, low, high)


def difference_interval(
    a: Numbers, b: Numbers, *, seed: int = 0, confidence: float = CONFIDENCE
) -> Estimate:
    """The mean of `a` minus that of `b`, two independent samples, with its bootstrap interval.

    The ends are None where one of them has one value alone. Raises UsageError where one is empty.
    """
    if min(len(a), len(b)) == 0:
        raise UsageError("there is no mean of nothing; give at least one value of either kind")
    value = float(np.mean(a) - np.mean(b))
    if min(len(a), len(b)) < 2:
        return Estimate(value, None, None)
    low, high = _bootstrap_interval(
        (a, b), _mean_difference, MEAN_RESAMPLES, seed=seed, confidence=confidence
    )
    return Estimate(value, low, high)


def _bootstrap_interval(
    parts: Sequence[Numbers],
    statistic: Callable[..., Any],
    n_resamples: int,
    *,
    seed: int,
    confidence: float,
) -> tuple[float, float]:
    """The percentile interval of a statistic over samples, each drawn apart."""
    interval = stats.bootstrap(
        parts,
        statistic,
        vectorized=True,
        n_resamples=n_resamples,
        batch=_batch(sum(map(len, parts))),
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)


def _mean_difference(a: Numbers, b: Numbers, axis: int = -1) -> Any:
    return np.mean(a, axis=axis) - np.mean(b, axis=axis)


def _auc_of_parts(positive: Numbers, negative: Numbers, axis: int = -1) -> Numbers:
    """`auc` along the last axis, by ranks (Mann and Whitney)."""
    n_positive, n_negative = positive.shape[axis], negative.shape[axis]
    together = np.concatenate([positive, negative], axis=axis)
    ranks = stats.rankdata(together, axis=axis)[..., :n_positive].sum(axis=axis)
    above = ranks - n_positive * (n_positive + 1) / 2
    return np.asarray(above / (n_positive * n_negative))


def _batch(size: int) -> int:
    return max(1, RESAMPLED_NUMBERS // size)


def _best(scores: Numbers, k: int) -> NDArray[np.int64]:
    best: NDArray[np.int64] = np.argsort(-scores, kind="stable")[:k]
    return best


def _refuse_unusable(scores: Numbers, positive: Marks) -> None:
    if scores.shape != positive.shape or scores.ndim != 1:
        raise UsageError(f"{scores.shape} scores do not fit {positive.shape} marks")
    if not np.isfinite(scores).all():
        raise UsageError(
            f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are infinite or "
            "undefined; find out where they come from"
        )
    marked = int(positive.sum())
    if marked in (0, len(positive)):
        raise UsageError(
            f"{marked} of {len(positive)} samples are marked; there is something to tell apart "
            "only where some are and some are not"
        )
