"""Whitening in the space of rows: a query is multiplied by L (R + L I)^-1.

R is the second moment of stored rows and L, the ridge, a multiple of its mean diagonal: directions
that all rows share count less. It knows the sketch's noise as well as the gradients, and needs no
model and no new rows. With X [row, dim] a sample of n rows, R = X^T X / n and by the Woodbury
identity L (R + L I)^-1 q = q - X^T (X X^T + n L I)^-1 X q, a system of n equations.
"""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

# Bounds time and memory: a matrix of 2,048 x 2,048, and as many rows.
WHITENING_ROWS = 2048


class Whitening:
    """The map of one index state and geometry."""

    def __init__(self, rows: Float[Tensor, "row dim"], *, ridge: float) -> None:
        """`ridge` is L in units of the mean diagonal of R.

        An index takes its damping for it: its settings have no ridge of their own.
        """
        self._rows = rows.double()
        gram = self._rows @ self._rows.T
        # n L = ridge * n * mean diagonal of R = ridge * trace of X X^T / dim.
        added = ridge * gram.diagonal().sum() / rows.shape[1]
        added = added.clamp(min=torch.finfo(torch.float64).tiny)
        self._factor = torch.linalg.cholesky(gram + added * torch.eye(len(rows)).double())

    def __call__(self, queries: NDArray[np.float32]) -> NDArray[np.float32]:
        """Map queries [query, dim]."""
        plain = torch.from_numpy(queries).double()
        solved = torch.cholesky_solve(self._rows @ plain.T, self._factor)
        mapped: NDArray[np.float32] = (plain - (self._rows.T @ solved).T).float().numpy()
        return mapped
