import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sketch_oracle import CPU, SHAPES, sketched, slow_oracle, tokens

from forvalue_index.gradients.hash_tables import draw_tables
from forvalue_index.gradients.sketch import OuterProduct, Sketch, TensorSketch, make_sketch


def tensor_sketch(vocab, hidden, dim, *, seed=0):
    sketch = make_sketch(draw_tables(vocab, hidden, dim=dim, seed=seed), dim=dim, device=CPU)
    assert isinstance(sketch, TensorSketch)
    return sketch


@pytest.mark.parametrize(("vocab", "hidden", "dim"), SHAPES)
def test_a_row_is_the_circular_convolution_of_two_count_sketches(vocab, hidden, dim):
    tables = draw_tables(vocab, hidden, dim=dim, seed=1)
    error, states = tokens(3, vocab, hidden)
    row = sketched(make_sketch(tables, dim=dim, device=CPU), error, states)[0]
    np.testing.assert_allclose(row, slow_oracle(tables, error, states, dim), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("vocab", "hidden", "dim"), SHAPES)
def test_float32_rows_are_the_float64_rows_to_rounding(vocab, hidden, dim):
    sketch = tensor_sketch(vocab, hidden, dim)
    error, states = tokens(5, vocab, hidden)
    exact = sketched(sketch, error, states)
    row = sketched(sketch, error.float(), states.float())
    assert row.dtype == torch.float32
    assert (row - exact).norm() <= 1e-6 * exact.norm()


@settings(deadline=None)
@given(
    st.sampled_from(SHAPES),
    st.integers(0, 2**32 - 1),
    st.integers(1, 6),
    st.floats(-5, 5),
    st.floats(-5, 5),
)
def test_sketches_are_linear(shape, seed, n, a, b):
    vocab, hidden, dim = shape
    sketch = tensor_sketch(vocab, hidden, dim, seed=seed % 17)
    error, states = tokens(2 * n, vocab, hidden, seed=seed)
    one, two = (sketched(sketch, error[i::2], states[i::2])[0] for i in range(2))
    weights = torch.tensor([a, b], dtype=torch.float64).repeat(n)[:, None]
    together = sketched(sketch, weights * error, states)[0]
    torch.testing.assert_close(together, a * one + b * two, rtol=0, atol=1e-9)


@pytest.mark.parametrize("make", ["tensor sketch", "outer product"])
def test_order_and_grouping_of_tokens_and_samples_change_nothing(make):
    tables = draw_tables(30, 8, dim=32, seed=0)
    sketch = make_sketch(tables, dim=32 if make == "tensor sketch" else 240, device=CPU)
    error, states = tokens(20, 30, 8)
    owner = torch.arange(20) % 4
    rows = sketched(sketch, error, states, owner)

    shuffled = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    again = sketched(sketch, error[shuffled], states[shuffled], owner[shuffled])
    torch.testing.assert_close(again, rows, rtol=0, atol=1e-12)

    renamed = sketched(sketch, error, states, 3 - owner)
    torch.testing.assert_close(renamed, rows.flip(0), rtol=0, atol=1e-12)

    alone = torch.cat([sketched(sketch, error[i::4], states[i::4]) for i in range(4)])
    torch.testing.assert_close(alone, rows, rtol=0, atol=1e-12)


def test_accumulating_in_chunks_is_accumulating_at_once():
    sketch = tensor_sketch(70, 12, 32)
    error, states = tokens(9, 70, 12)
    owner = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 2])
    sums = sketch.empty(3, error)
    for part in (slice(0, 2), slice(2, 7), slice(7, 9)):
        sketch.accumulate(sums, error[part][:, sketch.vocab_order], states[part], owner[part])
    torch.testing.assert_close(
        sketch.rows(sums), sketched(sketch, error, states, owner), rtol=0, atol=1e-12
    )


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize(("vocab", "hidden", "dim"), [(210, 24, 64), (40, 24, 64), (210, 90, 64)])
def test_inner_products_are_unbiased_with_the_promised_error(n_tokens, vocab, hidden, dim):
    """Over 400 seeds and 8 x 8 pairs of samples: mean error 0, and std |A| |B| / sqrt(D).

    The second sample of each pair shares half of its entries with the first, so that the true
    inner products are not 0.
    """
    left = tokens(8 * n_tokens, vocab, hidden, seed=1)
    other = tokens(8 * n_tokens, vocab, hidden, seed=2)
    right = tuple((a + b) / math.sqrt(2) for a, b in zip(left, other, strict=True))
    owner = torch.arange(8).repeat_interleave(n_tokens)
    full = OuterProduct({"vocab_order": torch.arange(vocab), "hidden_sign": torch.arange(hidden)})
    exact_left, exact_right = (sketched(full, *pair, owner) for pair in (left, right))
    true = exact_left @ exact_right.T
    norms = torch.outer(exact_left.norm(dim=1), exact_right.norm(dim=1))
    assert (true.diag() / norms.diag() > 0.3).all()

    errors = []
    for seed in range(400):
        sketch = tensor_sketch(vocab, hidden, dim, seed=seed)
        products = sketched(sketch, *left, owner) @ sketched(sketch, *right, owner).T
        errors.append((products - true) / norms)
    errors = torch.stack(errors)  # [seed, left, right]

    apart = ~torch.eye(8, dtype=torch.bool)  # pairs with a product of about 0
    assert float(errors[:, apart].std()) == pytest.approx(1 / math.sqrt(dim), rel=0.15)
    mean = errors.mean(dim=(1, 2))  # one number a seed: pairs of one seed are not independent
    assert abs(float(mean.mean())) < 4 * float(mean.std()) / math.sqrt(len(mean))
    alike = errors[:, ~apart].mean(dim=1)
    assert abs(float(alike.mean())) < 4 * float(alike.std()) / math.sqrt(len(alike))


def test_a_small_head_is_kept_whole():
    tables = draw_tables(10, 3, dim=30, seed=0)
    sketch = make_sketch(tables, dim=30, device=CPU)
    assert isinstance(sketch, OuterProduct)
    assert sketch.exact
    assert sketch.dim == 30
    error, states = tokens(4, 10, 3)
    gradient = (error.T @ states)[torch.from_numpy(tables["vocab_order"])]
    torch.testing.assert_close(sketched(sketch, error, states)[0], gradient.flatten())


def test_a_head_of_one_entry_more_is_sketched():
    sketch = make_sketch(draw_tables(10, 3, dim=29, seed=0), dim=29, device=CPU)
    assert isinstance(sketch, TensorSketch)
    assert not sketch.exact
    assert sketch.dim == 29


def test_both_kinds_keep_the_contract():
    for dim in (16, 64):
        assert isinstance(
            make_sketch(draw_tables(8, 8, dim=dim, seed=0), dim=dim, device=CPU), Sketch
        )
