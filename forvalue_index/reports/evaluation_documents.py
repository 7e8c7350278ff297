"""Evaluations as JSON documents: the stable contract that scripts depend on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from forvalue_index.evaluation.results import (
    Detection,
    Estimate,
    Evaluated,
    FidelityResult,
    LdsResult,
    MislabeledResult,
    RetrievalResult,
    TailPatchResult,
)


def retrieval_document(result: RetrievalResult) -> dict[str, Any]:
    """`evaluate retrieval --json`: means over validation samples, `std` over them."""
    return {
        **_evaluated(result.evaluated),
        "label": result.label,
        "classes": result.classes,
        "chance_recall": result.chance,
        "methods": [
            {
                "method": one.method,
                "auc": {**_estimate(one.auc), "std": one.auc_std},
                "recall": {**_estimate(one.recall), "std": one.recall_std},
            }
            for one in result.methods
        ],
        "remark": result.remark,
    }


def mislabeled_document(result: MislabeledResult) -> dict[str, Any]:
    """`evaluate mislabeled --json`; `inspected` and `found` are shares from 0 to 1.

    A curve's `inspected` shares are the same for all methods.
    """
    return {
        **_evaluated(result.evaluated),
        "flag": result.flag,
        "label": result.label,
        "flagged": result.flagged,
        "base_rate": result.base_rate,
        "methods": [_detection(one, result) for one in result.methods],
        "remark": result.remark,
        "output": result.output,
    }


def fidelity_document(result: FidelityResult) -> dict[str, Any]:
    """`evaluate fidelity --json`."""
    return {
        **_evaluated(result.evaluated),
        "k": result.k,
        "candidates": result.candidates,
        "methods": [asdict(row) for row in result.rows],
    }


def tail_patch_document(result: TailPatchResult) -> dict[str, Any]:
    """`evaluate tail-patch --json`: gains in nats a label token of the validation set."""
    return {
        **_evaluated(result.evaluated),
        "k": result.k,
        "learning_rate": result.learning_rate,
        "random": _estimate(result.random),
        "methods": [asdict(method) for method in result.methods],
    }


def lds_document(result: LdsResult) -> dict[str, Any]:
    """`evaluate lds --json`; `spread` is in nats."""
    return {
        **_evaluated(result.evaluated),
        "subsets": result.subsets,
        "recipe": dict(result.recipe),
        "spread": result.spread,
        "methods": [asdict(method) for method in result.methods],
    }


def _detection(one: Detection, result: MislabeledResult) -> dict[str, Any]:
    return {
        "method": one.method,
        "rule": one.rule,
        "auc": _estimate(one.auc),
        "detected": [
            {"inspected": inspected, "found": found}
            for inspected, found in zip(result.inspected, one.found, strict=True)
        ],
        "curve": {"inspected": list(result.curve_inspected), "found": list(one.curve)},
    }


def _evaluated(evaluated: Evaluated) -> dict[str, Any]:
    return {
        "index": evaluated.index,
        "fingerprint": evaluated.fingerprint,
        "index_version": evaluated.index_version,
        "labels": evaluated.labels,
        "training_samples": evaluated.training_samples,
        "validation_samples": evaluated.validation_samples,
        "seconds": {name: round(value, 4) for name, value in evaluated.seconds.items()},
        "warnings": list(evaluated.warnings),
    }


def _estimate(estimate: Estimate) -> dict[str, float | None]:
    """`low` and `high` bound the 95 % bootstrap interval, null where it cannot be told."""
    return asdict(estimate)
