"""Do values find the training samples of a validation sample's class?

The benchmark of DataInf (arXiv 2310.00902).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.evaluation.evidence import EvaluationData, gather, warned
from forvalue_index.evaluation.fields import class_names
from forvalue_index.evaluation.metrics import (
    Marks,
    Numbers,
    auc,
    mean_interval,
    recall_at_class_size,
)
from forvalue_index.evaluation.results import Estimate, Retrieval, RetrievalResult
from forvalue_index.evaluation.scores import Matrix
from forvalue_index.exceptions import UsageError
from forvalue_index.index import ValuationIndex
from forvalue_index.sources.sample import Sample

REMARK = (
    "Class retrieval is saturated by what samples look like: the mean hidden state alone, centred, "
    "reaches an AUC of .95 to 1.00 on the usual tasks, and a lexical ranking often as much. A high "
    "figure here says little of what training does; lds and tail-patch test that, as they train."
)

Classes = NDArray[Any]  # texts


def evaluate_retrieval(
    index: ValuationIndex, wanted: EvaluationData, *, label: str
) -> RetrievalResult:
    """How well each method's scores find training samples of the validation sample's class.

    Means over validation samples, with bootstrap intervals over them: the training samples are
    taken as given.

    Args:
        index: the index whose samples are ranked.
        wanted: the validation set, and how many training samples.
        label: field of the metadata that names a sample's class, on both sides.

    Raises:
        UsageError: a sample lacks the field, or the training samples are of one class, or no
            validation sample has a class of theirs.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """

    def check(training: Sequence[Sample], validation: Sequence[Sample]) -> None:
        _classes(training, validation, label)

    evidence = gather(index, wanted, check=check)
    training_classes, validation_classes = _classes(
        evidence.training_samples, evidence.validation_samples, label
    )
    met = np.isin(validation_classes, training_classes)
    evaluated = replace(evidence.evaluated, validation_samples=int(met.sum()))
    same = validation_classes[met, None] == training_classes[None, :]
    return RetrievalResult(
        evaluated=warned(evaluated, _strangers(validation_classes[~met], label)),
        label=label,
        classes=len(np.unique(training_classes)),
        chance=float(same.mean()),
        methods=tuple(
            retrieval(name, scores[met], same) for name, scores in evidence.scores.items()
        ),
        remark=REMARK,
    )


def retrieval(method: str, scores: Matrix, same: Marks) -> Retrieval:
    """AUC and recall of a method; `scores` and `same` class are [validation, training]."""
    by_auc, auc_std = _over_samples(auc, scores, same)
    by_recall, recall_std = _over_samples(recall_at_class_size, scores, same)
    return Retrieval(method, by_auc, auc_std, by_recall, recall_std)


def _over_samples(
    measure: Callable[[Numbers, Marks], float], scores: Matrix, same: Marks
) -> tuple[Estimate, float]:
    measured = np.array(
        [measure(row, positive) for row, positive in zip(scores, same, strict=True)]
    )
    return mean_interval(measured), float(measured.std())


def _classes(
    training: Sequence[Sample], validation: Sequence[Sample], label: str
) -> tuple[Classes, Classes]:
    training_classes = np.array(class_names(training, label, role="training"))
    validation_classes = np.array(class_names(validation, label, role="validation"))
    if len(np.unique(training_classes)) < 2:
        raise UsageError(
            f"all {len(training_classes):,} training samples have the {label} "
            f"{str(training_classes[0])!r}; retrieval needs at least two classes, so name another "
            "field"
        )
    if not np.isin(validation_classes, training_classes).any():
        raise UsageError(
            f"no validation sample has a {label} of the training samples: "
            f"{_some(validation_classes)} against {_some(training_classes)}; name another field, "
            "or use other validation data"
        )
    return training_classes, validation_classes


def _strangers(classes: Classes, label: str) -> tuple[str, ...]:
    if not len(classes):
        return ()
    return (
        f"{len(classes):,} validation sample(s) are left out, as no training sample has their "
        f"{label}: {_some(classes)}",
    )


def _some(classes: Classes) -> str:
    names = np.unique(classes).tolist()
    return ", ".join(map(repr, names[:5])) + (", ..." if len(names) > 5 else "")
