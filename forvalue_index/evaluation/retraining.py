"""The linear datamodelling score of an index: its model is fine-tuned on halves of its samples."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

from forvalue_index.evaluation import lds
from forvalue_index.evaluation.evidence import EvaluationData, gather, warned
from forvalue_index.evaluation.lds import LdsStudy, linear_datamodelling_score, measured_losses
from forvalue_index.evaluation.results import Estimate, Lds, LdsResult
from forvalue_index.evaluation.training import Recipe, precision_warnings
from forvalue_index.exceptions import UsageError
from forvalue_index.index import ValuationIndex
from forvalue_index.store.manifest import LDS


def evaluate_lds(
    index: ValuationIndex,
    wanted: EvaluationData,
    *,
    subsets: int,
    recipe: Recipe,
    directory: Path | None = None,
) -> LdsResult:
    """Fine-tune on random halves, and compare what happens with what values foresee.

    Losses are kept in `directory`, by default in the index: a run that was stopped goes on with
    the next half. Sketched and exact scores of all geometries share them, and so do the baselines.

    Raises:
        SettingsMismatchError: the directory holds the losses of another run.
        UsageError: there are fewer than 2 samples or subsets.
        ModelError: losses are no numbers.
        OSError: the directory cannot be written to.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    if subsets < 2:
        raise UsageError(f"--subsets is {subsets}; use at least 2 halves, or none can be compared")
    where = index.path / LDS if directory is None else directory
    where.mkdir(parents=True, exist_ok=True)  # it shows before any work whether it can be
    evidence = gather(index, replace(wanted, exact=True))
    study = LdsStudy(
        training=[p.encoded for p in evidence.training],
        queries=[p.encoded for p in evidence.validation],
        recipe=recipe,
        n_subsets=subsets,
        seed=wanted.seed,
    )
    losses = measured_losses(
        index.model.backbone, study, where, on_progress=index.model.on_progress
    )
    named = [(name, "sketched", scores) for name, scores in evidence.sketched.items()]
    named += [(name, "exact", scores) for name, scores in evidence.exact.items()]
    named += [(name, "", scores) for name, scores in evidence.baselines.items()]
    return LdsResult(
        evaluated=warned(evidence.evaluated, precision_warnings(index.model.backbone, recipe)),
        subsets=subsets,
        recipe=asdict(recipe),
        spread=float(losses.std(axis=0).mean()),
        methods=tuple(
            Lds(name, kind, _estimate(linear_datamodelling_score(scores, study.members, losses)))
            for name, kind, scores in named
        ),
    )


def _estimate(result: lds.LdsScore) -> Estimate:
    return Estimate(result.score, result.low, result.high)
