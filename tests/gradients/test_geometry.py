import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_index.gradients.geometry import Geometry, Moments

MAPPED = ("centered", "fisher", "kfac")
VOCAB, HIDDEN = 30, 8


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments_of(error, hidden):
    """By their definition, from tokens."""
    n_tokens = len(hidden)
    return Moments(error.abs().mean(0), hidden.mean(0), hidden.T @ hidden / n_tokens)


def sample_moments(*, seed=0, n_tokens=200):
    """Of states that lie mostly along one direction, and errors that are mostly on few tokens."""
    error = random(n_tokens, VOCAB, seed=seed) / torch.arange(1, VOCAB + 1)
    hidden = random(n_tokens, HIDDEN, seed=seed + 1) * torch.arange(1, HIDDEN + 1).rsqrt()
    return moments_of(error, hidden + 2 * random(HIDDEN, seed=seed + 2))


TWO = Moments(
    torch.tensor([1.0, 3.0]), torch.tensor([0.5, -1.0]), torch.tensor([[3.0, 1.0], [1.0, 3.0]])
)
ERROR, STATE = torch.tensor([[0.25, -0.75]]), torch.tensor([[2.0, 1.0]])


def test_raw_changes_nothing():
    geometry = Geometry("raw")
    assert geometry.error(ERROR) is ERROR
    assert geometry.hidden(STATE) is STATE


def test_centered_by_hand():
    geometry = Geometry("centered", TWO)
    assert geometry.error(ERROR) is ERROR
    torch.testing.assert_close(geometry.hidden(STATE), torch.tensor([[1.5, 2.0]]))


def test_fisher_by_hand():
    """1 and 3 are 0.5 and 1.5 of their mean, so with damping 1 the divisors are of 1.5 and 2.5."""
    geometry = Geometry("fisher", TWO, damping=1.0)
    expected = torch.tensor([[0.25 / math.sqrt(1.5), -0.75 / math.sqrt(2.5)]])
    torch.testing.assert_close(geometry.error(ERROR), expected)
    assert geometry.hidden(STATE) is STATE


def test_kfac_by_hand():
    """Eigenvalues 4 and 2, of mean 3, along (1, 1) and (1, -1): 7/3 and 5/3 with damping 1."""
    geometry = Geometry("kfac", TWO, damping=1.0)
    torch.testing.assert_close(
        geometry.error(ERROR), Geometry("fisher", TWO, damping=1.0).error(ERROR)
    )
    along, across = (2 + 1) / 2 / math.sqrt(7 / 3), (2 - 1) / 2 / math.sqrt(5 / 3)
    expected = torch.tensor([[along + across, along - across]])
    torch.testing.assert_close(geometry.hidden(STATE), expected)


def test_directions_by_hand():
    """Uncentred: along (1, 1) lies the eigenvalue 4; fisher and raw leave hidden states alone."""
    root = math.sqrt(0.5)
    for name in ("raw", "fisher", "kfac"):
        geometry = Geometry(name, None if name == "raw" else TWO)
        found = geometry.directions(TWO, 2).abs()
        torch.testing.assert_close(found, torch.full((2, 2), root, dtype=torch.float64))
        torch.testing.assert_close(
            geometry.directions(TWO, 1),
            torch.tensor([[root, root]], dtype=torch.float64),
        )


@pytest.mark.parametrize("damping", [0.01, 1.0, 30.0])
@pytest.mark.parametrize("seed", [0, 7])
def test_scores_are_those_of_a_float64_oracle(seed, damping):
    """<G, G'> with a dense Kronecker factor between, in NumPy."""
    moments = sample_moments(seed=seed)
    error_size, mean, square = (tensor.numpy() for tensor in moments)
    scale = np.diag(1 / (error_size / error_size.mean() + damping))
    input_side = np.linalg.inv(square / np.linalg.eigvalsh(square).mean() + damping * np.eye(8))
    e, h = random(2, VOCAB, seed=seed + 5), random(2, HIDDEN, seed=seed + 6)
    first, second = h.numpy()
    expected = {
        "centered": (e[0] @ e[1]).numpy() * ((first - mean) @ (second - mean)),
        "fisher": (e[0].numpy() @ scale @ e[1].numpy()) * (first @ second),
        "kfac": (e[0].numpy() @ scale @ e[1].numpy()) * (first @ input_side @ second),
    }
    for name in MAPPED:
        geometry = Geometry(name, moments, damping=damping)
        one, other = zip(geometry.error(e), geometry.hidden(h), strict=True)
        found = (one[0] @ other[0]) * (one[1] @ other[1])
        assert float(found) == pytest.approx(float(expected[name]), rel=1e-9)


@pytest.mark.parametrize("name", MAPPED)
def test_float32_states_are_mapped_in_float32(name):
    moments = sample_moments()
    geometry = Geometry(name, moments, damping=0.1)
    error, hidden = random(5, VOCAB, seed=3), random(5, HIDDEN, seed=4)
    for exact, found in (
        (geometry.error(error), geometry.error(error.float())),
        (geometry.hidden(hidden), geometry.hidden(hidden.float())),
    ):
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-6)


def test_the_map_of_the_input_side_is_symmetric_and_positive():
    """The root is the one that changes no direction more than it must."""
    geometry = Geometry("kfac", sample_moments(), damping=0.1)
    mapping = geometry.hidden(torch.eye(HIDDEN, dtype=torch.float64))
    torch.testing.assert_close(mapping, mapping.T)
    assert torch.linalg.eigvalsh(mapping).min() > 0


@pytest.mark.parametrize("name", ["fisher", "kfac"])
def test_a_large_damping_gives_the_raw_geometry(name):
    geometry = Geometry(name, sample_moments(), damping=1e8)
    error, hidden = random(5, VOCAB), random(5, HIDDEN)
    torch.testing.assert_close(1e4 * geometry.error(error), error, rtol=1e-5, atol=0)
    factor = 1e4 if name == "kfac" else 1
    torch.testing.assert_close(factor * geometry.hidden(hidden), hidden, rtol=1e-5, atol=1e-6)


def test_a_small_damping_makes_all_directions_count_the_same():
    """Mapped tokens have the same second moment in each entry, and along each direction."""
    moments = sample_moments()
    geometry = Geometry("kfac", moments, damping=1e-9)
    scaled = geometry.error(moments.error_size.sqrt()[None])[0].square()
    torch.testing.assert_close(
        scaled, torch.full_like(scaled, float(scaled.mean())), rtol=1e-6, atol=0
    )
    mapping = geometry.hidden(torch.eye(HIDDEN, dtype=torch.float64))
    square = mapping @ moments.hidden_square @ mapping
    mean = torch.linalg.eigvalsh(moments.hidden_square).mean()
    expected = mean * torch.eye(HIDDEN, dtype=torch.float64)
    torch.testing.assert_close(square, expected, rtol=0, atol=1e-6 * float(mean))


@pytest.mark.parametrize("name", ["fisher", "kfac"])
def test_the_unit_of_the_moments_does_not_matter(name):
    moments = sample_moments()
    larger = Moments(100 * moments.error_size, moments.hidden_mean, 1e6 * moments.hidden_square)
    one, other = (Geometry(name, m, damping=0.3) for m in (moments, larger))
    error, hidden = random(5, VOCAB), random(5, HIDDEN)
    torch.testing.assert_close(one.error(error), other.error(error))
    torch.testing.assert_close(one.hidden(hidden), other.hidden(hidden))


def test_a_token_that_was_never_seen_is_divided_by_the_root_of_the_damping():
    moments = Moments(torch.tensor([0.0, 2.0]), TWO.hidden_mean, TWO.hidden_square)
    found = Geometry("fisher", moments, damping=0.25).error(torch.tensor([[1.0, 1.0]]))
    torch.testing.assert_close(found, torch.tensor([[2.0, 1 / 1.5]]))


def test_moments_of_few_tokens_whose_matrix_has_no_inverse_are_usable():
    """Fewer tokens than dimensions: eigenvalues of about -1e-17 must not become undefined."""
    moments = sample_moments(n_tokens=3)
    geometry = Geometry("kfac", moments, damping=1e-3)
    mapped = geometry.hidden(random(5, HIDDEN))
    assert torch.isfinite(mapped).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000), st.sampled_from(["raw", *MAPPED]), st.integers(1, 4))
def test_directions_are_orthonormal_and_the_leading_ones(seed, name, count):
    """No other such directions hold more of the energy of the mapped states."""
    error, hidden = random(50, VOCAB, seed=seed), random(50, HIDDEN, seed=seed + 1)
    hidden = hidden + 2 * random(HIDDEN, seed=seed + 2)
    moments = moments_of(error, hidden)
    geometry = Geometry(name, None if name == "raw" else moments, damping=0.5)
    found = geometry.directions(moments, count)
    torch.testing.assert_close(found @ found.T, torch.eye(count, dtype=torch.float64))
    mapped = geometry.hidden(hidden)
    energy = (mapped @ found.T).square().sum(0)
    assert (energy.diff() <= 1e-9 * energy[0]).all(), "the first one leads"
    most = torch.linalg.svdvals(mapped)[:count].square()
    torch.testing.assert_close(energy, most)
    largest = found.gather(1, found.abs().argmax(dim=1, keepdim=True))
    assert (largest > 0).all(), "the sign is the same on all machines"
