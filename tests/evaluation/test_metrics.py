"""Measures against values by hand, and against what random orders of tied samples give."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from forvalue_index.evaluation.metrics import (
    auc,
    auc_interval,
    detection_curve,
    difference_interval,
    mean_interval,
    recall_at_class_size,
    share_kept,
    spearman,
)
from forvalue_index.exceptions import UsageError


def numbers(*values):
    return np.array(values, dtype=np.float64)


def marks(text):
    return np.array([sign == "+" for sign in text])


@st.composite
def scored(draw):
    """Scores with many ties, and marks of both kinds."""
    n = draw(st.integers(2, 25))
    scores = draw(npst.arrays(np.float64, n, elements=st.integers(-3, 3).map(float)))
    positive = draw(npst.arrays(np.bool_, n).filter(lambda m: 0 < m.sum() < len(m)))
    return scores, positive


def shuffled(scores, positive, seed):
    order = np.random.default_rng(seed).permutation(len(scores))
    return scores[order], positive[order]


def test_auc_by_hand():
    assert auc(numbers(3, 2, 1, 0), marks("+--+")) == 0.5
    assert auc(numbers(3, 2, 2, 0), marks("+-+-")) == 3.5 / 4
    assert auc(numbers(1, 1, 1), marks("+--")) == 0.5
    assert auc(numbers(9, -1), marks("+-")) == 1
    assert auc(numbers(9, -1), marks("-+")) == 0


@given(scored())
@settings(deadline=None)
def test_auc_counts_pairs(case):
    scores, positive = case
    pairs = [
        1.0 if mine > theirs else 0.5 if mine == theirs else 0.0
        for mine in scores[positive]
        for theirs in scores[~positive]
    ]
    assert auc(scores, positive) == pytest.approx(np.mean(pairs))


@given(scored())
@settings(deadline=None)
def test_negation_turns_auc_over(case):
    scores, positive = case
    assert auc(-scores, positive) == pytest.approx(1 - auc(scores, positive))
    assert auc(scores, ~positive) == pytest.approx(1 - auc(scores, positive))


def test_recall_by_hand():
    assert recall_at_class_size(numbers(5, 4, 3, 2, 1), marks("++---")) == 1
    assert recall_at_class_size(numbers(5, 4, 3, 2, 1), marks("+---+")) == 0.5
    assert recall_at_class_size(numbers(5, 4, 3, 2, 1), marks("---++")) == 0
    # One place is left for three tied samples, of which one is positive.
    assert recall_at_class_size(numbers(5, 4, 4, 4, 1), marks("++---")) == pytest.approx(2 / 3)
    # Where all are equal it is the share of positive ones.
    assert recall_at_class_size(numbers(0, 0, 0, 0), marks("+---")) == 0.25


@given(scored())
@settings(max_examples=20, deadline=None)
def test_recall_is_that_of_random_orders_of_ties(case):
    scores, positive = case
    size = positive.sum()
    found = []
    for seed in range(400):
        mixed, mine = shuffled(scores, positive, seed)
        found.append(mine[np.argsort(-mixed, kind="stable")[:size]].mean())
    assert recall_at_class_size(scores, positive) == pytest.approx(np.mean(found), abs=0.1)


def test_detection_by_hand():
    curve = detection_curve(numbers(-2, -1, 0, 1), marks("+-+-"))
    assert curve.inspected.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert curve.found.tolist() == [0, 0.5, 0.5, 1, 1]
    assert curve.found_at(0.125) == 0.25
    assert curve.found_at(numbers(0, 0.625, 1)).tolist() == [0, 0.75, 1]


def test_equal_values_are_one_straight_line():
    curve = detection_curve(numbers(0, 0, 0, 0, 7), marks("+---+"))
    assert curve.inspected.tolist() == pytest.approx([0, 0.8, 1])
    assert curve.found.tolist() == [0, 0.5, 1]


@given(scored())
@settings(deadline=None)
def test_the_area_under_the_curve_follows_from_auc(case):
    """Area = auc * (1 - base) + base / 2, whatever the ties."""
    values, flagged = case
    curve = detection_curve(values, flagged)
    area = np.trapezoid(curve.found, curve.inspected)
    base = flagged.mean()
    assert area == pytest.approx(auc(-values, flagged) * (1 - base) + base / 2)
    assert curve.inspected[-1] == pytest.approx(1)
    assert curve.found[-1] == 1
    assert (np.diff(curve.found) >= 0).all()


@given(scored(), st.integers(0, 9))
@settings(deadline=None)
def test_the_order_of_samples_is_nothing(case, seed):
    mixed = shuffled(*case, seed)
    for measure in (auc, recall_at_class_size):
        assert measure(*mixed) == pytest.approx(measure(*case))
    assert np.array_equal(detection_curve(*mixed).found, detection_curve(*case).found)


@pytest.mark.parametrize("measure", [auc, auc_interval, recall_at_class_size, detection_curve])
@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        (numbers(1, 2), marks("++"), "2 of 2 samples are marked"),
        (numbers(1, 2), marks("--"), "0 of 2 samples are marked"),
        (numbers(1, np.nan, np.inf), marks("+-+"), "2 of 3 scores are infinite or undefined"),
        (numbers(1, 2, 3), marks("+-"), r"\(3,\) scores do not fit \(2,\) marks"),
    ],
)
def test_what_cannot_be_measured_is_refused(measure, scores, positive, message):
    with pytest.raises(UsageError, match=message):
        measure(scores, positive)


def test_spearman_by_hand():
    assert spearman(numbers(1, 2, 3, 4), numbers(10, 20, 30, 1e9)) == pytest.approx(1)
    assert spearman(numbers(1, 2, 3), numbers(5, 4, -3)) == pytest.approx(-1)
    # By the formula for ranks without ties, with rank differences 0, 1 and 1.
    assert spearman(numbers(1, 2, 3), numbers(1, 3, 2)) == pytest.approx(0.5)
    assert np.isnan(spearman(numbers(1, 1), numbers(1, 2)))
    assert np.isnan(spearman(numbers(1, 2), numbers(3, 3)))


@pytest.mark.parametrize(("a", "b"), [((1, 2), (1, 2, 3)), ((1,), (1,))])
def test_spearman_refuses_other_lengths(a, b):
    with pytest.raises(UsageError, match="two arrays of one length"):
        spearman(numbers(*a), numbers(*b))


def test_kept_by_hand():
    exact, approximate = numbers(9, 8, 7, 1, 0), numbers(9, 1, 7, 8, 0)
    assert share_kept(exact, approximate, 1) == 1
    assert share_kept(exact, approximate, 2) == 0.5
    assert share_kept(exact, approximate, 2, candidates=3) == 0.5
    assert share_kept(exact, approximate, 2, candidates=4) == 1
    assert share_kept(-exact, -approximate, 2) == 0.5
    # Ties go by place.
    assert share_kept(numbers(1, 1, 1), numbers(0, 0, 0), 2) == 1


@pytest.mark.parametrize(("k", "other"), [(0, 3), (4, 3), (1, 2)])
def test_kept_refuses_what_is_not_there(k, other):
    with pytest.raises(UsageError, match="cannot be compared"):
        share_kept(numbers(1, 2, 3), np.zeros(other), k)


def test_an_interval_is_that_of_the_normal_distribution():
    """For many values the percentile interval is mean ± 1.96 standard errors."""
    values = np.random.default_rng(3).normal(5, 2, size=2_000)
    found = mean_interval(values)
    error = 1.96 * values.std() / np.sqrt(len(values))
    assert found.value == pytest.approx(values.mean())
    assert found.low == pytest.approx(values.mean() - error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + error, abs=0.1 * error)
    narrow = mean_interval(values, confidence=0.5)
    assert found.low < narrow.low < found.value < narrow.high < found.high


def test_intervals_hold_what_they_promise():
    """Of 100 intervals for 90 % about 90 hold the true mean."""
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(100):
        found = mean_interval(rng.normal(1, 1, size=50), confidence=0.9)
        held += found.low <= 1 <= found.high
    assert 82 <= held <= 96


def test_intervals_are_seeded():
    values = np.random.default_rng(1).normal(size=30)
    assert mean_interval(values) == mean_interval(values)
    assert mean_interval(values, seed=1) != mean_interval(values)
    positive = values + np.arange(30) / 10 > 1.5
    assert auc_interval(values, positive) == auc_interval(values, positive)
    assert auc_interval(values, positive, seed=1) != auc_interval(values, positive)


def test_one_value_has_no_interval():
    assert mean_interval(numbers(4)) == (alone := mean_interval(numbers(4), seed=9))
    assert (alone.value, alone.low, alone.high) == (4, None, None)
    single = auc_interval(numbers(3, 2, 1), marks("+--"))
    assert (single.value, single.low, single.high) == (1, None, None)
    with pytest.raises(UsageError, match="no mean of nothing"):
        mean_interval(numbers())


def test_constant_values_have_an_interval_of_no_width():
    found = mean_interval(numbers(2, 2, 2))
    assert (found.value, found.low, found.high) == (2, 2, 2)
    perfect = auc_interval(numbers(4, 3, 2, 1), marks("++--"))
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)


def test_a_difference_is_that_of_the_normal_distribution():
    rng = np.random.default_rng(4)
    a, b = rng.normal(5, 2, size=1_500), rng.normal(4, 3, size=900)
    found = difference_interval(a, b)
    error = 1.96 * np.sqrt(a.var() / len(a) + b.var() / len(b))
    assert found.value == pytest.approx(a.mean() - b.mean())
    assert found.low == pytest.approx(found.value - error, abs=0.1 * error)
    assert found.high == pytest.approx(found.value + error, abs=0.1 * error)
    turned = difference_interval(b, a)
    assert turned.value == pytest.approx(-found.value)
    assert turned.low == pytest.approx(-found.high, abs=0.1 * error)
    narrow = difference_interval(a, b, confidence=0.5)
    assert found.low < narrow.low < found.value < narrow.high < found.high


def test_a_difference_by_hand():
    """All resamples of (0, 1) are 0, 1/2, 1/2 and 1, less those of (5, 5), which are 5."""
    found = difference_interval(numbers(0, 1), numbers(5, 5))
    assert (found.value, found.low, found.high) == (-4.5, -5, -4)
    same = difference_interval(numbers(3, 3), numbers(1, 1, 1))
    assert (same.value, same.low, same.high) == (2, 2, 2)
    assert difference_interval(numbers(0, 1, 5), numbers(2, 8)) == difference_interval(
        numbers(0, 1, 5), numbers(2, 8)
    )


@pytest.mark.parametrize(("a", "b"), [((4,), (1, 2, 3)), ((1, 2, 3), (4,)), ((7,), (5,))])
def test_a_difference_from_one_value_has_no_interval(a, b):
    found = difference_interval(numbers(*a), numbers(*b))
    assert (found.value, found.low, found.high) == (np.mean(a) - np.mean(b), None, None)


@pytest.mark.parametrize(("a", "b"), [((), (1, 2)), ((1, 2), ()), ((), ())])
def test_a_difference_from_nothing_is_refused(a, b):
    with pytest.raises(UsageError, match="no mean of nothing"):
        difference_interval(numbers(*a), numbers(*b))


def test_an_auc_interval_against_a_slow_bootstrap():
    rng = np.random.default_rng(5)
    positive = np.arange(60) < 20
    scores = np.round(rng.normal(size=60) + positive, 1)
    found = auc_interval(scores, positive)
    slow = []
    for _ in range(1_000):
        mine = rng.choice(scores[positive], 20)
        theirs = rng.choice(scores[~positive], 40)
        slow.append(auc(np.concatenate([mine, theirs]), positive))
    low, high = np.percentile(slow, [2.5, 97.5])
    assert found.value == auc(scores, positive)
    assert found.low == pytest.approx(low, abs=0.03)
    assert found.high == pytest.approx(high, abs=0.03)
