import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.model.batching import PAD, PATCHES, batches, collate, halves, shared_tokens
from forvalue_index.model.encoded import Encoded


def encoded(token_ids, labels_at, n_images=0, n_patches=0):
    mask = np.zeros(len(token_ids), dtype=bool)
    mask[list(labels_at)] = True
    return Encoded(
        np.array(token_ids, dtype=np.int64),
        mask,
        image_tokens=((0, 1),) * n_images,
        read_inputs=(lambda: {"n": np.array(n_images)}) if n_images else None,
        n_patches=n_patches,
    )


@st.composite
def samples(draw):
    """What samples are made of: types that are checked at random are not to be made here."""
    length = draw(st.integers(2, 40))
    at = draw(st.sets(st.integers(1, length - 1), min_size=1, max_size=6))
    ids = draw(st.lists(st.integers(1, 99), min_size=length, max_size=length))
    n_images = draw(st.integers(0, 2))
    return ids, at, n_images, n_images * draw(st.integers(1, 400))


def made(drawn):
    return [encoded(*one) for one in drawn]


def inputs(sample):
    """Tokens that a prediction of the sample depends on: all before the last label."""
    return int(np.flatnonzero(sample.label_mask)[-1])


def test_a_batch_by_hand():
    long = encoded([5, 6, 7, 8, 9], [2, 3])  # token 8 is the last label, 9 follows it
    short = encoded([1, 2], [1])
    batch = collate([long, short], [4, 2])
    assert batch.token_ids.tolist() == [[5, 6, 7], [1, PAD, PAD]]
    assert batch.attention_mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch.labels.tolist() == [7, 8, 2]
    assert batch.label_rows.tolist() == [0, 0, 1]
    assert batch.label_columns.tolist() == [1, 2, 0]
    assert batch.indices == (4, 2)


@given(st.lists(samples(), max_size=12), st.integers(1, 120))
def test_batches_hold_every_sample_once_within_the_budget_longest_first(drawn, budget):
    """Longest first among those of as many images, which are never mixed."""
    given_samples = made(drawn)
    found = list(batches(given_samples, token_budget=budget))
    indices = [i for batch in found for i in batch.indices]
    assert sorted(indices) == list(range(len(given_samples)))
    counts = [len(given_samples[i].image_tokens) for i in indices]
    order = [(count, inputs(given_samples[i])) for count, i in zip(counts, indices, strict=True)]
    assert order == sorted(order, reverse=True)
    for batch in found:
        assert batch.token_ids.size <= budget or len(batch.indices) == 1
        patches = sum(given_samples[i].n_patches for i in batch.indices)
        assert patches <= PATCHES * budget or len(batch.indices) == 1
        (count,) = {len(given_samples[i].image_tokens) for i in batch.indices}
        assert len(batch.readers) == (len(batch.indices) if count else 0)
        assert [int(read["n"]) for read in batch.inputs] == [count] * len(batch.readers)
        assert batch.token_ids.shape == batch.attention_mask.shape
        assert batch.token_ids.shape[1] == max(inputs(given_samples[i]) for i in batch.indices)


@given(st.lists(samples(), min_size=1, max_size=8), st.integers(1, 120))
def test_a_batch_says_what_its_samples_say(drawn, budget):
    given_samples = made(drawn)
    for batch in batches(given_samples, token_budget=budget):
        for row, i in enumerate(batch.indices):
            sample = given_samples[i]
            read = batch.token_ids[row][batch.attention_mask[row] == 1]
            assert read.tolist() == sample.token_ids[: inputs(sample)].tolist()
            at = batch.label_rows == row
            assert batch.labels[at].tolist() == sample.token_ids[sample.label_mask].tolist()
            columns = np.flatnonzero(sample.label_mask) - 1
            assert batch.label_columns[at].tolist() == columns.tolist()
            assert batch.attention_mask[row, batch.label_columns[at]].all()
        assert (np.diff(batch.label_rows) >= 0).all()


def test_batches_are_as_large_as_the_budget_allows():
    equal = [encoded([1] * 11, [10]) for _ in range(7)]  # 10 input tokens each
    assert [len(b.indices) for b in batches(equal, token_budget=30)] == [3, 3, 1]
    assert [len(b.indices) for b in batches(equal, token_budget=39)] == [3, 3, 1]
    assert [len(b.indices) for b in batches(equal, token_budget=9)] == [1] * 7


def test_equal_lengths_keep_their_order():
    equal = [encoded([i, i, i], [1, 2]) for i in range(1, 6)]
    (batch,) = batches(equal, token_budget=100)
    assert batch.indices == (0, 1, 2, 3, 4)


def test_no_sample_makes_no_batch():
    assert list(batches([], token_budget=10)) == []


@pytest.mark.parametrize("budget", [1, 50])
def test_one_label_after_one_token_is_the_shortest_sample(budget):
    (batch,) = batches([encoded([3, 4], [1])], token_budget=budget)
    assert batch.token_ids.tolist() == [[3]]
    assert batch.labels.tolist() == [4]


@given(st.lists(samples(), max_size=20), st.integers(1, 120), st.data())
def test_batches_are_the_same_without_the_first_ones(drawn, token_budget, data):
    """What an ingestion that goes on after a stop relies on, for rows that are equal to the bit."""
    found = made(drawn)
    whole = list(batches(found, token_budget=token_budget))
    done = data.draw(st.integers(0, len(whole)))
    stored = {i for batch in whole[:done] for i in batch.indices}
    left = [i for i in range(len(found)) if i not in stored]
    rest = list(batches([found[i] for i in left], token_budget=token_budget))
    assert [[left[i] for i in batch.indices] for batch in rest] == [
        list(batch.indices) for batch in whole[done:]
    ]
    for ours, theirs in zip(rest, whole[done:], strict=True):
        assert np.array_equal(ours.token_ids, theirs.token_ids)


@given(st.lists(samples(), min_size=2, max_size=20))
def test_halves_are_batches_of_their_samples(drawn):
    found = made([(ids, at, 1, 1) for ids, at, _, _ in drawn])
    batch = collate(found, range(len(found)))
    middle = (len(found) + 1) // 2
    for half, indices in zip(
        halves(batch), (range(middle), range(middle, len(found))), strict=True
    ):
        expected = collate([found[i] for i in indices], indices)
        assert half.indices == expected.indices
        assert list(half.readers) == list(expected.readers)
        for name in ("token_ids", "attention_mask", "label_rows", "label_columns", "labels"):
            assert np.array_equal(getattr(half, name), getattr(expected, name)), name


@pytest.mark.parametrize(
    ("token_ids", "first_label", "expected"),
    [
        ([[5, 6, 7, 8], [5, 6, 9, 8]], 3, 2),
        ([[5, 6, 7, 8], [5, 6, 7, 8]], 3, 2),  # the token at 2 predicts the label
        ([[5, 6, 7, 8], [4, 6, 7, 8]], 3, 0),
        ([[5, 6, 7, 8], [5, 6, 7]], 2, 1),
        ([[5, 6, 7, 8, 9], [5, 6, 0, 8, 9], [5, 1, 7, 8, 9]], 4, 1),
        ([[5, 6, 7, 8]], 1, 0),
    ],
)
def test_tokens_that_samples_begin_with(token_ids, first_label, expected):
    samples = [encoded(ids, [*range(first_label, len(ids))]) for ids in token_ids]
    assert shared_tokens(collate(samples, range(len(samples)))) == expected
