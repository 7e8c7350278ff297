"""A random rotation, so that one bit a float says as much of rows as it can.

Rows of the raw and the fisher sketch have few large floats. Their signs alone order the helpful end
badly and the harmful one not at all; after a rotation all floats are about as large as each other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Rows = NDArray[np.float32]


class Rotation:
    """x -> H D x / sqrt(n): random signs D, then a Walsh-Hadamard transform of n = 2^k floats.

    Rows are padded with zeros to the next power of 2. H is a Kronecker product of two smaller ones,
    so it takes two matrix products of about sqrt(n) a float. Inner products stay what they are.
    """

    def __init__(self, signs: NDArray[np.int8]) -> None:
        self.signs = signs
        power = (len(signs) - 1).bit_length()
        self.width = 2**power
        self._left, self._right = hadamard(power // 2), hadamard(power - power // 2)

    @classmethod
    def draw(cls, dim: int, seed: int) -> Rotation:
        """A rotation of rows of `dim` floats."""
        signs = np.random.default_rng(seed).choice(np.array([-1, 1], dtype=np.int8), dim)
        return cls(signs)

    def __call__(self, rows: Rows) -> Rows:
        """The rows [row, dim] rotated, [row, width]."""
        padded = np.zeros((len(rows), self.width), dtype=np.float32)
        np.multiply(rows, self.signs, out=padded[:, : len(self.signs)])
        n_left, n_right = len(self._left), len(self._right)
        mixed = padded.reshape(-1, n_right) @ self._right
        mixed = mixed.reshape(-1, n_left, n_right).transpose(0, 2, 1).reshape(-1, n_left)
        mixed = mixed @ self._left
        rotated: Rows = mixed.reshape(-1, n_right, n_left).transpose(0, 2, 1)
        return rotated.reshape(len(rows), self.width)


def hadamard(power: int) -> Rows:
    """The orthonormal, symmetric Walsh-Hadamard matrix [2^power, 2^power]."""
    matrix = np.ones((1, 1), dtype=np.float32)
    for _ in range(power):
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    scaled: Rows = matrix / np.float32(np.sqrt(len(matrix)))
    return scaled
