"""Class retrieval: measures by hand, and what it refuses."""

import numpy as np
import pytest
from rows import rows

from forvalue_index.evaluation.evidence import EvaluationData, gather
from forvalue_index.evaluation.metrics import auc, recall_at_class_size
from forvalue_index.evaluation.results import Estimate
from forvalue_index.evaluation.retrieval import REMARK, evaluate_retrieval, retrieval
from forvalue_index.exceptions import UsageError
from forvalue_index.sources.data import Data

pytest_plugins = ("tiny",)

VALIDATION = rows(6, seed=2, prefix="v")


def evaluated(index, data=VALIDATION, label="topic", **options):
    return evaluate_retrieval(index, EvaluationData(data, **options), label=label)


def test_measures_by_hand():
    scores = np.array([[4, 3, 2, 1], [4, 3, 2, 1]], dtype=np.float32)
    same = np.array([[True, True, False, False], [False, True, True, False]])
    found = retrieval("m", scores, same)
    assert found.method == "m"
    assert found.auc.value == 0.75  # 1 and .5
    assert found.auc_std == 0.25
    assert found.recall.value == 0.75
    assert found.recall_std == 0.25
    assert (found.auc.low, found.auc.high) == (0.5, 1)
    alone = retrieval("m", scores[:1], same[:1])
    assert (alone.auc, alone.auc_std) == (Estimate(1.0, None, None), 0)


def test_every_method_is_measured_alike(filled):
    result = evaluated(filled, exact=True)
    evidence = gather(filled, EvaluationData(VALIDATION, exact=True))
    ours = [one.metadata["topic"] for one in evidence.validation_samples]
    theirs = np.array([one.metadata["topic"] for one in evidence.training_samples])
    assert [one.method for one in result.methods] == list(evidence.scores)
    for one in result.methods:
        scores = evidence.scores[one.method]
        aucs = [auc(row, theirs == topic) for row, topic in zip(scores, ours, strict=True)]
        recalls = [
            recall_at_class_size(row, theirs == topic)
            for row, topic in zip(scores, ours, strict=True)
        ]
        assert one.auc.value == pytest.approx(np.mean(aucs))
        assert one.auc_std == pytest.approx(np.std(aucs))
        assert one.recall.value == pytest.approx(np.mean(recalls))
        assert one.recall_std == pytest.approx(np.std(recalls))
        assert one.auc.low <= one.auc.value <= one.auc.high
    assert (result.label, result.classes) == ("topic", 3)
    assert result.chance == pytest.approx(np.mean([(theirs == topic).mean() for topic in ours]))
    assert result.remark == REMARK
    assert "saturated" in REMARK
    assert "lds and tail-patch" in REMARK
    assert (result.evaluated.training_samples, result.evaluated.validation_samples) == (30, 6)
    assert result.evaluated.warnings == ()


def test_copies_of_training_samples_find_their_class(index):
    """Two classes of equal texts: every method but chance has to be right."""
    texts = {"a": ("red stone", "quick river"), "b": ("over 42", "glass none →")}
    data = [
        {"id": f"{kind}{i}", "prompt": f"{prompt} {i}", "response": said, "kind": kind}
        for kind, (prompt, said) in texts.items()
        for i in range(4)
    ]
    index.add([row for row in data if row["id"][-1] != "3"])
    result = evaluated(index, [row for row in data if row["id"][-1] == "3"], "kind")
    assert (result.chance, result.classes) == (0.5, 2)
    for one in result.methods:
        assert one.auc.value == one.recall.value == 1, one.method


def test_classes_that_no_training_sample_has_are_left_out(filled):
    strange = [{**row, "topic": "new"} for row in VALIDATION[:2]]
    result = evaluated(filled, [*strange, *VALIDATION])
    assert result.evaluated.validation_samples == 6
    assert result.evaluated.warnings == (
        "2 validation sample(s) are left out, as no training sample has their topic: 'new'",
    )
    assert result.methods[0].auc == evaluated(filled).methods[0].auc
    with pytest.raises(
        UsageError, match=r"no validation sample has a topic of .*'new' against 'art"
    ):
        evaluated(filled, strange)


def test_many_strange_classes_are_cut_short(filled):
    strange = [{**row, "topic": f"t{i}"} for i, row in enumerate(VALIDATION)]
    with pytest.raises(UsageError, match=r"'t0', 't1', 't2', 't3', 't4', \.\.\. against"):
        evaluated(filled, strange)


def test_one_class_alone_is_refused(index):
    index.add([{**row, "topic": 7} for row in rows(4)])
    with pytest.raises(UsageError, match=r"all 4 training samples have the topic '7'"):
        evaluated(index, [{**row, "topic": 7} for row in VALIDATION])


def test_missing_fields_are_refused(filled):
    with pytest.raises(
        UsageError, match=r"the training sample r0 .* no field 'kind'; it has topic"
    ):
        evaluated(filled, label="kind")
    bare = [{k: v for k, v in VALIDATION[3].items() if k != "topic"}]
    with pytest.raises(UsageError, match=r"the validation sample v3 .* no field 'topic'"):
        evaluated(filled, [*VALIDATION[:2], *bare])


def test_rows_left_out_take_their_class_with_them(filled):
    """A row that the tokenizer refuses must not shift the classes of those after it."""
    long = {"id": "x", "prompt": "z" * 600, "response": "r", "topic": "art"}
    skipped = evaluated(filled, Data([long, *VALIDATION], on_bad="skip"))
    plain = evaluated(filled)
    assert [m.auc for m in skipped.methods] == [m.auc for m in plain.methods]
