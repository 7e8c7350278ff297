"""A random rotation, so that one bit a float says as much of rows as it can.

Rows of the raw and the fisher sketch have few large floats. Their signs alone order the helpful end
badly and the harmful one not at all; after a rotation all floats are about as large as each other.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.search.contract import Rows


class Rotation:
    """x -> H D x / sqrt(n): random signs D, then a Walsh-Hadamard transform of n = 2^k floats.

    Rows are padded with zeros to the next power of 2. H is a Kronecker product of two smaller ones,
    so it takes two matrix products of about sqrt(n) a float. Inner products stay what they are.
    """

    def __init__(self, signs: NDArray[np.int8]) -> None:
        self.signs = signs
        power = (len(signs) - 1).bit_length()
        self.width = 2**power
        sides = hadamard(power // 2), hadamard(power - power // 2)
        self._left, self._right = (torch.from_numpy(side) for side in sides)

    @classmethod
    def draw(cls, dim: int, seed: int) -> Rotation:
        """A rotation of rows of `dim` floats."""
        signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.int8), dim)
        return cls(signs)

    def __call__(self, rows: Rows) -> Rows:
        """The rows [row, dim] rotated, [row, width]."""
        padded = torch.zeros(len(rows), self.width)
        signs = torch.from_numpy(self.signs)
        torch.mul(torch.from_numpy(rows), signs, out=padded[:, : len(signs)])
        grid = padded.view(len(rows), len(self._left), len(self._right))
        # H (x) H': of a row as a matrix, H X H'. NumPy's BLAS and torch would wait for each other.
        rotated: Rows = (self._left @ (grid @ self._right)).view(len(rows), self.width).numpy()
        return rotated


def hadamard(power: int) -> Rows:
    """The orthonormal, symmetric Walsh-Hadamard matrix [2^power, 2^power]."""
    matrix = np.ones((1, 1), dtype=np.float32)
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: Rows = matrix / np.float32(np.sqrt(len(matrix)))
    return scaled
