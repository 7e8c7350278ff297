import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from models import VOCAB, tiny_model, tiny_tokenizer
from scipy.stats import spearmanr

from forvalue_index.evaluation.lds import (
    LdsStudy,
    linear_datamodelling_score,
    measured_losses,
    random_halves,
    subset_losses,
)
from forvalue_index.evaluation.training import Recipe, mean_losses
from forvalue_index.exceptions import SettingsMismatchError, UsageError
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone

HALVES = np.array([[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1], [1, 0, 0, 1]], dtype=bool)


def numbers(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def test_a_score_by_hand():
    """Query 0 is foreseen in full. Query 1 has sums 3, 5, 7, 5 and losses 1, 2, 3, 4: ranks of
    sums 1, 2.5, 4, 2.5 against 4, 3, 2, 1 of minus the loss; their correlation is -3 / sqrt(22.5).
    """
    scores = np.array([[4.0, 3.0, 2.0, 1.5], [1.0, 2.0, 3.0, 4.0]])  # sums 7, 5, 3.5, 5.5
    losses = np.array([[0.1, 1.0], [0.3, 2.0], [0.4, 3.0], [0.2, 4.0]])
    found = linear_datamodelling_score(scores, HALVES, losses)
    np.testing.assert_allclose(found.correlations, [1.0, -3 / np.sqrt(22.5)])
    assert found.score == pytest.approx((1 - 3 / np.sqrt(22.5)) / 2)
    assert found.low == pytest.approx(found.correlations[1])
    assert found.high == pytest.approx(1.0)


def test_a_slow_loop_says_the_same():
    scores, losses = numbers(0, 5, 20), numbers(1, 9, 5)
    members = random_halves(20, 9, seed=2)
    expected = []
    for q in range(5):
        sums = [sum(scores[q, i] for i in range(20) if members[s, i]) for s in range(9)]
        expected.append(spearmanr(sums, [-losses[s, q] for s in range(9)]).statistic)
    found = linear_datamodelling_score(scores, members, losses)
    np.testing.assert_allclose(found.correlations, expected)
    assert found.score == pytest.approx(np.mean(expected))


@given(seed=st.integers(0, 1000))
def test_losses_that_are_minus_the_sums_give_one_and_the_sums_give_minus_one(seed):
    scores, members = numbers(seed, 3, 12), random_halves(12, 6, seed=seed)
    sums = (scores @ members.T).T
    assert linear_datamodelling_score(scores, members, -sums).score == pytest.approx(1)
    assert linear_datamodelling_score(scores, members, sums).score == pytest.approx(-1)


@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 10), shift=st.floats(-5, 5))
def test_halves_of_one_size_see_neither_scale_nor_shift_of_a_querys_scores(seed, factor, shift):
    scores, losses = numbers(seed, 4, 10), numbers(seed + 1, 8, 4)
    members = random_halves(10, 8, seed=seed)
    first = linear_datamodelling_score(scores, members, losses).correlations
    second = linear_datamodelling_score(scores * factor + shift, members, losses).correlations
    np.testing.assert_allclose(first, second, atol=1e-9)


def test_a_query_without_an_order_counts_zero():
    scores, losses = numbers(0, 3, 4), numbers(1, 4, 3)
    scores[0] = 2.0
    losses[:, 1] = 5.0
    found = linear_datamodelling_score(scores, HALVES, losses)
    assert found.correlations[:2].tolist() == [0, 0]
    assert found.correlations[2] != 0


def test_the_interval_is_a_function_of_the_seed_and_holds_the_score():
    scores, losses = numbers(0, 30, 20), numbers(1, 9, 30)
    members = random_halves(20, 9, seed=0)
    first, again, other = (
        linear_datamodelling_score(scores, members, losses, seed=seed) for seed in (0, 0, 1)
    )
    assert first[:3] == again[:3] != other[:3]
    assert first.low < first.score < first.high


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_are_refused(bad):
    scores, losses = numbers(0, 2, 4), numbers(1, 4, 2)
    scores[1, 2] = bad
    with pytest.raises(UsageError, match=r"1 score\(s\) are infinite"):
        linear_datamodelling_score(scores, HALVES, losses)
    with pytest.raises(UsageError, match=r"8 loss\(s\) are infinite"):
        linear_datamodelling_score(losses.T, HALVES, np.full((4, 2), bad))


@given(n_samples=st.integers(2, 50), n_subsets=st.integers(2, 9), seed=st.integers(0, 99))
def test_halves_are_halves_and_stay_when_more_are_asked_for(n_samples, n_subsets, seed):
    members = random_halves(n_samples, n_subsets, seed=seed)
    assert members.shape == (n_subsets, n_samples)
    assert (members.sum(axis=1) == n_samples // 2).all()
    more = random_halves(n_samples, n_subsets + 3, seed=seed)
    np.testing.assert_array_equal(more[:n_subsets], members)


def test_halves_differ_and_every_sample_is_in_about_half_of_them():
    members = random_halves(100, 400, seed=0)
    assert len(np.unique(members, axis=0)) == 400
    assert 0.4 < members.mean(axis=0).min() < members.mean(axis=0).max() < 0.6


@pytest.mark.parametrize(("n_samples", "n_subsets"), [(1, 5), (5, 1)])
def test_too_little_to_compare_is_refused(n_samples, n_subsets):
    with pytest.raises(UsageError, match=f"{n_subsets} halves of {n_samples} samples"):
        random_halves(n_samples, n_subsets, seed=0)


class Retraining:
    """Losses that say which samples they come from, and a power cut before one of them."""

    def __init__(self, *, cut_before=None):
        self.seeds = []
        self._cut_before = cut_before

    def __call__(self, places, seed):
        if seed == self._cut_before:
            raise KeyboardInterrupt
        self.seeds.append(seed)
        return np.array([places.sum(), seed], dtype=np.float64)


EXPECTED = [[1, 0], [3, 1], [5, 2], [3, 3]]


def test_losses_come_in_order_and_are_kept(tmp_path):
    seen, retrain = [], Retraining()
    losses = subset_losses(
        tmp_path / "a" / "b", HALVES, retrain, run={"model": "m"}, on_progress=seen.append
    )
    assert losses.tolist() == EXPECTED
    assert retrain.seeds == [0, 1, 2, 3]
    assert [(p.stage, p.done, p.total) for p in seen] == [("retraining", i, 4) for i in range(1, 5)]
    again = Retraining()
    assert (
        subset_losses(tmp_path / "a" / "b", HALVES, again, run={"model": "m"}).tolist() == EXPECTED
    )
    assert again.seeds == []


def test_a_killed_run_goes_on_with_the_subset_it_was_at(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        subset_losses(tmp_path, HALVES, Retraining(cut_before=2), run={})
    left = tmp_path / f"subset-00002.npz.{32 * 'a'}.partial"
    left.write_bytes(b"half of a file")
    retrain = Retraining()
    assert subset_losses(tmp_path, HALVES, retrain, run={}).tolist() == EXPECTED
    assert retrain.seeds == [2, 3]
    assert not left.exists()


def test_more_subsets_may_be_asked_for_later(tmp_path):
    subset_losses(tmp_path, HALVES[:2], Retraining(), run={})
    retrain = Retraining()
    assert subset_losses(tmp_path, HALVES, retrain, run={}).tolist() == EXPECTED
    assert retrain.seeds == [2, 3]


def test_the_losses_of_another_run_are_refused(tmp_path):
    subset_losses(tmp_path, HALVES, Retraining(), run={"model": "m", "epochs": 4})
    for run, message in (
        ({"model": "m", "epochs": 5}, "a run with epochs 4, and this one has 5"),
        ({"model": "m", "epochs": 4, "lora_rank": 8}, "lora_rank None, and this one has 8"),
        ({"epochs": 4}, "model 'm', and this one has None"),
    ):
        with pytest.raises(SettingsMismatchError, match=message):
            subset_losses(tmp_path, HALVES, Retraining(), run=run)


def test_a_run_without_losses_gives_way_to_another(tmp_path):
    """As one whose recipe failed at once: there is nothing here to keep apart."""
    with pytest.raises(KeyboardInterrupt):
        subset_losses(tmp_path, HALVES, Retraining(cut_before=0), run={"learning_rate": 1e38})
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]
    run = {"learning_rate": 1e-3}
    assert subset_losses(tmp_path, HALVES, Retraining(), run=run).tolist() == EXPECTED
    assert json.loads((tmp_path / "run.json").read_text("utf-8")) == run
    with pytest.raises(SettingsMismatchError, match="learning_rate"):
        subset_losses(tmp_path, HALVES, Retraining(), run={"learning_rate": 1e38})


def test_the_losses_of_other_subsets_are_refused(tmp_path):
    subset_losses(tmp_path, HALVES, Retraining(), run={})
    with pytest.raises(SettingsMismatchError, match=r"subset-00000\.npz .* other samples"):
        subset_losses(tmp_path, ~HALVES, Retraining(), run={})


def chunks(n, *, seed):
    """Documents of one token that is said again and again: what one teaches, others show."""
    tokens = np.random.default_rng(seed).integers(5, 9, size=n)
    mask = np.arange(8) >= 1
    return [Encoded(np.full(8, token), mask) for token in tokens]


STUDY = LdsStudy(
    training=chunks(8, seed=0),
    queries=chunks(4, seed=1),
    recipe=Recipe(epochs=3, learning_rate=3e-3, batch_samples=2),
    n_subsets=4,
)


@pytest.fixture
def backbone():
    return Backbone(tiny_model("llama"), tiny_tokenizer())


def test_a_model_is_fine_tuned_on_each_half_from_the_same_start(tmp_path, backbone):
    untrained = mean_losses(backbone, STUDY.queries)
    losses = measured_losses(backbone, STUDY, tmp_path)
    assert losses.shape == (4, 4)
    np.testing.assert_array_equal(mean_losses(backbone, STUDY.queries), untrained)
    # Alone, and not after the others, a half gives the same.
    (tmp_path / "subset-00002.npz").unlink()
    np.testing.assert_array_equal(measured_losses(backbone, STUDY, tmp_path), losses)
    assert losses.mean() < untrained.mean() - 0.1


def test_samples_like_the_query_are_found_to_help(tmp_path, backbone):
    """The whole path, with values that are right by construction: 1 for the query's own token."""
    study = LdsStudy(STUDY.training, STUDY.queries, STUDY.recipe, n_subsets=12)
    losses = measured_losses(backbone, study, tmp_path)
    said = [np.array([e.token_ids[0] for e in some]) for some in (study.queries, study.training)]
    right = (said[0][:, None] == said[1][None]).astype(float)
    assert linear_datamodelling_score(right, study.members, losses).score > 0.5


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_the_directory_says_what_its_losses_are_of(tmp_path, backbone, lora_rank):
    recipe = Recipe(epochs=1, lora_rank=lora_rank, batch_samples=2)
    measured_losses(
        backbone, LdsStudy(STUDY.training, STUDY.queries, recipe, n_subsets=2), tmp_path
    )
    stored = json.loads((tmp_path / "run.json").read_text("utf-8"))
    assert stored["lora_rank"] == lora_rank
    assert stored["weights"] == backbone.identity().weights_digest
    shorter = [Encoded(e.token_ids, np.arange(8) >= 2) for e in STUDY.queries]
    other = LdsStudy(STUDY.training, shorter, recipe, n_subsets=2)
    with pytest.raises(SettingsMismatchError, match="queries"):
        measured_losses(backbone, other, tmp_path)


def test_the_losses_of_another_model_are_refused(tmp_path, backbone):
    study = LdsStudy(STUDY.training, STUDY.queries, Recipe(epochs=1), n_subsets=2)
    measured_losses(backbone, study, tmp_path)
    other = Backbone(tiny_model("llama", seed=1), tiny_tokenizer())
    with pytest.raises(SettingsMismatchError, match="weights"):
        measured_losses(other, study, tmp_path)


def test_tokens_of_tests_are_tokens_of_the_model():
    assert all(e.token_ids.max() < VOCAB for e in [*STUDY.training, *STUDY.queries])
