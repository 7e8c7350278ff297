"""Sketches of random tokens, and the definition of one in a loop."""

import numpy as np
import torch

CPU = torch.device("cpu")
# vocab not a multiple of dim, vocab a multiple, vocab < dim, hidden > dim, odd dim
SHAPES = [(70, 12, 32), (64, 12, 32), (20, 12, 32), (70, 45, 32), (50, 9, 31)]


def tokens(n, vocab, hidden, *, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    error = torch.randn(n, vocab, generator=generator, dtype=dtype)
    return error, torch.randn(n, hidden, generator=generator, dtype=dtype)


def sketched(sketch, error, hidden, owner=None):
    """Rows of tokens whose vocabulary is in its own order, as a model gives it."""
    owner = torch.zeros(len(error), dtype=torch.int64) if owner is None else owner
    sums = sketch.empty(int(owner.max()) + 1, error)
    sketch.accumulate(sums, error[:, sketch.vocab_order], hidden, owner)
    return sketch.rows(sums)


def slow_oracle(tables, error, hidden, dim):
    """Entry (v, j) of the outer product goes, with both signs, to bucket(v) + bucket(j) mod dim."""
    row = np.zeros(dim)
    for e, h in zip(error.numpy(), hidden.numpy(), strict=True):
        for place, v in enumerate(tables["vocab_order"]):
            for j in range(len(h)):
                bucket = (place % dim + tables["hidden_bucket"][j]) % dim
                sign = tables["vocab_sign"][place] * tables["hidden_sign"][j]
                row[bucket] += sign * e[v] * h[j]
    return row
