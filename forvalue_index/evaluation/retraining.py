"""The linear datamodelling score of an index: its model is fine-tuned on halves of its samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from forvalue_index.evaluation.evidence import EvaluationData, gather
from forvalue_index.evaluation.lds import (
    LdsResult,
    linear_datamodelling_score,
    random_halves,
    subset_losses,
)
from forvalue_index.evaluation_results import Estimate, Lds, LdsEvaluation
from forvalue_index.index import ValuationIndex
from forvalue_index.records import Sample
from forvalue_index.training import Recipe, fine_tune, mean_losses, trainable

DIRECTORY = "lds"


def evaluate_lds(
    index: ValuationIndex,
    wanted: EvaluationData,
    *,
    subsets: int,
    recipe: Recipe,
    directory: Path | None = None,
) -> LdsEvaluation:
    """Fine-tune on random halves, and compare what happens with what values foresee.

    Losses are kept in `directory`, by default in the index: a run that was stopped goes on with
    the next half. Sketched and exact scores of all geometries share them, and so do the baselines.

    Raises:
        SettingsMismatchError: the directory holds the losses of another run.
        UsageError: there are fewer than 2 samples or subsets.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    evidence = gather(index, wanted, exact=True)
    backbone = index.backbone
    training = [p.encoded for p in evidence.training_prepared]
    validation = [p.encoded for p in evidence.validation_prepared]

    def retrain(places: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
        with trainable(backbone, lora_rank=recipe.lora_rank) as parameters:
            members = [training[i] for i in places]
            fine_tune(backbone, parameters, members, recipe, seed=seed)
            return mean_losses(backbone, validation)

    members = random_halves(len(training), subsets, seed=wanted.seed)
    losses = subset_losses(
        index.path / DIRECTORY if directory is None else directory,
        members,
        retrain,
        run={
            "model": index.manifest.model.weights_digest,
            "training": _digest(evidence.training),
            "validation": _digest(evidence.validation),
            "labels": index.manifest.settings.labels,
            "recipe": asdict(recipe),
            "seed": wanted.seed,
        },
        on_progress=index.on_progress,
    )
    named = [(name, "sketched", scores) for name, scores in evidence.sketched.items()]
    named += [(name, "exact", scores) for name, scores in evidence.exact.items()]
    named += [(name, "", scores) for name, scores in evidence.baselines.items()]
    return LdsEvaluation(
        evaluated=evidence.evaluated,
        subsets=len(members),
        recipe=asdict(recipe),
        spread=float(losses.std(axis=0).mean()),
        methods=tuple(
            Lds(name, kind, _estimate(linear_datamodelling_score(scores, members, losses)))
            for name, kind, scores in named
        ),
    )


def _estimate(result: LdsResult) -> Estimate:
    return Estimate(result.score, result.low, result.high)


def _digest(samples: Iterable[Sample]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for sample in samples:
        digest.update(sample.content_hash.encode())
    return digest.hexdigest()
