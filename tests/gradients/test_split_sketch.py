"""The sketch with a direction split off, which indexes of most language models use."""

import math

import numpy as np
import pytest
import torch
from models import tiny_model, tiny_tokenizer
from sketch_oracle import CPU, SHAPES, sketched, slow_oracle, tokens

from forvalue_index.gradients.hash_tables import (
    Layout,
    ModelProfile,
    draw_tables,
    geometry_tables,
    part_widths,
)
from forvalue_index.gradients.model_profile import profile_model
from forvalue_index.gradients.sketch import (
    OuterProduct,
    Sketch,
    SplitSketch,
    TensorSketch,
    make_sketch,
)
from forvalue_index.gradients.sketch_error import ErrorScale, SketchError
from forvalue_index.model.huggingface.backbone import Backbone


def profile(vocab, hidden, *, share=0.6):
    random = np.random.default_rng(9)
    direction = random.standard_normal(hidden)
    return ModelProfile(random.permutation(vocab), direction / np.linalg.norm(direction), share)


def split_tables(vocab, hidden, dim, *, seed=0):
    drawn = draw_tables(vocab, hidden, dim=dim, seed=seed, profile=profile(vocab, hidden))
    return geometry_tables(drawn, "raw")


def split_sketch(vocab, hidden, dim, *, seed=0):
    sketch = make_sketch(split_tables(vocab, hidden, dim, seed=seed), dim=dim, device=CPU)
    assert isinstance(sketch, SplitSketch)
    return sketch


@pytest.mark.parametrize(("vocab", "hidden", "dim"), SHAPES)
def test_a_row_is_a_rotated_count_sketch_and_a_tensor_sketch_of_the_rest(vocab, hidden, dim):
    tables = split_tables(vocab, hidden, dim)
    error, states = tokens(3, vocab, hidden)
    direction, split_dim = torch.from_numpy(tables["directions"][0]), int(tables["split_dim"][0])
    along = states @ direction
    buckets = np.zeros(split_dim)
    for place, v in enumerate(tables["vocab_order"]):
        shift = tables["split_shift"][place // split_dim]
        signed = tables["split_sign"][place] * float((error[:, v] * along).sum())
        buckets[(place + shift) % split_dim] += signed
    rest = slow_oracle(tables, error, states - along[:, None] * direction, dim - split_dim)

    row = sketched(make_sketch(tables, dim=dim, device=CPU), error, states)[0]
    np.testing.assert_allclose(row, np.concatenate([buckets, rest]), rtol=0, atol=1e-10)


@pytest.mark.parametrize(("vocab", "hidden", "dim"), SHAPES)
def test_rows_are_linear_and_a_function_of_one_sample(vocab, hidden, dim):
    sketch = split_sketch(vocab, hidden, dim)
    assert isinstance(sketch, Sketch)
    error, states = tokens(8, vocab, hidden)
    owner = torch.arange(8) % 2
    rows = sketched(sketch, error, states, owner)
    assert rows.shape == (2, dim)
    for i in range(2):
        alone = sketched(sketch, -3 * error[i::2], states[i::2])
        torch.testing.assert_close(alone[0], -3 * rows[i], rtol=0, atol=1e-11)
    exact = sketched(sketch, error, states)
    single = sketched(sketch, error.float(), states.float())
    assert (single - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("like_a_model", [False, True])
def test_inner_products_are_unbiased_and_nearer_for_what_models_give(like_a_model):
    """Over 400 seeds; the errors of models are on few tokens, their states along one direction.

    Where neither holds, the sketch is still unbiased, and its error at most sqrt(2) of the promise.
    """
    vocab, hidden, dim = 210, 24, 64
    known = profile(vocab, hidden)
    pairs = [tokens(8, vocab, hidden, seed=seed) for seed in (1, 2)]
    if like_a_model:
        weight = torch.empty(vocab, dtype=torch.float64)
        weight[known.token_ranking] = 1 / (1 + torch.arange(vocab, dtype=torch.float64))
        direction = 6 * torch.from_numpy(known.direction)
        pairs = [(error * weight, states + direction) for error, states in pairs]
    owner = torch.arange(8)
    full = OuterProduct({"vocab_order": torch.arange(vocab), "hidden_sign": torch.arange(hidden)})
    left, right = (sketched(full, *pair, owner) for pair in pairs)
    exact = left @ right.T
    norms = torch.outer(left.norm(dim=1), right.norm(dim=1))

    def errors(make):
        found = []
        for seed in range(400):
            sketch = make(seed)
            left_rows, right_rows = (sketched(sketch, *pair, owner) for pair in pairs)
            found.append((left_rows @ right_rows.T - exact) / norms)
        return torch.stack(found)

    split = errors(lambda seed: split_sketch(vocab, hidden, dim, seed=seed))
    standard_error = split.std(dim=0) / math.sqrt(400)
    assert (split.mean(dim=0).abs() < 5 * standard_error).all()

    promised = 1 / math.sqrt(dim)
    assert split.std() < (0.7 if like_a_model else 1.45) * promised


def test_the_tokens_predicted_most_share_no_bucket():
    vocab, hidden, dim = 5000, 8, 2048
    known = profile(vocab, hidden)
    tables = draw_tables(vocab, hidden, dim=dim, seed=3, profile=known)
    assert sorted(tables["vocab_order"]) == list(range(vocab))
    first = tables["vocab_order"][: dim // 4]
    assert set(first) == set(known.token_ranking[: dim // 4])
    assert not np.array_equal(first, known.token_ranking[: dim // 4])


def test_nothing_is_split_off_where_no_direction_leads():
    tables = draw_tables(70, 12, dim=32, seed=0, profile=profile(70, 12, share=0.2))
    assert "direction" not in tables
    assert isinstance(make_sketch(tables, dim=32, device=CPU), TensorSketch)


def test_the_profile_is_what_the_model_does_on_random_tokens():
    backbone = Backbone(tiny_model("llama"), tiny_tokenizer())
    found = profile_model(backbone, backbone.head, context=backbone.context)
    vocab, hidden = backbone.head.weight.shape
    assert sorted(found.token_ranking) == list(range(vocab))
    assert found.direction.shape == (hidden,)
    assert np.linalg.norm(found.direction) == pytest.approx(1)
    assert 0 <= found.share <= 1
    again = profile_model(backbone, backbone.head, context=backbone.context)
    assert np.array_equal(found.direction, again.direction)
    assert np.array_equal(found.token_ranking, again.token_ranking)
    short = profile_model(backbone, backbone.head, context=8)
    assert not np.array_equal(found.direction, short.direction)


def test_standard_errors_are_those_of_the_parts():
    """A part of D floats has |q| |r| / sqrt(D) of its own; 0 where rows are exact."""
    random = np.random.default_rng(0)
    query, rows = random.random(10, np.float32), random.random((3, 10), np.float32)

    def alone(part):
        norms = np.linalg.norm(query[part]) * np.linalg.norm(rows[:, part], axis=1)
        return norms / math.sqrt(part.stop - part.start)

    both = np.hypot(alone(slice(0, 4)), alone(slice(4, 10)))

    def found(*widths, **scale):
        return SketchError(widths, ErrorScale(**scale)).standard_errors(query, rows)

    np.testing.assert_allclose(found(4, 6), both, rtol=1e-6)
    np.testing.assert_allclose(found(4, 6, noise=1.7), 1.7 * both, rtol=1e-6)
    dropped = np.hypot(both, 0.3 * (rows @ query))
    np.testing.assert_allclose(found(4, 6, relative=0.3), dropped, rtol=1e-6)
    np.testing.assert_allclose(found(10), alone(slice(0, 10)), rtol=1e-6)
    assert found().tolist() == found(noise=2, relative=1).tolist() == [0, 0, 0]
    assert part_widths(split_tables(70, 12, 32), 32) == (16, 16)
    assert part_widths(draw_tables(70, 12, dim=32, seed=0), 32) == (32,)
    assert part_widths(split_tables(70, 12, 1000), 1000) == ()


@pytest.mark.parametrize("along", [0.5, 1, 10])
def test_the_promised_error_holds_however_strong_the_direction_is(along):
    """With half of the floats for each part, |A| |B| / sqrt(D) of whole rows is too little."""
    vocab, hidden, dim = 210, 24, 64
    direction = along * hidden**0.5 * torch.from_numpy(profile(vocab, hidden).direction)
    pairs = [tokens(8, vocab, hidden, seed=seed) for seed in (1, 2)]
    pairs = [(error, states + direction) for error, states in pairs]
    owner = torch.arange(8)
    full = OuterProduct({"vocab_order": torch.arange(vocab), "hidden_sign": torch.arange(hidden)})
    left, right = (sketched(full, *pair, owner) for pair in pairs)
    squares, promised = [], []
    for seed in range(300):
        sketch = split_sketch(vocab, hidden, dim, seed=seed)
        rows, others = (sketched(sketch, *pair, owner) for pair in pairs)
        squares.append((rows @ others.T - left @ right.T).square().mean())
        stderrs = [
            SketchError((32, 32)).standard_errors(r, others.float().numpy())
            for r in rows.float().numpy()
        ]
        promised.append(np.square(stderrs).mean())
    assert 0.85 < math.sqrt(np.mean(squares) / np.mean(promised)) < 1.15


def orthonormal(count, hidden, seed=4):
    random = np.random.default_rng(seed)
    return np.linalg.qr(random.standard_normal((hidden, count)))[0].T.copy()


def directed_tables(vocab, hidden, dim, directions, buckets, *, seed=0):
    """Tables of a geometry whose directions a calibration found."""
    layouts = {"kfac": Layout(directions, buckets)}
    drawn = draw_tables(vocab, hidden, dim=dim, seed=seed, layouts=layouts)
    return geometry_tables(drawn, "kfac", orthonormal(directions, hidden))


@pytest.mark.parametrize(("vocab", "hidden", "dim"), SHAPES)
@pytest.mark.parametrize(("directions", "buckets"), [(2, 10), (3, 5), (1, 8)])
def test_each_direction_has_its_count_sketch_and_the_rest_a_tensor_sketch(
    vocab, hidden, dim, directions, buckets
):
    tables = directed_tables(vocab, hidden, dim, directions, buckets)
    error, states = tokens(3, vocab, hidden)
    basis = torch.from_numpy(tables["directions"])
    expected = np.zeros((directions, buckets))
    for j, direction in enumerate(basis):
        along = states @ direction
        for place, v in enumerate(tables["vocab_order"]):
            bucket = (place + tables["split_shift"][place // buckets]) % buckets
            signed = tables["split_sign"][place] * float((error[:, v] * along).sum())
            expected[j, bucket] += signed
    left = states - (states @ basis.T) @ basis
    rest = slow_oracle(tables, error, left, dim - directions * buckets)
    row = sketched(make_sketch(tables, dim=dim, device=CPU), error, states)[0]
    wanted = np.concatenate([expected.ravel(), rest])
    np.testing.assert_allclose(row, wanted, rtol=0, atol=1e-10)


def test_what_no_direction_holds_is_dropped_where_no_floats_are_left_for_it():
    """Exact but for hashing along the directions: 0 for states that are orthogonal to them."""
    tables = directed_tables(20, 12, 40, 2, 20)
    assert part_widths(tables, 40) == (40,)
    sketch = make_sketch(tables, dim=40, device=CPU)
    error, states = tokens(3, 20, 12)
    basis = torch.from_numpy(tables["directions"])
    left = states - (states @ basis.T) @ basis
    assert sketched(sketch, error, left).abs().max() < 1e-12
    # 20 tokens in 20 buckets: no two share one, so inner products are those along the directions.
    row = sketched(sketch, error, states)[0]
    projected = (error.T @ states) @ basis.T
    torch.testing.assert_close(row @ row, projected.square().sum())
