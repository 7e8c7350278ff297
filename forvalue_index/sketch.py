"""Sketches: from (error, hidden) pairs of label tokens to one row of D floats per sample.

A row stands for the sample's head gradient G = sum_t e_t h_t^T, of vocab * hidden entries, such
that the inner product of two rows estimates that of the two gradients without bias.

* `TensorSketch` (Pham and Pagh, KDD 2013): e and h are count-sketched to D buckets each, and
  their circular convolution is the sketch of their outer product. It is linear, so the spectra
  of all label tokens of a sample are summed before one inverse FFT. The error of an inner
  product has the standard deviation |A| |B| / sqrt(D).
* `SplitSketch`: hidden states of language models have most of their energy along one direction u.
  With h = (h.u) u + r, the inner product falls apart into one along u, which needs only a count
  sketch of sum_t (h_t.u) e_t, and one of the rest, a TensorSketch. Half of the floats go to each.
  On SmolLM2 the error is about 0.7 of a TensorSketch's with as many floats.
* `OuterProduct`: G itself, where it has no more than D entries.

Hashing is balanced: an order of the vocabulary, then place modulo D, with random signs. That turns
the count sketch of e into a reshape and a sum once the rows of the head stand in that order. The
order is random within blocks, and the blocks go from the tokens that the model predicts most to
those it predicts least: the tokens that carry most of the error then never share a bucket.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

HashTables = Mapping[str, NDArray[Any]]
Sums = Tensor | tuple[Tensor, Tensor]

# Where less of the hidden states' energy lies along one direction, splitting it off loses.
LEAST_SPLIT_SHARE = 0.4


class ModelProfile(NamedTuple):
    """What a model does on average, for a better sketch; any values leave it unbiased.

    `token_ranking` [vocab] has the tokens predicted most first, `direction` [hidden] is a unit
    vector, `share` the part of the hidden states' energy along it.
    """

    token_ranking: NDArray[np.int64]
    direction: NDArray[np.float64]
    share: float


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


def draw_tables(
    vocab_size: int,
    hidden_size: int,
    *,
    dim: int,
    seed: int,
    profile: ModelProfile | None = None,
) -> HashTables:
    """The hash tables of a new index. They are stored with it and never drawn again.

    Without a profile the order of the vocabulary is random throughout, and nothing is split off.
    """
    random = np.random.default_rng(seed)
    split_dim = dim // 2 if profile is not None and profile.share >= LEAST_SPLIT_SHARE else 0
    rest_dim = dim - split_dim
    tables: dict[str, NDArray[Any]] = {
        "vocab_order": _vocab_order(random, vocab_size, profile, block=dim // 4),
        "vocab_sign": random.choice(np.array([-1, 1]), vocab_size),
        "hidden_bucket": random.permutation(max(hidden_size, rest_dim))[:hidden_size] % rest_dim,
        "hidden_sign": random.choice(np.array([-1, 1]), hidden_size),
    }
    if profile is not None and split_dim:
        tables |= {
            "direction": profile.direction,
            "split_dim": np.array([split_dim]),
            "split_sign": random.choice(np.array([-1, 1]), vocab_size),
            "split_shift": random.integers(split_dim, size=-(-vocab_size // split_dim)),
        }
    return tables


def _vocab_order(
    random: np.random.Generator, vocab_size: int, profile: ModelProfile | None, *, block: int
) -> NDArray[np.int64]:
    if profile is None:
        return random.permutation(vocab_size)
    ranked = profile.token_ranking
    blocks = [ranked[start : start + block] for start in range(0, vocab_size, block)]
    return np.concatenate([random.permutation(tokens) for tokens in blocks])


def tables_digest(tables: HashTables) -> str:
    """What the fingerprint says of the tables: BLAKE2b over names and little-endian contents."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tables):
        digest.update(name.encode())
        table = np.ascontiguousarray(tables[name])
        digest.update(table.astype(table.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def part_widths(tables: HashTables, dim: int) -> tuple[int, ...]:
    """Floats of each independently sketched part of a row, in order; none where rows are exact."""
    if len(tables["vocab_order"]) * len(tables["hidden_bucket"]) <= dim:
        return ()
    split_dim = int(tables["split_dim"][0]) if "split_dim" in tables else 0
    return (split_dim, dim - split_dim) if split_dim else (dim,)


def standard_errors(
    query: NDArray[np.float32], rows: NDArray[np.float32], widths: Sequence[int]
) -> NDArray[np.float32]:
    """Standard errors of the inner products of query [dim] with rows [row, dim].

    A part of D floats has |q| |row| / sqrt(D) of its own norms (Pham and Pagh), and the parts are
    independent, so squares add up. Exact rows, which have no parts, have 0.
    """
    variances = np.zeros(len(rows))
    start = 0
    for width in widths:
        part = slice(start, start + width)
        squares = np.einsum("rd,rd->r", rows[:, part], rows[:, part], dtype=np.float64)
        variances += squares * float(query[part] @ query[part]) / width
        start += width
    return np.sqrt(variances).astype(np.float32)


def make_sketch(tables: HashTables, *, dim: int, device: torch.device) -> Sketch:
    """The exact outer product where it fits into `dim` floats, else the sketch of the tables."""
    on_device = {name: torch.from_numpy(np.array(t)).to(device) for name, t in tables.items()}
    size = len(tables["vocab_order"]) * len(tables["hidden_bucket"])
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
    """A count sketch of what lies along one direction, then a TensorSketch of the rest."""

    exact = False

    def __init__(self, tables: Mapping[str, Tensor], dim: int) -> None:
        self.dim = dim
        self.vocab_order = tables["vocab_order"]
        self._split_dim = int(tables["split_dim"][0])
        self._sign = tables["split_sign"].float()
        self._shifts = tables["split_shift"].tolist()
        self._direction = tables["direction"] / torch.linalg.vector_norm(tables["direction"])
        self._rest = TensorSketch(tables, dim - self._split_dim)

    def empty(self, n_samples: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zero buckets [sample, split_dim], and zero spectra of the rest."""
        return like.new_zeros(n_samples, self._split_dim), self._rest.empty(n_samples, like)

    def accumulate(
        self,
        sums: tuple[Tensor, Tensor],
        error: Float[Tensor, "token vocab"],
        hidden: Float[Tensor, "token hidden"],
        owner: Int[Tensor, " token"],
    ) -> None:
        """Add (h.u) count_sketch(e) to the buckets, and e (h - (h.u) u)^T to the rest."""
        direction = self._direction.to(hidden.dtype)
        along = (hidden @ direction)[:, None]  # [token, 1]
        buckets = count_sketch_vocab(error, self._sign, dim=self._split_dim, shifts=self._shifts)
        sums[0].index_add_(0, owner, buckets.mul_(along))
        self._rest.accumulate(sums[1], error, hidden - along * direction, owner)

    def rows(self, sums: tuple[Tensor, Tensor]) -> Float[Tensor, "sample dim"]:
        """Buckets first, then the row of the rest."""
        return torch.cat([sums[0], self._rest.rows(sums[1])], dim=1)


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
