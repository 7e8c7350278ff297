"""Evaluations as JSON documents: the stable contract that scripts depend on."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from forvalue_index.evaluation_results import (
    Detection,
    Estimate,
    Evaluated,
    MislabeledResult,
    RetrievalResult,
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
