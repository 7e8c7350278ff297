"""What a search must find, by numpy in float64."""

import numpy as np
import torch

DIM = 16


def random_rows(n, dim=DIM, *, seed=0, steps=None):
    """Normal rows as bfloat16 holds them; with `steps`, whole numbers up to it: many ties."""
    random = np.random.default_rng(seed)
    if steps:
        return random.integers(-steps, steps + 1, (n, dim)).astype(np.float32)
    rows = torch.from_numpy(random.standard_normal((n, dim)).astype(np.float32))
    return rows.bfloat16().float().numpy()


def expected(ids, rows, query, k):
    """The k best by score, ties by id, from numpy in float64."""
    scores = (rows * query.astype(np.float64)).sum(axis=1)
    order = np.lexsort((ids, -scores))[:k]
    return ids[order], scores[order]


def check(index, ids, rows, queries, k, tolerance=1e-4):
    """Both ends: what helps most, and, with the negated query, what harms most."""
    for sign in (1, -1):
        answers = index.search(sign * queries, k)
        assert len(answers) == len(queries)
        for query, (found, scores) in zip(queries, answers, strict=True):
            true_ids, true_scores = expected(ids, rows, sign * query, k)
            assert found.dtype == np.int64
            assert scores.dtype == np.float32
            np.testing.assert_array_equal(found, true_ids)
            np.testing.assert_allclose(scores, true_scores, rtol=1e-5, atol=tolerance)
