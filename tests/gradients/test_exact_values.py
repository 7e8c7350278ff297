import dataclasses

import numpy as np
import oracle
import pytest
import torch
from embedders import embedder, pair
from exact_readers import (
    BROKEN,
    CERTAIN,
    VALIDATION,
    breakable,  # noqa: F401 - a fixture
    certain_reader,
    geometry,
    prepared,
    reader,
    truth,
)
from models import TIED, VOCAB, tiny_model

from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.gradients import exact_matrix as exact_matrices
from forvalue_index.gradients.embedder import geometry_of
from forvalue_index.gradients.exact_matrix import exact_matrix
from forvalue_index.gradients.exact_values import (
    ValidationGradient,
    by_sample,
    exact_terms,
    exact_values,
    gradient_norms,
    mean_gradient,
    tokens_in,
    validation_gradient,
)
from forvalue_index.model import label_tokens
from forvalue_index.progress import Progress
from forvalue_index.settings import GEOMETRIES, Settings

KINDS = ("llama", "gemma2", "granite", "phi", "llama-tied")
DTYPES = (torch.float32, torch.float64)
TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@pytest.mark.parametrize("kind", KINDS)
def test_the_oracle_is_autograd_on_the_head(kind):
    """Errors and states by hooks make the gradient for the weight of the head alone."""
    model = tiny_model(kind, torch.float64)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (kind in TIED)
    for p in prepared(reader("llama")):
        at = (p.encoded.token_ids, p.encoded.label_mask)
        whole = oracle.head_gradient(model, *at)
        gap = oracle.gradient(oracle.seen(model, *at)) - whole
        assert np.linalg.norm(gap) <= 1e-11 * np.linalg.norm(whole)


@pytest.mark.parametrize("normalize", [False, True], ids=["products", "cosines"])
@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_are_those_of_autograd(kind, dtype, name, normalize):
    read = reader(kind, dtype)
    used, items, queries = geometry(name, read), prepared(read), prepared(read, VALIDATION)
    left, right, expected = truth(kind, name, normalize)
    tolerance = TOLERANCE[dtype]
    scales = oracle.scales(left, right, normalize=normalize)

    matrix = exact_matrix(read, used, queries, items, normalize=normalize)
    assert matrix.dtype == np.float64
    assert (np.abs(matrix - expected) <= tolerance * scales).all()

    target = validation_gradient(read, used, queries, normalize=normalize)
    found = exact_values(read, target, items)
    gaps = np.abs(found - expected.mean(axis=0))
    assert (gaps <= tolerance * scales.mean(axis=0)).all()

    mean = target.mean[torch.argsort(read.vocab_order)].double().numpy()
    sides = [oracle.gradient(one) for one in left]
    wanted = np.mean([oracle.unit(g) if normalize else g for g in sides], axis=0)
    bound = 1.0 if normalize else np.mean([np.linalg.norm(g) for g in sides])
    assert np.linalg.norm(mean - wanted) <= tolerance * bound
    norms = [np.linalg.norm(g) for g in sides]
    weights = 1 / np.array(norms) if normalize else np.ones(3)
    np.testing.assert_allclose(target.weights, weights / 3, rtol=tolerance)
    np.testing.assert_allclose(gradient_norms(read, used, queries), norms, rtol=tolerance)


@pytest.mark.parametrize("normalize", [False, True], ids=["products", "cosines"])
@pytest.mark.parametrize("chunk", [1, 3, 7])
def test_chunks_batches_and_groups_change_nothing(monkeypatch, chunk, normalize):
    """Tokens of one sample in several chunks, of several in one; groups of any size."""
    _, _, expected = truth("llama", "kfac", normalize)
    monkeypatch.setitem(label_tokens.CHUNK_TOKENS, "cpu", chunk)
    read = embedder(tiny_model("llama", torch.float64)).reader
    used, items, queries = geometry("kfac", read), prepared(read), prepared(read, VALIDATION)
    for budget in (10_000, 60, 1):
        read.token_budget = budget
        for held in (1, 12 * VOCAB, 10**9):
            monkeypatch.setattr(exact_matrices, "HELD_FLOATS", held)
            matrix = exact_matrix(read, used, queries, items, normalize=normalize)
            np.testing.assert_allclose(matrix, expected, rtol=1e-9, atol=1e-9)
        target = validation_gradient(read, used, queries, normalize=normalize)
        found = exact_values(read, target, items)
        np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-9, atol=1e-9)


def test_groups_are_bounded_and_hold_whole_samples(monkeypatch):
    read = reader("llama")
    items = prepared(read)
    sizes = [p.encoded.n_label_tokens for p in items]
    groups = list(exact_matrices._held(read, items, 12 * VOCAB))
    assert len(groups) > 2
    assert sorted(i for places, _ in groups for i in places) == list(range(len(items)))
    for places, tokens in groups:
        owned = torch.bincount(tokens.owner).tolist()
        assert owned == [sizes[i] for i in places]
        assert len(places) == 1 or sum(owned) <= 12


@pytest.mark.parametrize("chunk", [1, 4, 5, 1000])
def test_all_tokens_of_a_sample_come_at_once(monkeypatch, chunk):
    monkeypatch.setitem(label_tokens.CHUNK_TOKENS, "cpu", chunk)
    read = embedder(tiny_model("llama")).reader
    items = prepared(read)
    (batch,) = read.batches(items)
    used = geometry("fisher", read)
    found = list(by_sample(tokens_in(read, used, batch, items)))
    assert [set(tokens.owner.tolist()) for tokens in found] == [{i} for i in range(len(items))]
    for tokens in found:
        encoded = items[batch.indices[int(tokens.owner[0])]].encoded
        assert tokens.position.tolist() == np.flatnonzero(encoded.label_mask).tolist()
    chunks = list(tokens_in(read, used, batch, items))
    for field in ("error", "hidden", "loss", "probability"):
        whole = torch.cat([getattr(tokens, field) for tokens in chunks])
        torch.testing.assert_close(torch.cat([getattr(t, field) for t in found]), whole)


def test_no_tokens_make_no_samples():
    assert list(by_sample([])) == []


def test_terms_are_those_of_the_tokens():
    """By hand: e (2, -1) and h (3, 1) with M = [[1, 2], [0, 4]] give 2 * 5 - 1 * 4."""
    read = reader("llama")
    target = ValidationGradient(
        torch.tensor([[1.0, 2.0], [0.0, 4.0]]), np.ones(1), geometry("raw", read), normalize=False
    )
    numbers = torch.zeros(1)
    tokens = label_tokens.LabelTokens(
        torch.tensor([[2.0, -1.0]]),
        torch.tensor([[3.0, 1.0]]),
        torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64),
        numbers,
        numbers,
    )
    terms = exact_terms(target, tokens)
    assert terms.tolist() == [6.0]
    assert terms.dtype == torch.float64


@pytest.mark.parametrize("normalize", [False, True])
def test_the_value_of_a_set_is_the_mean_over_its_samples(normalize):
    read = reader("llama", torch.float32)
    used, items, queries = geometry("fisher", read), prepared(read), prepared(read, VALIDATION)
    matrix = exact_matrix(read, used, queries, items, normalize=normalize)
    for query, row in zip(queries, matrix, strict=True):
        target = validation_gradient(read, used, [query], normalize=normalize)
        alone = exact_values(read, target, items)
        np.testing.assert_allclose(alone, row, rtol=1e-4, atol=1e-4 * np.abs(row).max())
    together = validation_gradient(read, used, queries, normalize=normalize)
    found = exact_values(read, together, items)
    scale = np.abs(matrix).max()
    np.testing.assert_allclose(found, matrix.mean(axis=0), rtol=1e-4, atol=1e-4 * scale)


def test_the_order_of_samples_changes_nothing():
    read = reader("llama")
    used, items, queries = geometry("kfac", read), prepared(read), prepared(read, VALIDATION)
    matrix = exact_matrix(read, used, queries, items)
    turned = exact_matrix(read, used, queries[::-1], items[::-1])
    np.testing.assert_allclose(turned, matrix[::-1, ::-1], rtol=1e-9)
    values = exact_values(read, validation_gradient(read, used, queries), items)
    other = exact_values(read, validation_gradient(read, used, queries[::-1]), items[::-1])
    np.testing.assert_allclose(other, values[::-1], rtol=1e-9)


def test_cosines_are_at_most_one_and_one_with_oneself():
    read = reader("phi")
    items = prepared(read)
    matrix = exact_matrix(read, geometry("centered", read), items, items, normalize=True)
    np.testing.assert_allclose(np.diag(matrix), 1, rtol=1e-9)
    np.testing.assert_allclose(matrix, matrix.T, rtol=1e-8)
    assert (np.abs(matrix) <= 1 + 1e-9).all()


@pytest.mark.parametrize("hardest", [0.3, 0.6])
def test_only_the_hardest_tokens_count(hardest):
    """By what the model says, and rounded up."""
    read = reader("llama", torch.float64, hardest)
    used, items, queries = geometry("raw", read), prepared(read), prepared(read, VALIDATION)
    sides = []
    for side in truth("llama", "raw")[:2]:
        kept = []
        for one in side:
            count = int(np.ceil(hardest * len(one.loss)))
            at = np.sort(np.argsort(-one.loss, kind="stable")[:count])
            kept.append(oracle.Seen(*(part[at] for part in one)))
        sides.append(kept)
    expected = oracle.value_matrix(*sides)
    np.testing.assert_allclose(exact_matrix(read, used, queries, items), expected, rtol=1e-9)
    target = validation_gradient(read, used, queries)
    found = exact_values(read, target, items)
    np.testing.assert_allclose(found, expected.mean(axis=0), rtol=1e-9)


def test_no_samples_have_no_values():
    read = reader("llama")
    used, queries = geometry("raw", read), prepared(read, VALIDATION)
    for normalize in (False, True):
        target = validation_gradient(read, used, queries, normalize=normalize)
        assert exact_values(read, target, []).shape == (0,)
        assert exact_matrix(read, used, queries, [], normalize=normalize).shape == (3, 0)
    assert gradient_norms(read, used, []).shape == (0,)


# What cannot be valued.


def test_a_sample_without_usable_numbers_is_named(breakable):  # noqa: F811
    read, used = breakable, geometry("fisher", breakable)
    good = prepared(read)
    target = validation_gradient(read, used, good)
    mixed = [*good[:2], BROKEN, *good[2:]]
    calls = [
        lambda: exact_values(read, target, mixed),
        lambda: exact_values(read, target._replace(normalize=True), mixed),
        lambda: exact_matrix(read, used, good, mixed),
        lambda: exact_matrix(read, used, mixed, good),
        lambda: gradient_norms(read, used, mixed),
        lambda: mean_gradient(read, used, mixed),
        lambda: validation_gradient(read, used, mixed, normalize=True),
    ]
    for call in calls:
        with pytest.raises(BadSampleError) as error:
            call()
        assert str(error.value) == (
            "train.jsonl:7: the model gives infinite or undefined numbers for sample bad one; use "
            "--dtype float32, or leave the sample out"
        )


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("normalize", [False, True])
def test_a_validation_set_without_gradient_is_refused(name, normalize):
    read = certain_reader()
    used = geometry(name, read)
    certain, other = prepared(read, [CERTAIN, pair("a", "b")])
    assert not mean_gradient(read, used, [certain], normalize=normalize).mean.any()
    with pytest.raises(BadSampleError, match=r"validation set is zero: .*use"):
        validation_gradient(read, used, [certain, certain], normalize=normalize)
    # One that has a gradient is enough, and others are no division by zero.
    target = validation_gradient(read, used, [certain, other], normalize=normalize)
    found = exact_values(read, target, [certain, other])
    assert found[0] == 0
    assert found[1] > 0
    matrix = exact_matrix(read, used, [certain, other], [certain, other], normalize=normalize)
    assert matrix.ravel()[:3].tolist() == [0, 0, 0]
    np.testing.assert_allclose(matrix[1, 1], 2 * found[1], rtol=1e-4)


@pytest.mark.parametrize("name", ["centered", "fisher", "kfac"])
def test_a_geometry_without_calibration_is_refused(name):
    read = reader("llama")
    with pytest.raises(UsageError, match=f"the {name} geometry needs the calibration"):
        geometry_of(name, read, None, Settings(model="m"))


def test_progress_counts_samples_and_pairs():
    read = reader("llama")
    used, items, queries = geometry("raw", read), prepared(read), prepared(read, VALIDATION)
    steps = []
    target = validation_gradient(read, used, queries, on_progress=steps.append)
    exact_values(read, target, items, on_progress=steps.append)
    exact_matrix(read, used, queries, items, on_progress=steps.append)
    done = [dataclasses.replace(step, tokens=0) for step in steps]
    assert done[0] == Progress("embedding", 3, 3)
    assert done[1] == Progress("re-scoring", 5, 5)
    assert done[-1] == Progress("re-scoring", 15, 15)
