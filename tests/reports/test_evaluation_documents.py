"""The documents of evaluations: scripts depend on their keys."""

import json

from forvalue_index.evaluation.results import (
    Detection,
    Estimate,
    Evaluated,
    MislabeledResult,
    Retrieval,
    RetrievalResult,
)
from forvalue_index.reports.evaluation_documents import mislabeled_document, retrieval_document

EVALUATED = Evaluated("runs/a", "abc", 3, "all", 40, 5, {"load": 1.234567}, ("careful",))
COMMON = {
    "index": "runs/a",
    "fingerprint": "abc",
    "index_version": 3,
    "labels": "all",
    "training_samples": 40,
    "validation_samples": 5,
    "seconds": {"load": 1.2346},
    "warnings": ["careful"],
}


def test_retrieval():
    result = RetrievalResult(
        evaluated=EVALUATED,
        label="topic",
        classes=3,
        chance=0.25,
        methods=(
            Retrieval("for-value", Estimate(0.9, 0.8, 1.0), 0.1, Estimate(0.5, None, None), 0.2),
        ),
        remark="weak",
    )
    document = retrieval_document(result)
    assert document == {
        **COMMON,
        "label": "topic",
        "classes": 3,
        "chance_recall": 0.25,
        "methods": [
            {
                "method": "for-value",
                "auc": {"value": 0.9, "low": 0.8, "high": 1.0, "std": 0.1},
                "recall": {"value": 0.5, "low": None, "high": None, "std": 0.2},
            }
        ],
        "remark": "weak",
    }
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_mislabeled():
    result = MislabeledResult(
        evaluated=EVALUATED,
        flag="bad",
        label=None,
        flagged=10,
        base_rate=0.25,
        inspected=(0.05, 0.5),
        curve_inspected=(0.0, 1.0),
        methods=(Detection("for-value", "low", Estimate(0.9, 0.8, 1.0), (0.2, 0.7), (0.0, 1.0)),),
        remark="weak",
        output="c.svg",
    )
    document = mislabeled_document(result)
    assert document == {
        **COMMON,
        "flag": "bad",
        "label": None,
        "flagged": 10,
        "base_rate": 0.25,
        "methods": [
            {
                "method": "for-value",
                "rule": "low",
                "auc": {"value": 0.9, "low": 0.8, "high": 1.0},
                "detected": [
                    {"inspected": 0.05, "found": 0.2},
                    {"inspected": 0.5, "found": 0.7},
                ],
                "curve": {"inspected": [0.0, 1.0], "found": [0.0, 1.0]},
            }
        ],
        "remark": "weak",
        "output": "c.svg",
    }
    assert json.loads(json.dumps(document, allow_nan=False)) == document
