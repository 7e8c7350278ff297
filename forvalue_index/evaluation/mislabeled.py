"""Do low values find training samples that are known to be wrong?"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from forvalue_index.evaluation.evidence import EvaluationData, Evidence, gather
from forvalue_index.evaluation.fields import class_names, field_values
from forvalue_index.evaluation.metrics import Marks, Numbers, auc_interval, detection_curve
from forvalue_index.evaluation.plots import draw_detection, refuse_undrawable
from forvalue_index.evaluation.results import Detection, MislabeledResult
from forvalue_index.evaluation.scores import Matrix
from forvalue_index.exceptions import UsageError
from forvalue_index.index import ValuationIndex
from forvalue_index.sources.sample import Sample
from forvalue_index.valuation.scorers.bm25 import bm25_scores

INSPECTED = (0.05, 0.1, 0.2, 0.3, 0.5)
CURVE_INSPECTED = tuple(np.linspace(0, 1, 201).tolist())
FLAG_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
LOSS = "training loss"
BY_PROMPT = "by prompt"
BY_CLASS = "by class"
# Validation samples that a training sample is held against by its prompt.
NEAREST = 10
MEAN_RULE = "low mean over the validation set"
BY_PROMPT_RULE = (
    f"low mean over the {NEAREST} validation samples whose prompts are most like its own by BM25, "
    "or half of all where they are few, less that over the others"
)
BY_CLASS_RULE = "low mean over validation samples of its class, less that over the others"
LOSS_RULE = "high mean loss over its label tokens"
SELF_INFLUENCE = "self-influence"
SELF_INFLUENCE_RULE = "high inner product of its row with itself (TracIn, Pruthi et al. 2020)"
REMARK = (
    "A response that is wrong here and right for another task of the validation set helps that "
    "task, so the mean over a set of several tasks may not show it. Methods by prompt, and by "
    "class where --label names the class that a sample should have, hold it against its own task. "
    "Hidden states and, where responses share words, BM25 find such responses too: compare with "
    "these before you credit the values."
)


Groups = Mapping[str, tuple[str, Marks]]


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
        label: field that names the class that a sample should have, on both sides; with it, each
            method also judges a sample by the validation samples of its class against the others.
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
    flagged = _flags(evidence.training_samples, flag)
    groups = {}
    near = like_prompts(evidence)
    if near.any():
        groups[BY_PROMPT] = (BY_PROMPT_RULE, near)
    if label is not None:
        same = _same_class(evidence.training_samples, evidence.validation_samples, label)
        groups[BY_CLASS] = (BY_CLASS_RULE, same)
    result = MislabeledResult(
        evaluated=evidence.evaluated,
        flag=flag,
        label=label,
        flagged=int(flagged.sum()),
        base_rate=float(flagged.mean()),
        inspected=INSPECTED,
        curve_inspected=CURVE_INSPECTED,
        methods=tuple(detection(one, flagged) for one in suspicions(evidence, groups)),
        remark=REMARK,
        output=None if output is None else str(output),
    )
    if output is not None:
        draw_detection(result, output)
    return result


def suspicions(evidence: Evidence, groups: Groups) -> Iterator[Suspicion]:
    """What each method says of the training samples.

    `groups` are, by name, a rule and the validation samples [validation, training] that each
    training sample is held against: some of them, and not all.
    """
    for name, scores in evidence.scores.items():
        yield Suspicion(name, MEAN_RULE, scores.mean(axis=0, dtype=np.float64))
        for kind, (rule, near) in groups.items():
            contrast = _mean_where(near, scores) - _mean_where(~near, scores)
            yield Suspicion(f"{name}, {kind}", rule, contrast)
    for geometry, products in evidence.self_influences.items():
        yield Suspicion(f"{SELF_INFLUENCE} {geometry}", SELF_INFLUENCE_RULE, -products)
    yield Suspicion(LOSS, LOSS_RULE, -evidence.loss)


def like_prompts(evidence: Evidence) -> Marks:
    """The validation samples [validation, training] with the prompts most like a sample's own.

    None at all where there is one validation sample, where no prompts share a word, or where all
    are alike, as where the question is an image.
    """
    queries, documents = evidence.validation_samples, evidence.training_samples
    alike = bm25_scores([one.prompt for one in queries], [one.prompt for one in documents])
    ranks = np.argsort(np.argsort(-alike, axis=0, kind="stable"), axis=0, kind="stable")
    near: Marks = (ranks < min(NEAREST, len(queries) // 2)) & (alike != alike[:1]).any()
    return near


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
    training_classes = np.array(class_names(training, label, role="training"))
    validation_classes = np.array(class_names(validation, label, role="validation"))
    if len(np.unique(validation_classes)) < 2:
        raise UsageError(
            f"all {len(validation_classes):,} validation samples have the {label} "
            f"{str(validation_classes[0])!r}, and judging by class needs two; leave --label out"
        )
    same: Marks = validation_classes[:, None] == training_classes[None, :]
    alone = ~same.any(axis=0)
    if alone.any():
        first = training[int(np.flatnonzero(alone)[0])]
        raise UsageError(
            f"no validation sample has the {label} of the training sample {first.key}, "
            f"{first.metadata[label]!r}, nor of {int(alone.sum()) - 1:,} further ones; use "
            "validation data of all classes, or leave --label out"
        )
    return same
