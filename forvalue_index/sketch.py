"""Sketches: from (error, hidden) pairs of label tokens to one row of D floats per sample.

A row stands for the sample's head gradient G = sum_t e_t h_t^T, of vocab * hidden entries, such
that the inner product of two rows estimates that of the two gradients without bias.

* `TensorSketch` (Pham and Pagh, KDD 2013): e and h are count-sketched to D buckets each, and
  their circular convolution is the sketch of their outer product. It is linear, so the spectra
  of all label tokens of a sample are summed before one inverse FFT. The error of an inner
  product has the standard deviation |A| |B| / sqrt(D).
* `OuterProduct`: G itself, where it has no more than D entries.

Hashing is balanced: a random order of the vocabulary, then place modulo D, with random signs. It
is as accurate as independent hashing, and turns the count sketch of e into a reshape and a sum
once the rows of the head stand in that order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

HashTables = Mapping[str, NDArray[np.int64]]


@runtime_checkable
class Sketch(Protocol):
    """Linear, seeded, and a function of one sample alone."""

    dim: int
    exact: bool
    vocab_order: Tensor

    def empty(self, n_samples: int, like: Tensor) -> Tensor:
        """The sum over no tokens, for each sample."""
        ...

    def accumulate(self, sums: Tensor, error: Tensor, hidden: Tensor, owner: Tensor) -> None:
        """Add tokens to the sums of the samples that own them.

        error [token, vocab] with the vocabulary in `vocab_order`, hidden [token, hidden],
        owner [token].
        """
        ...

    def rows(self, sums: Tensor) -> Tensor:
        """The rows [sample, dim] that the sums stand for."""
        ...


def draw_tables(vocab_size: int, hidden_size: int, *, dim: int, seed: int) -> HashTables:
    """The hash tables of a new index. They are stored with it and never drawn again."""
    random = np.random.default_rng(seed)
    return {
        "vocab_order": random.permutation(vocab_size),
        "vocab_sign": random.choice(np.array([-1, 1]), vocab_size),
        "hidden_bucket": random.permutation(max(hidden_size, dim))[:hidden_size] % dim,
        "hidden_sign": random.choice(np.array([-1, 1]), hidden_size),
    }


def tables_digest(tables: HashTables) -> str:
    """What the fingerprint says of the tables: BLAKE2b over names and little-endian contents."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tables):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(tables[name], dtype="<i8").tobytes())
    return digest.hexdigest()


def make_sketch(tables: HashTables, *, dim: int, device: torch.device) -> Sketch:
    """The exact outer product where it fits into `dim` floats, else a TensorSketch."""
    on_device = {name: torch.from_numpy(np.array(t)).to(device) for name, t in tables.items()}
    size = len(tables["vocab_order"]) * len(tables["hidden_bucket"])
    return OuterProduct(on_device) if size <= dim else TensorSketch(on_device, dim)


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
        """The entry at place i goes to bucket i mod dim: blocks of `dim` entries, summed."""
        buckets = error.new_zeros(len(error), self.dim)
        for start in range(0, error.shape[1], self.dim):
            block = error[:, start : start + self.dim]
            sign = self._vocab_sign[start : start + self.dim]
            buckets[:, : block.shape[1]].addcmul_(block, sign.to(block.dtype))
        return buckets

    def count_sketch_hidden(
        self, hidden: Float[Tensor, "token hidden"]
    ) -> Float[Tensor, "token dim"]:
        """Entry i, with its sign, goes to its bucket."""
        buckets = hidden.new_zeros(len(hidden), self.dim)
        return buckets.index_add_(
            1, self._hidden_bucket, hidden * self._hidden_sign.to(hidden.dtype)
        )


class OuterProduct:
    """G itself, flattened with the hidden axis last: for heads with few enough entries."""

    exact = True

    def __init__(self, tables: Mapping[str, Tensor]) -> None:
        self.vocab_order = tables["vocab_order"]
        self._hidden_size = len(tables["hidden_bucket"])
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
