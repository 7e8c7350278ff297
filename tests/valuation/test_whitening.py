import numpy as np
import pytest
import torch

from forvalue_index.valuation.whitening import Whitening


def random_rows(count, dim, seed=0):
    """Rows that share a direction."""
    random = np.random.default_rng(seed)
    return random.standard_normal((count, dim)) + 3 * random.standard_normal(dim)


def dense(rows, queries, damping):
    """L (R + L I)^-1 q, with R = X^T X / n and L = damping times the mean of its diagonal."""
    square = rows.T @ rows / len(rows)
    ridge = damping * np.trace(square) / len(square)
    return ridge * np.linalg.solve(square + ridge * np.eye(len(square)), queries.T).T


def test_by_hand():
    """R = diag(2, 0), so L = 1 and the map divides the first entry by 3."""
    rows = torch.tensor([[2.0, 0.0], [0.0, 0.0]])
    found = Whitening(rows, ridge=1.0)(np.array([[3, 5], [-6, 1]], np.float32))
    np.testing.assert_allclose(found, [[1, 5], [-2, 1]], rtol=1e-6)
    assert found.dtype == np.float32


@pytest.mark.parametrize(("count", "dim"), [(5, 40), (40, 40), (100, 12), (1, 7)])
@pytest.mark.parametrize("damping", [0.01, 1.0, 10.0])
def test_it_is_a_dense_inverse(count, dim, damping):
    rows = random_rows(count, dim)
    queries = np.random.default_rng(1).standard_normal((3, dim)).astype(np.float32)
    found = Whitening(torch.from_numpy(rows).float(), ridge=damping)(queries)
    expected = dense(rows.astype(np.float32).astype(np.float64), queries, damping)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_the_order_and_repetition_of_rows_do_not_matter():
    rows = torch.from_numpy(random_rows(20, 30)).float()
    queries = random_rows(2, 30, seed=1).astype(np.float32)
    found = Whitening(rows, ridge=0.5)(queries)
    np.testing.assert_allclose(Whitening(rows.flip(0), ridge=0.5)(queries), found, rtol=1e-4)
    twice = Whitening(torch.cat([rows, rows]), ridge=0.5)(queries)
    np.testing.assert_allclose(twice, found, rtol=1e-4, atol=1e-5)


def test_the_scale_of_rows_does_not_matter():
    rows = torch.from_numpy(random_rows(20, 30)).float()
    queries = random_rows(2, 30, seed=1).astype(np.float32)
    found = Whitening(1e4 * rows, ridge=0.5)(queries)
    np.testing.assert_allclose(found, Whitening(rows, ridge=0.5)(queries), rtol=1e-4, atol=1e-5)


def test_a_large_damping_changes_nothing():
    rows = torch.from_numpy(random_rows(20, 30)).float()
    queries = random_rows(2, 30, seed=1).astype(np.float32)
    np.testing.assert_allclose(Whitening(rows, ridge=1e9)(queries), queries, rtol=1e-5)


def test_what_all_rows_share_counts_less():
    rows = torch.from_numpy(random_rows(200, 30))
    shared = rows.mean(0)
    across = torch.from_numpy(np.random.default_rng(5).standard_normal(30))
    across -= (across @ shared) / (shared @ shared) * shared
    queries = torch.stack([shared / shared.norm(), across / across.norm()]).float().numpy()
    left = np.linalg.norm(Whitening(rows.float(), ridge=0.1)(queries), axis=1)
    assert left[0] < 0.1 * left[1]


def test_rows_of_zeros_change_nothing():
    queries = random_rows(2, 30).astype(np.float32)
    found = Whitening(torch.zeros(5, 30), ridge=1.0)(queries)
    np.testing.assert_array_equal(found, queries)
