"""Rows in the precision that they are stored in: float32, bfloat16, or int8 with a scale a row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Shaped
from numpy.typing import NDArray
from torch import Tensor

INT8 = "int8"
LARGEST = 127
MODULUS = np.uint64(2**32 - 1)


@dataclass(frozen=True, eq=False)
class StoredRows:
    """`values` [row, dim]; those of int8 are multiples of their row's `scales` [row], a float32."""

    values: Tensor
    scales: Tensor | None = None

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, which: slice | Tensor) -> StoredRows:
        return StoredRows(self.values[which], None if self.scales is None else self.scales[which])

    def floats(self, out: Tensor | None = None) -> Float[Tensor, "row dim"]:
        """What the rows say, in float32, written to the beginning of `out` where that is given."""
        rows = torch.empty(self.values.shape) if out is None else out[: len(self)]
        rows.copy_(self.values)
        return rows if self.scales is None else rows.mul_(self.scales[:, None])

    def checksums(self, offsets: NDArray[np.int64]) -> NDArray[np.int32]:
        """As `row_checksums`, over the bits of values and scales."""
        if self.scales is not None:
            offsets = offsets + self.scales.view(torch.int32).numpy()
        return row_checksums(self.values, offsets)


def quantized(rows: Float[Tensor, "row dim"], row_dtype: str) -> StoredRows:
    """Rows in the precision of that name: each number is rounded to the nearest there is.

    With int8 the largest number of a row becomes 127 or -127, so an error is at most half of a
    127th of it.
    """
    if row_dtype != INT8:
        return StoredRows(rows.to(getattr(torch, row_dtype)).contiguous())
    scales = rows.abs().amax(dim=1).float() / LARGEST
    values = rows / scales.masked_fill(scales == 0, 1)[:, None]
    # Clamped, as a scale may have been rounded down; to zero where it is too small for a float.
    return StoredRows(values.round().clamp(-LARGEST, LARGEST).to(torch.int8), scales)


def joined(parts: Sequence[StoredRows]) -> StoredRows:
    """Rows after each other."""
    scales = [part.scales for part in parts if part.scales is not None]
    return StoredRows(
        torch.cat([part.values for part in parts]), torch.cat(scales) if scales else None
    )


def row_checksums(
    rows: Shaped[Tensor, "row width"], offsets: NDArray[np.int64]
) -> NDArray[np.int32]:
    """32 bits a row, over its bits as they are stored and its place: sums modulo 2^32 - 1.

    They run at the speed of memory. Damage at random goes unseen once in 2^32; two halves of 8
    bytes that change places, or 32 zero bits that become ones, always do. The digest of the
    whole file, which `check` compares, sees these.
    """
    # Sums by torch; NumPy has unsigned numbers, and its operations on few of them start sooner.
    words = _as_words(rows).sum(dim=1).numpy() + offsets
    checksums: NDArray[np.int32] = (
        (words.view(np.uint64) % MODULUS).astype(np.uint32).view(np.int32)
    )
    return checksums


def float_rows(rows: StoredRows, *, normalize: bool) -> Float[Tensor, "row dim"]:
    """Rows as inner products are taken with them: in float32, of norm 1 or not."""
    return unit_rows(rows.floats()) if normalize else rows.floats()


def unit_rows(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Rows divided by their norms; those of zeros stay."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    unit: Tensor = (rows / norms.masked_fill(norms == 0, 1)).float()
    return unit


def _as_words(rows: Tensor) -> Tensor:
    """The bits of rows as 64-bit integers, padded with zeros."""
    plain = rows.contiguous().view(torch.uint8)
    padding = -plain.shape[1] % 8
    if padding:
        plain = torch.nn.functional.pad(plain, (0, padding))
    return plain.view(torch.int64)
