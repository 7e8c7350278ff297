"""Do low values find training samples that are known to be wrong?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forvalue_index.evaluation.evidence import (
    EvaluationData,
    Evidence,
    Matrix,
    class_names,
    field_values,
    gather,
)
from forvalue_index.evaluation_results import Detection, MislabeledResult
from forvalue_index.exceptions import UsageError
from forvalue_index.index import ValuationIndex
from forvalue_index.metrics import Marks, Numbers, auc_interval, detection_curve
from forvalue_index.plots import draw_detection, refuse_undrawable
from forvalue_index.records import Sample

INSPECTED = (0.05, 0.1, 0.2, 0.3, 0.5)
CURVE_INSPECTED = tuple(np.linspace(0, 1, 201).tolist())
FLAG_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LOSS = "training loss"
BY_CLASS = "by class"
MEAN_RULE = "low mean over the validation set"
BY_CLASS_RULE = "low mean over validation samples of its class, less that over the others"
LOSS_RULE = "high mean loss over its label tokens"
MEAN_REMARK = (
    "A wrong response that is right for another class of the validation set helps that class, so "
    "the mean over a set of several classes may not show it. Name the field of the class with "
    "--label to judge each sample against its own class, or use validation data of one class."
)
BY_CLASS_REMARK = (
    "Methods by class know the class that each training sample should have; the others do not. "
    "They find responses that are out of place in their class, and so do likeness of hidden states "
    "and, where responses share words, BM25: compare with these before you credit the values."
)


@dataclass(frozen=True, eq=False)
class Suspicion:
    """What a method says: `values` [training], the lowest being the most suspicious."""

    method: str
    rule: str
    values: Numbers


def evaluate_mislabeled(
    index: ValuationIndex,
    wanted: EvaluationData,
    *,
    flag: str,
    label: str | None = None,
    output: Path | None = None,
) -> MislabeledResult:
    """How well each method finds flagged training samples, the most suspicious inspected first.

    Args:
        index: the index whose samples are inspected.
        wanted: a validation set that is right, and how many training samples.
        flag: field of the training samples that says true where one is wrong.
        label: field that names a sample's class, on both sides; with it, each method also judges
            a sample by the validation samples of its class against those of the others.
        output: SVG or PNG file that the curves are drawn to.

    Raises:
        UsageError: a training sample has no flag, or one that is neither true nor false; or all
            are flagged, or none; or a sample lacks the class, or has one that no validation
            sample has, or all of these have it; or `output` cannot be drawn to.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    if output is not None:
        refuse_undrawable(output)

    def check(training: Sequence[Sample], validation: Sequence[Sample]) -> None:
        _flags(training, flag)
        if label is not None:
            _same_class(training, validation, label)

    evidence = gather(index, wanted, check=check)
    flagged = _flags(evidence.training, flag)
    same = None
    if label is not None:
        same = _same_class(evidence.training, evidence.validation, label)
    result = MislabeledResult(
        evaluated=evidence.evaluated,
        flag=flag,
        label=label,
        flagged=int(flagged.sum()),
        base_rate=float(flagged.mean()),
        inspected=INSPECTED,
        curve_inspected=CURVE_INSPECTED,
        methods=tuple(detection(one, flagged) for one in suspicions(evidence, same)),
        remark=MEAN_REMARK if label is None else BY_CLASS_REMARK,
        output=None if output is None else str(output),
    )
    if output is not None:
        draw_detection(result, output)
    return result


def suspicions(evidence: Evidence, same: Marks | None) -> Iterator[Suspicion]:
    """What each method says of the training samples; `same` class is [validation, training]."""
    for name, scores in evidence.scores.items():
        yield Suspicion(name, MEAN_RULE, scores.mean(axis=0, dtype=np.float64))
        if same is not None:
            contrast = _mean_where(same, scores) - _mean_where(~same, scores)
            yield Suspicion(f"{name}, {BY_CLASS}", BY_CLASS_RULE, contrast)
    yield Suspicion(LOSS, LOSS_RULE, -evidence.loss)


def detection(suspicion: Suspicion, flagged: Marks) -> Detection:
    """How a method finds the flagged samples."""
    curve = detection_curve(suspicion.values, flagged)
    return Detection(
        method=suspicion.method,
        rule=suspicion.rule,
        auc=auc_interval(-suspicion.values, flagged),
        found=tuple(curve.found_at(np.array(INSPECTED)).tolist()),
        curve=tuple(curve.found_at(np.array(CURVE_INSPECTED)).tolist()),
    )


def _mean_where(chosen: Marks, scores: Matrix) -> Numbers:
    """Means [training] over those validation samples that are chosen for each."""
    sums = np.where(chosen, scores, 0).sum(axis=0, dtype=np.float64)
    mean: Numbers = sums / chosen.sum(axis=0)
    return mean


def _flags(training: Sequence[Sample], field: str) -> Marks:
    values = field_values(training, field, role="training")
    flags = np.array([_flag(v, s, field) for v, s in zip(values, training, strict=True)])
    if flags.all() or not flags.any():
        which = "all" if flags.all() else "none"
        raise UsageError(
            f"{which} of the {len(flags):,} training samples have a true {field!r}; there is "
            "something to find only where some have and some have not"
        )
    return flags


def _flag(value: Any, sample: Sample, field: str) -> bool:
    known = value == 1 if value in (0, 1) else FLAG_WORDS.get(str(value).strip().lower())
    if known is None:
        raise UsageError(
            f"the training sample {sample.key} ({sample.source}:{sample.position}) has {value!r} "
            f"for {field!r}, which is neither true nor false; use {', '.join(FLAG_WORDS)}"
        )
    return known


def _same_class(training: Sequence[Sample], validation: Sequence[Sample], label: str) -> Marks:
    theirs = np.array(class_names(training, label, role="training"))
    ours = np.array(class_names(validation, label, role="validation"))
    if len(np.unique(ours)) < 2:
        raise UsageError(
            f"all {len(ours):,} validation samples have the {label} {str(ours[0])!r}, and judging "
            "by class needs two; leave --label out"
        )
    same: Marks = ours[:, None] == theirs[None, :]
    alone = ~same.any(axis=0)
    if alone.any():
        first = training[int(np.flatnonzero(alone)[0])]
        raise UsageError(
            f"no validation sample has the {label} of the training sample {first.key}, "
            f"{first.metadata[label]!r}, nor of {int(alone.sum()) - 1:,} further ones; use "
            "validation data of all classes, or leave --label out"
        )
    return same
