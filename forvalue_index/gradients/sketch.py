"""Sketches: from (error, hidden) pairs of label tokens to one row of D floats per sample.

A row stands for the sample's head gradient G = sum_t e_t h_t^T, of vocab * hidden entries, such
that the inner product of two rows estimates that of the two gradients without bias.

* `TensorSketch` (Pham and Pagh, KDD 2013): e and h are count-sketched to D buckets each, and
  their circular convolution is the sketch of their outer product. It is linear, so the spectra
  of all label tokens of a sample are summed before one inverse FFT. The error of an inner
  product has the standard deviation |A| |B| / sqrt(D).
* `SplitSketch`: hidden states lie mostly along few directions u_j. With h = sum_j (h.u_j) u_j + r,
  the inner product falls apart into one along each u_j, which needs only a count sketch of
  sum_t (h_t.u_j) e_t, and one of the rest r, a TensorSketch of the floats that are left, if any.
  Without any the rest is dropped, which biases inner products towards zero by what it holds.
* `OuterProduct`: G itself, where it has no more than D entries.

Hashing is balanced, see `hash_tables`: entry i of the reordered vocabulary goes to i modulo D.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from forvalue_index.gradients.hash_tables import HashTables, Layout

Sums = Tensor | tuple[Tensor, ...]


@runtime_checkable
class Sketch(Protocol):
    """Linear, seeded, and a function of one sample alone."""

    dim: int
    exact: bool
    vocab_order: Tensor

    def empty(self, n_samples: int, like: Tensor) -> Sums:
        """The sum over no tokens, for each sample."""
        ...

    def accumulate(self, sums: Any, error: Tensor, hidden: Tensor, owner: Tensor) -> None:
        """Add tokens to the sums of the samples that own them.

        error [token, vocab] with the vocabulary in `vocab_order`, hidden [token, hidden],
        owner [token].
        """
        ...

    def rows(self, sums: Any) -> Tensor:
        """The rows [sample, dim] that the sums stand for."""
        ...


def make_sketch(tables: HashTables, *, dim: int, device: torch.device) -> Sketch:
    """The exact outer product where it fits into `dim` floats, else the sketch of the tables.

    `tables` are those of one geometry, see `hash_tables.geometry_tables`.
    """
    on_device = {name: torch.from_numpy(np.array(t)).to(device) for name, t in tables.items()}
    size = len(tables["vocab_order"]) * len(tables["hidden_sign"])
    if size <= dim:
        return OuterProduct(on_device)
    return SplitSketch(on_device, dim) if "split_dim" in tables else TensorSketch(on_device, dim)


class TensorSketch:
    """Sum over tokens of the circular convolution of two count sketches, kept as a spectrum."""

    exact = False

    def __init__(self, tables: Mapping[str, Tensor], dim: int) -> None:
        self.dim = dim
        self.vocab_order = tables["vocab_order"]
        self._vocab_sign = tables["vocab_sign"].float()
        self._hidden_bucket = tables["hidden_bucket"]
        self._hidden_sign = tables["hidden_sign"].float()

    def empty(self, n_samples: int, like: Tensor) -> Tensor:
        """Zero spectra [sample, dim // 2 + 1] in the precision and on the device of `like`."""
        return like.new_zeros(n_samples, self.dim // 2 + 1, dtype=like.dtype.to_complex())

    def accumulate(
        self,
        sums: Tensor,
        error: Float[Tensor, "token vocab"],
        hidden: Float[Tensor, "token hidden"],
        owner: Int[Tensor, " token"],
    ) -> None:
        """Add FFT(count sketch of e) * FFT(count sketch of h) of each token."""
        spectra = torch.fft.rfft(self.count_sketch_error(error))
        spectra *= torch.fft.rfft(self.count_sketch_hidden(hidden))
        sums.index_add_(0, owner, spectra)

    def rows(self, sums: Tensor) -> Float[Tensor, "sample dim"]:
        """One inverse FFT per sample."""
        rows: Tensor = torch.fft.irfft(sums, n=self.dim)
        return rows

    def count_sketch_error(self, error: Float[Tensor, "token vocab"]) -> Float[Tensor, "token dim"]:
        """To `dim` buckets, see `count_sketch_vocab`."""
        return count_sketch_vocab(error, self._vocab_sign, dim=self.dim)

    def count_sketch_hidden(
        self, hidden: Float[Tensor, "token hidden"]
    ) -> Float[Tensor, "token dim"]:
        """Entry i, with its sign, goes to its bucket."""
        buckets = hidden.new_zeros(len(hidden), self.dim)
        return buckets.index_add_(
            1, self._hidden_bucket, hidden * self._hidden_sign.to(hidden.dtype)
        )


class SplitSketch:
    """A count sketch of e along each of some directions of h, then a TensorSketch of the rest."""

    exact = False

    def __init__(self, tables: Mapping[str, Tensor], dim: int) -> None:
        self.dim = dim
        self.vocab_order = tables["vocab_order"]
        self._buckets = int(tables["split_dim"][0])
        self._sign = tables["split_sign"].float()
        self._shifts = tables["split_shift"].tolist()
        self._directions = tables["directions"]  # [direction, hidden], orthonormal
        rest_dim = Layout(len(self._directions), self._buckets).rest(dim)
        self._rest = TensorSketch(tables, rest_dim) if rest_dim else None

    def empty(self, n_samples: int, like: Tensor) -> tuple[Tensor, ...]:
        """Zero buckets [sample, direction, bucket], and zero spectra of the rest, if any."""
        buckets = like.new_zeros(n_samples, len(self._directions), self._buckets)
        return (buckets,) if self._rest is None else (buckets, self._rest.empty(n_samples, like))

    def accumulate(
        self,
        sums: tuple[Tensor, ...],
        error: Float[Tensor, "token vocab"],
        hidden: Float[Tensor, "token hidden"],
        owner: Int[Tensor, " token"],
    ) -> None:
        """Add (h.u_j) count_sketch(e) to the buckets, and what of h is left to the rest."""
        directions = self._directions.to(hidden.dtype)
        along = hidden @ directions.T  # [token, direction]
        buckets = count_sketch_vocab(error, self._sign, dim=self._buckets, shifts=self._shifts)
        sums[0].index_add_(0, owner, along[:, :, None] * buckets[:, None, :])
        if self._rest is not None:
            self._rest.accumulate(sums[1], error, hidden - along @ directions, owner)

    def rows(self, sums: tuple[Tensor, ...]) -> Float[Tensor, "sample dim"]:
        """The buckets of each direction in turn, then the row of the rest, or zeros."""
        buckets = sums[0].flatten(1)
        if self._rest is None:
            return torch.nn.functional.pad(buckets, (0, self.dim - buckets.shape[1]))
        return torch.cat([buckets, self._rest.rows(sums[1])], dim=1)


def count_sketch_vocab(
    error: Float[Tensor, "token vocab"],
    sign: Float[Tensor, " vocab"],
    *,
    dim: int,
    shifts: Sequence[int] = (),
) -> Float[Tensor, "token dim"]:
    """The entry at place i goes to bucket i mod dim: blocks of `dim` entries, summed.

    With `shifts`, one a block, each block is rotated before: entries that share a bucket here then
    share none in a sketch without, whatever the two widths.
    """
    buckets = error.new_zeros(len(error), dim)
    sign = sign.to(error.dtype)
    for number, start in enumerate(range(0, error.shape[1], dim)):
        shift = shifts[number] if shifts else 0
        wrap = start + dim - shift
        for source, target in ((slice(start, wrap), shift), (slice(wrap, start + dim), 0)):
            block = error[:, source]
            buckets[:, target : target + block.shape[1]].addcmul_(block, sign[source])
    return buckets


class OuterProduct:
    """G itself, flattened with the hidden axis last: for heads with few enough entries."""

    exact = True

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        self.vocab_order = tables["vocab_order"]
        self._hidden_size = len(tables["hidden_sign"])
        self.dim = len(self.vocab_order) * self._hidden_size

    def empty(self, n_samples: int, like: Tensor) -> Tensor:
        """Zero rows [sample, vocab * hidden]."""
        return like.new_zeros(n_samples, self.dim)

    def accumulate(
        self,
        sums: Tensor,
        error: Float[Tensor, "token vocab"],
        hidden: Float[Tensor, "token hidden"],
        owner: Int[Tensor, " token"],
    ) -> None:
        """Add e h^T of each token."""
        sums.index_add_(0, owner, torch.einsum("tv,th->tvh", error, hidden).flatten(1))

    def rows(self, sums: Tensor) -> Float[Tensor, "sample dim"]:
        """The sums are the rows."""
        return sums
