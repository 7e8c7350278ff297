"""Does one training step on what is said to help make a validation set likelier, and vice versa?

The tail-patch of TrackStar (arXiv 2410.17413): from the same weights, one optimiser step on one
training sample alone, and the change of the validation set's log-likelihood. The step is AdamW's
first, as in fine-tuning; all weights take part, not the head alone that values are made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.evaluation.evidence import EvaluationData, Evidence, gather, warned
from forvalue_index.evaluation.metrics import difference_interval, mean_interval
from forvalue_index.evaluation.results import TailPatch, TailPatchResult
from forvalue_index.evaluation.training import (
    Recipe,
    fine_tune,
    mean_losses,
    precision_warnings,
    trainable,
)
from forvalue_index.exceptions import UsageError
from forvalue_index.index import ValuationIndex
from forvalue_index.progress import Progress
from forvalue_index.sources.sample import Sample

RANDOM = "random"


def evaluate_tail_patch(
    index: ValuationIndex,
    wanted: EvaluationData,
    *,
    k: int = 10,
    learning_rate: float = 1e-5,
) -> TailPatchResult:
    """Train one step on each of the k best samples of each method, the k worst, and k at random.

    The gain is the change of the validation set's mean log-likelihood of a label token, in nats,
    averaged over its samples.

    Raises:
        UsageError: there are fewer than 2 k training samples, k is below 2, or the learning rate
            is not above 0.
        ModelError: a step gives losses that are no numbers.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    if k < 2:
        raise UsageError(f"--top is {k}; use at least 2 samples, or nothing can be compared")
    recipe = Recipe(epochs=1, learning_rate=learning_rate, batch_samples=1)

    def check(training: Sequence[Sample], _validation: Sequence[Sample]) -> None:
        if 2 * k > len(training):
            raise UsageError(
                f"--top is {k}, and {len(training):,} training samples have no {k} best and {k} "
                f"others that are worst; use at most {len(training) // 2}"
            )

    evidence = gather(index, wanted, check=check)
    chosen = _chosen(evidence, k, wanted.seed)
    positions = sorted({i for group in chosen.values() for i in group})
    gains = _gains(index, evidence, positions, recipe)
    by_group = {name: np.array([gains[i] for i in group]) for name, group in chosen.items()}
    return TailPatchResult(
        evaluated=warned(evidence.evaluated, precision_warnings(index.model.backbone, recipe)),
        k=k,
        learning_rate=learning_rate,
        random=mean_interval(by_group[RANDOM]),
        methods=tuple(_compared(name, by_group) for name in evidence.scores),
    )


def _chosen(evidence: Evidence, k: int, seed: int) -> Mapping[str, Sequence[int]]:
    """Positions of the samples of each group; the same random ones for all methods."""
    groups: dict[str, Sequence[int]] = {}
    for name, scores in evidence.scores.items():
        order = np.argsort(-scores.mean(axis=0), kind="stable").tolist()
        groups |= {_top(name): order[:k], _bottom(name): order[: -k - 1 : -1]}
    drawn = np.random.default_rng(seed).choice(len(evidence.training), k, replace=False)
    return groups | {RANDOM: drawn.tolist()}


def _gains(
    index: ValuationIndex, evidence: Evidence, positions: Sequence[int], recipe: Recipe
) -> dict[int, float]:
    backbone = index.model.backbone
    validation = [p.encoded for p in evidence.validation]
    before = float(mean_losses(backbone, validation).mean())
    gains = {}
    for done, position in enumerate(positions, 1):
        with trainable(backbone) as parameters:
            sample = evidence.training[position].encoded
            fine_tune(backbone, parameters, [sample], recipe, seed=0)
            gains[position] = before - float(mean_losses(backbone, validation).mean())
        index.model.on_progress(Progress("patching", done, len(positions)))
    return gains


def _compared(name: str, gains: Mapping[str, NDArray[np.float64]]) -> TailPatch:
    top, bottom, random = gains[_top(name)], gains[_bottom(name)], gains[RANDOM]
    return TailPatch(
        method=name,
        top=mean_interval(top),
        bottom=mean_interval(bottom),
        top_over_random=difference_interval(top, random),
        random_over_bottom=difference_interval(random, bottom),
    )


def _top(name: str) -> str:
    return f"top {name}"


def _bottom(name: str) -> str:
    return f"bottom {name}"
