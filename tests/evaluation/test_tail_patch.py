"""Single training steps, against AdamW on a copy of the model."""

import copy

import numpy as np
import pytest
import torch
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.evidence import EvaluationData, gather
from forvalue_index.evaluation.tail_patch import evaluate_tail_patch
from forvalue_index.exceptions import ModelError, UsageError

pytest_plugins = ("tiny",)

VALIDATION = rows(4, seed=2, prefix="v")
RATE = 1e-3
METHODS = [
    *("for-value raw", "for-value raw, cosine"),
    *("for-value raw, exact", "for-value raw, cosine, exact"),
    *("bm25", "bm25, responses alone", "hidden state"),
]


@pytest.fixture
def dozen(index):
    index.add(rows(12))
    return index


def losses(model, prepared):
    """The mean cross-entropy of the label tokens of each sample, alone and unpadded."""
    found = []
    for one in prepared:
        ids = torch.from_numpy(one.encoded.token_ids)
        at = torch.from_numpy(np.flatnonzero(one.encoded.label_mask))
        logits = model(input_ids=ids[None]).logits[0]
        found.append(torch.nn.functional.cross_entropy(logits[at - 1], ids[at]))
    return torch.stack(found)


def gain_by_hand(model, sample, validation, rate=RATE):
    """How much likelier a label token of the validation set is after one step on a sample."""
    patched = copy.deepcopy(model).requires_grad_(True)
    optimizer = torch.optim.AdamW(patched.parameters(), lr=rate, weight_decay=0.0)
    losses(patched, [sample]).sum().backward()
    optimizer.step()
    with torch.no_grad():
        return (losses(model, validation).mean() - losses(patched, validation).mean()).item()


def test_gains_are_those_of_a_step_by_hand(dozen):
    evidence = gather(dozen, EvaluationData(VALIDATION, exact=True))
    model = dozen.model.backbone.model
    gains = np.array([gain_by_hand(model, one, evidence.validation) for one in evidence.training])
    assert np.ptp(gains) > 1e-2

    wanted = EvaluationData(VALIDATION, exact=True, seed=3)
    result = evaluate_tail_patch(dozen, wanted, k=3, learning_rate=RATE)
    assert [one.method for one in result.methods] == METHODS == list(evidence.scores)
    assert (result.k, result.learning_rate, result.evaluated.training_samples) == (3, RATE, 12)
    drawn = np.random.default_rng(3).choice(12, 3, replace=False)
    close = {"abs": 1e-5, "rel": 1e-3}
    assert result.random.value == pytest.approx(gains[drawn].mean(), **close)
    assert result.random.low == pytest.approx(gains[drawn].min(), **close)
    for one in result.methods:
        order = np.argsort(evidence.scores[one.method].mean(axis=0))
        top, bottom = gains[order[-3:]], gains[order[:3]]
        assert one.top.value == pytest.approx(top.mean(), **close), one.method
        assert one.bottom.value == pytest.approx(bottom.mean(), **close), one.method
        over = top.mean() - gains[drawn].mean()
        assert one.top_over_random.value == pytest.approx(over, **close)
        assert one.top_over_random.low < over < one.top_over_random.high
        under = gains[drawn].mean() - bottom.mean()
        assert one.random_over_bottom.value == pytest.approx(under, **close)


@pytest.mark.parametrize("exact", [False, True])
def test_the_best_and_the_worst_are_those_of_a_query(dozen, exact):
    found = dozen.query(VALIDATION, top=2, bottom=2, rerank=12 if exact else None)
    with dozen.storage.catalog.snapshot() as snapshot:
        samples = {
            hit.sample.key: dozen.model.reader.prepare(snapshot.sample(hit.sample.key).sample)
            for hit in found.helpful + found.harmful
        }
    validation = gather(dozen, EvaluationData(VALIDATION)).validation
    by_hand = [
        np.mean(
            [gain_by_hand(dozen.model.backbone.model, samples[h.sample.key], validation) for h in g]
        )
        for g in (found.helpful, found.harmful)
    ]
    wanted = EvaluationData(VALIDATION, exact=exact)
    result = evaluate_tail_patch(dozen, wanted, k=2, learning_rate=RATE)
    (mine,) = [m for m in result.methods if m.method == "for-value raw" + ", exact" * exact]
    assert [mine.top.value, mine.bottom.value] == pytest.approx(by_hand, abs=1e-5, rel=1e-3)
    assert mine.top.value > mine.bottom.value
    assert any(one.method.endswith("exact") for one in result.methods) == exact


def test_the_model_is_afterwards_what_it_was(dozen):
    before = {name: t.clone() for name, t in dozen.model.backbone.model.state_dict().items()}
    answer = dozen.query(VALIDATION, top=3).helpful
    first, second = (evaluate_tail_patch(dozen, EvaluationData(VALIDATION), k=2) for _ in range(2))
    after = dozen.model.backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert not any(p.requires_grad for p in dozen.model.backbone.model.parameters())
    assert dozen.query(VALIDATION, top=3).helpful == answer
    assert (first.random, first.methods) == (second.random, second.methods)


def test_ctrl_c_leaves_the_model_as_it_was(tmp_path, model_dir):
    def interrupt(progress):
        if progress.stage == "patching" and progress.done == 2:
            raise KeyboardInterrupt

    where = tmp_path / "i"
    with ValuationIndex.create(where, str(model_dir), dim=64, on_progress=interrupt) as index:
        index.add(rows(6))
        before = {name: t.clone() for name, t in index.model.backbone.model.state_dict().items()}
        with pytest.raises(KeyboardInterrupt):
            evaluate_tail_patch(index, EvaluationData(VALIDATION), k=2, learning_rate=0.1)
        after = index.model.backbone.model.state_dict()
        assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 1}, "--top is 1; use at least 2"),
        ({"k": -3}, "--top is -3; use at least 2"),
        ({"k": 7}, r"--top is 7, and 12 training samples have no 7 best .*use at most 6"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(dozen, options, message):
    with (
        ValuationIndex.open(dozen.path, model="no such model") as opened,
        pytest.raises(UsageError, match=message),
    ):
        evaluate_tail_patch(opened, EvaluationData(VALIDATION), **options)


def test_half_of_all_is_the_most(dozen):
    """Top and bottom are then all there is."""
    result = evaluate_tail_patch(dozen, EvaluationData(VALIDATION), k=6, learning_rate=RATE)
    sums = [one.top.value + one.bottom.value for one in result.methods]
    assert sums == pytest.approx([sums[0]] * len(sums))


def test_a_step_that_is_too_long_is_named(dozen):
    before = {name: t.clone() for name, t in dozen.model.backbone.model.state_dict().items()}
    with pytest.raises(ModelError, match=r"4 of 4 samples are infinite or undefined; .* learning"):
        evaluate_tail_patch(dozen, EvaluationData(VALIDATION), k=2, learning_rate=1e38)
    after = dozen.model.backbone.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())


def test_weights_in_which_steps_vanish_are_warned_of(tmp_path, model_dir):
    with ValuationIndex.create(tmp_path / "i", str(model_dir), dim=64, dtype="bfloat16") as index:
        index.add(rows(4))
        result = evaluate_tail_patch(index, EvaluationData(VALIDATION), k=2)
    (warning,) = result.evaluated.warnings
    assert warning.startswith("the model is in bfloat16, in which steps of learning rate 1e-05 are")
    assert "--dtype float32" in warning
