"""The linear datamodelling score of an index: against a plain loop, stopped, and repeated."""

import copy
import json

import numpy as np
import pytest
import torch
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.evidence import EvaluationData, gather
from forvalue_index.evaluation.lds import linear_datamodelling_score, random_halves
from forvalue_index.evaluation.retraining import evaluate_lds
from forvalue_index.evaluation.training import Recipe
from forvalue_index.exceptions import ModelError, SettingsMismatchError, UsageError

pytest_plugins = ("tiny",)

VALIDATION = rows(5, seed=2, prefix="v")
RECIPE = Recipe(epochs=2, learning_rate=3e-3, batch_samples=3)
FILES = [f"subset-0000{i}.npz" for i in range(4)]
NAMES = ["for-value raw", "for-value raw, cosine"]
BASELINES = ["bm25", "bm25, responses alone", "hidden state"]


@pytest.fixture
def ten(index):
    index.add(rows(10))
    return index


def evaluated(index, *, subsets=4, recipe=RECIPE, directory=None, **options):
    wanted = EvaluationData(VALIDATION, **options)
    return evaluate_lds(index, wanted, subsets=subsets, recipe=recipe, directory=directory)


def loss_of(model, prepared):
    """The mean cross-entropy over all label tokens, one sample at a time."""
    total, count = 0.0, 0
    for one in prepared:
        ids = torch.from_numpy(one.encoded.token_ids)
        at = torch.from_numpy(np.flatnonzero(one.encoded.label_mask))
        logits = model(input_ids=ids[None]).logits[0]
        total += torch.nn.functional.cross_entropy(logits[at - 1], ids[at], reduction="sum")
        count += len(at)
    return total / count


def losses_by_hand(model, evidence, members):
    """Losses [subset, query] after a plain loop of AdamW on a copy of the model."""
    found = []
    for seed, subset in enumerate(members):
        trained = copy.deepcopy(model).requires_grad_(True)
        optimizer = torch.optim.AdamW(trained.parameters(), lr=3e-3, weight_decay=0.0)
        random, half = np.random.default_rng(seed), np.flatnonzero(subset)
        for _ in range(2):
            order = half[random.permutation(len(half))]
            for start in range(0, len(order), 3):
                optimizer.zero_grad()
                step = [evidence.training[i] for i in order[start : start + 3]]
                loss_of(trained, step).backward()
                optimizer.step()
        with torch.no_grad():
            found.append([loss_of(trained, [one]).item() for one in evidence.validation])
    return np.array(found)


def test_scores_are_those_of_a_plain_loop(ten):
    result = evaluated(ten)
    evidence = gather(ten, EvaluationData(VALIDATION, exact=True))
    members = random_halves(10, 4, seed=0)
    losses = losses_by_hand(ten.model.backbone.model, evidence, members)
    stored = np.stack([np.load(ten.path / "lds" / name)["losses"] for name in FILES])
    assert np.ptp(losses, axis=0).min() > 1e-3
    assert stored == pytest.approx(losses, abs=1e-4)

    named = [(name, "sketched") for name in NAMES] + [(name, "exact") for name in NAMES]
    assert [(m.method, m.kind) for m in result.methods] == named + [(n, "") for n in BASELINES]
    scores = [*evidence.sketched.values(), *evidence.exact.values(), *evidence.baselines.values()]
    for one, matrix in zip(result.methods, scores, strict=True):
        expected = linear_datamodelling_score(matrix, members, losses)
        assert one.score.value == pytest.approx(expected.score), one
        assert (one.score.low, one.score.high) == pytest.approx((expected.low, expected.high))
    assert result.spread == pytest.approx(losses.std(axis=0).mean(), abs=1e-4)
    assert (result.subsets, result.recipe["epochs"], result.recipe["lora_rank"]) == (4, 2, None)
    assert result.evaluated.training_samples == 10


def test_the_model_is_afterwards_what_it_was(ten):
    before = {name: t.clone() for name, t in ten.model.backbone.model.state_dict().items()}
    evaluated(ten, subsets=2)
    after = ten.model.backbone.model.state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    assert ten.check().sound  # what lies in the index besides is no damage


class Stopping:
    """Ctrl-C once so many halves are done."""

    def __init__(self, after=None):
        self.after, self.done = after, []

    def __call__(self, progress):
        if progress.stage == "retraining":
            self.done.append(progress.done)
            if progress.done == self.after:
                raise KeyboardInterrupt


def test_a_stopped_run_goes_on_where_it_was(ten, tmp_path):
    whole = evaluated(ten, directory=tmp_path / "whole")
    ten.close()
    runs = tmp_path / "a" / "runs"
    with (
        ValuationIndex.open(ten.path, on_progress=Stopping(2)) as index,
        pytest.raises(KeyboardInterrupt),
    ):
        evaluated(index, directory=runs)
    assert sorted(p.name for p in runs.iterdir()) == ["run.json", *FILES[:2]]
    before = {name: (runs / name).stat().st_mtime_ns for name in FILES[:2]}
    progress = Stopping()
    with ValuationIndex.open(ten.path, on_progress=progress) as index:
        resumed = evaluated(index, directory=runs)
        assert (resumed.methods, resumed.spread) == (whole.methods, whole.spread)
        assert progress.done == [1, 2, 3, 4]
        assert before == {name: (runs / name).stat().st_mtime_ns for name in FILES[:2]}
        # Once all is there, nothing is trained; and more halves keep the first.
        first = [(runs / name).read_bytes() for name in FILES]
        (runs / FILES[3]).unlink()
        more = evaluated(index, directory=runs, subsets=5)
        assert [(runs / name).read_bytes() for name in FILES] == first
        assert more.subsets == 5


def test_one_set_of_losses_serves_every_geometry(ten, tmp_path):
    """Losses do not depend on rows: an index of other rows reads those that are there."""
    raw = evaluated(ten, directory=tmp_path / "runs")
    before = [(tmp_path / "runs" / name).stat().st_mtime_ns for name in FILES]
    model = ten.manifest.settings.model
    with ValuationIndex.create(tmp_path / "f", model, dim=128, geometry="fisher") as other:
        other.add(rows(10))
        fisher = evaluated(other, directory=tmp_path / "runs")
    assert fisher.methods[0].method == "for-value fisher"
    assert fisher.methods[-3:] == raw.methods[-3:]
    assert fisher.spread == raw.spread
    assert [(tmp_path / "runs" / name).stat().st_mtime_ns for name in FILES] == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"recipe": Recipe(epochs=3, learning_rate=3e-3, batch_samples=3)}, "epochs 2, and .* 3;"),
        ({"recipe": Recipe(epochs=2, learning_rate=1e-3, batch_samples=3)}, "learning_rate 0.003"),
        ({"seed": 1}, "seed 0, and this one has 1; .* another directory"),
        ({"limit": 8}, "training samples"),
    ],
)
def test_another_run_in_the_same_directory_is_refused(ten, change, message):
    evaluated(ten, subsets=2)
    before = {p.name: p.read_bytes() for p in (ten.path / "lds").iterdir()}
    with pytest.raises(SettingsMismatchError, match=message):
        evaluated(ten, **({"subsets": 2} | change))
    assert {p.name: p.read_bytes() for p in (ten.path / "lds").iterdir()} == before


def test_a_lora_alone_is_trained(ten, tmp_path):
    recipe = Recipe(epochs=2, learning_rate=1e-2, batch_samples=3, lora_rank=2)
    before = {name: t.clone() for name, t in ten.model.backbone.model.state_dict().items()}
    result = evaluated(ten, recipe=recipe, directory=tmp_path / "runs")
    assert result.recipe["lora_rank"] == 2
    assert result.spread > 0
    after = ten.model.backbone.model.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in after.items())
    again = evaluated(ten, recipe=recipe, directory=tmp_path / "other")
    assert again.methods == result.methods
    with pytest.raises(SettingsMismatchError, match="lora_rank 2, and this one has None"):
        evaluated(
            ten,
            recipe=Recipe(epochs=2, learning_rate=1e-2, batch_samples=3),
            directory=tmp_path / "runs",
        )


@pytest.mark.parametrize("subsets", [1, 0, -4])
def test_too_few_halves_are_refused_before_the_model_is_loaded(ten, subsets):
    with (
        ValuationIndex.open(ten.path, model="no such model") as opened,
        pytest.raises(UsageError, match=f"--subsets is {subsets}; use at least 2"),
    ):
        evaluated(opened, subsets=subsets)
    assert not (ten.path / "lds").exists()


def test_a_directory_that_cannot_be_is_refused_before_the_model_is_loaded(ten, tmp_path):
    (tmp_path / "file").write_text("", "utf-8")
    with (
        ValuationIndex.open(ten.path, model="no such model") as opened,
        pytest.raises(NotADirectoryError),
    ):
        evaluated(opened, directory=tmp_path / "file" / "runs")


def test_losses_that_are_no_numbers_are_never_kept(ten):
    """One step alone, so that nothing but what is measured after it can tell."""
    wild = Recipe(epochs=1, learning_rate=1e38, batch_samples=16)
    with pytest.raises(ModelError, match="5 of 5 samples are infinite or undefined"):
        evaluated(ten, recipe=wild)
    assert [p.name for p in (ten.path / "lds").iterdir()] == ["run.json"]
    # And a run that has no losses does not stand in the way of another.
    assert evaluated(ten, subsets=2).subsets == 2
    stored = json.loads((ten.path / "lds" / "run.json").read_text("utf-8"))
    assert stored["learning_rate"] == 3e-3
