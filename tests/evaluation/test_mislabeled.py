"""Mislabelled samples: measures by hand, and what is refused."""

import numpy as np
import pytest
from rows import rows

from forvalue_index.evaluation.evidence import EvaluationData, Evidence, gather
from forvalue_index.evaluation.metrics import auc
from forvalue_index.evaluation.mislabeled import (
    BY_CLASS,
    REMARK,
    Suspicion,
    detection,
    evaluate_mislabeled,
    like_prompts,
    suspicions,
)
from forvalue_index.evaluation.results import Evaluated
from forvalue_index.exceptions import UsageError

pytest_plugins = ("tiny",)

VALIDATION = rows(6, seed=2, prefix="v")


def flagged_rows(count, flags=(True, False, False), **more):
    return [{**row, "bad": flags[i % len(flags)], **more} for i, row in enumerate(rows(count))]


@pytest.fixture
def flagged(index):
    """12 samples, of which every third is flagged."""
    index.add(flagged_rows(12, (True, False, False, False)))
    return index


def evaluated(index, data=VALIDATION, flag="bad", **options):
    return evaluate_mislabeled(index, EvaluationData(data), flag=flag, **options)


def evidence_of(scores, loss):
    evaluated = Evaluated("i", "f", 1, "response", len(loss), len(scores), {}, ())
    matrix = np.array(scores, dtype=np.float32)
    return Evidence(
        training=(),
        validation=(),
        loss=np.array(loss),
        self_influences={"raw": np.array(loss) ** 2},
        sketched={"m": matrix},
        stderrs={"m": np.ones_like(matrix)},
        exact={"m": 2 * matrix},
        baselines={"b": -matrix},
        evaluated=evaluated,
    )


def test_orientations_by_hand():
    """The lowest value is the most suspicious: a low mean, a low contrast, a high loss."""
    same = np.array([[True, False, True], [False, True, True], [True, True, False]])
    found = suspicions(
        evidence_of([[1, 2, 3], [4, 5, 6], [7, -1, 0]], [0.1, 0.5, 0.3]), {BY_CLASS: ("r", same)}
    )
    values = {one.method: one.values.tolist() for one in found}
    assert values == {
        "m": [4, 2, 3],
        "m, by class": [(1 + 7) / 2 - 4, (5 - 1) / 2 - 2, (3 + 6) / 2 - 0],
        "m, exact": [8, 4, 6],
        "m, exact, by class": [0, 0, 9],
        "b": [-4, -2, -3],
        "b, by class": [0, 0, -4.5],
        "self-influence raw": pytest.approx([-0.01, -0.25, -0.09]),
        "training loss": [-0.1, -0.5, -0.3],
    }


def test_without_groups_there_is_the_mean_alone():
    found = list(suspicions(evidence_of([[1, 2]], [0.1, 0.2]), {}))
    assert [one.method for one in found] == [
        "m",
        "m, exact",
        "b",
        "self-influence raw",
        "training loss",
    ]
    assert [one.rule for one in found] == [
        *["low mean over the validation set"] * 3,
        "high inner product of its row with itself (TracIn, Pruthi et al. 2020)",
        "high mean loss over its label tokens",
    ]


def test_detection_by_hand():
    values = np.array([-3.0, -2, -1, 0, 1, 2, 3, 4, 5, 6])
    marks = np.array([True, False, True, *[False] * 7])
    found = detection(Suspicion("m", "low", values), marks)
    assert (found.method, found.rule) == ("m", "low")
    assert found.auc.value == 15 / 16
    assert found.found == pytest.approx((0.25, 0.5, 0.5, 1, 1))  # at 5, 10, 20, 30 and 50 %
    assert (len(found.curve), found.curve[0], found.curve[-1]) == (201, 0, 1)
    assert found.curve[40] == pytest.approx(0.5)


def test_every_method_is_measured_alike(flagged):
    result = evaluated(flagged)
    evidence = gather(flagged, EvaluationData(VALIDATION))
    marks = np.array([one.metadata["bad"] for one in evidence.training_samples])
    both = [f"{name}{end}" for name in evidence.scores for end in ("", ", by prompt")]
    own = ["self-influence raw", "training loss"]
    assert [one.method for one in result.methods] == [*both, *own]
    for one in result.methods[:-2:2]:
        mean = evidence.scores[one.method].mean(axis=0)
        assert one.auc.value == pytest.approx(auc(-mean, marks))
        assert one.auc.low <= one.auc.value <= one.auc.high
    assert result.methods[-1].auc.value == auc(evidence.loss, marks)
    values = flagged.values(VALIDATION).scores
    assert result.methods[0].auc.value == pytest.approx(auc(-values, marks))
    assert (result.flag, result.label, result.flagged) == ("bad", None, 3)
    assert (result.base_rate, result.inspected) == (0.25, (0.05, 0.1, 0.2, 0.3, 0.5))
    assert (result.remark, result.output) == (REMARK, None)


def test_a_swapped_response_is_found_by_prompt_and_by_class(index):
    """What is right for another class only shows where samples are held against their own."""
    said = {"a": "quick river", "b": "glass none →"}
    data = [
        {"id": f"{k}{i}", "prompt": f"{k} {i}", "response": said[k], "kind": k, "bad": False}
        for k in said
        for i in range(6)
    ]
    for row in (data[0], data[8]):
        row |= {"bad": True, "response": said["b" if row["kind"] == "a" else "a"]}
    index.add([row for row in data if row["id"][-1] not in "45"])
    wanted = EvaluationData([row for row in data if row["id"][-1] in "45"], exact=True)
    result = evaluate_mislabeled(index, wanted, flag="bad", label="kind")
    by_name = {one.method: one for one in result.methods}
    ways = ["", ", by prompt", ", by class"]
    ours = ["for-value raw", "for-value raw, cosine"]
    ours += [f"{name}, exact" for name in ours]
    assert list(by_name)[:12] == [f"{name}{way}" for name in ours for way in ways]
    for name in ours:
        assert by_name[f"{name}, by prompt"].auc.value == 1
        assert by_name[f"{name}, by class"].auc.value == 1
    assert by_name["for-value raw, by class"].found[2] == pytest.approx(
        0.8
    )  # 1.6 of 2 in 8 samples
    assert by_name["bm25, responses alone, by class"].auc.value == 1
    assert result.label == "kind"


def test_prompts_find_their_like(flagged):
    """Each sample is held against those of half the validation set whose prompts share words."""
    same = [{**row, "id": f"w{i}", "response": "x"} for i, row in enumerate(rows(12)[:3])]
    other = [{"id": f"o{i}", "prompt": "zebra", "response": "x"} for i in range(3)]
    evidence = gather(flagged, EvaluationData([*other, *same]))
    near = like_prompts(evidence)
    assert near.shape == (6, 12)
    assert near.sum(axis=0).tolist() == [3] * 12
    assert near[3:, :3].all()


def test_without_like_prompts_there_is_no_method_by_prompt(flagged):
    """One validation sample has no others to compare with; plain texts have no prompts."""
    plain = [
        "for-value raw",
        "for-value raw, cosine",
        "bm25",
        "bm25, responses alone",
        "hidden state",
        "self-influence raw",
        "training loss",
    ]
    for data in (VALIDATION[:1], [{"text": "red stone"}, {"text": "quick river"}]):
        assert [one.method for one in evaluated(flagged, data).methods] == plain


@pytest.mark.parametrize(
    "flags",
    [(True, False), (1, 0), (1.0, 0.0), ("true", "False"), (" YES", "no"), ("1", "0")],
)
def test_flags_that_are_understood(index, flags):
    index.add(flagged_rows(6, flags))
    assert evaluated(index).flagged == 3


@pytest.mark.parametrize("flag", ["maybe", 2, [True], "", 0.5])
def test_flags_that_are_not(index, flag):
    index.add(flagged_rows(5, (True, False, flag)))
    with pytest.raises(UsageError, match=r"sample r2 \(<iterable>:3\) has .* neither true nor fal"):
        evaluated(index)


@pytest.mark.parametrize(("flag", "which"), [(True, "all"), (False, "none")])
def test_something_must_be_there_to_find(index, flag, which):
    index.add(flagged_rows(5, (flag,)))
    with pytest.raises(UsageError, match=f"{which} of the 5 training samples have a true 'bad'"):
        evaluated(index)


def test_a_missing_flag_is_named(filled):
    with pytest.raises(UsageError, match=r"the training sample r0 .* no field 'bad'; it has topic"):
        evaluated(filled)


def test_classes_must_fit(flagged):
    with pytest.raises(
        UsageError, match=r"no validation sample has the topic of .* r0, 'law', nor"
    ):
        evaluated(flagged, VALIDATION[1:3], label="topic")
    with pytest.raises(UsageError, match=r"the training sample r0 .* no field 'kind'"):
        evaluated(flagged, label="kind")


def test_two_classes_are_needed(index):
    index.add(flagged_rows(5, topic="law"))
    with pytest.raises(UsageError, match="all 1 validation samples have the topic 'law'"):
        evaluated(index, VALIDATION[:1], label="topic")


def test_curves_are_drawn(flagged, tmp_path):
    path = tmp_path / "curve.svg"
    assert evaluated(flagged, output=path).output == str(path)
    drawn = path.read_text("utf-8")
    assert all(one.method in drawn for one in evaluated(flagged).methods)


def test_a_bad_output_is_refused_before_anything_is_read(flagged, tmp_path):
    with pytest.raises(UsageError, match=r"curve\.txt ends in \.txt"):
        evaluated(flagged, "no such file", output=tmp_path / "curve.txt")
