"""`flat` on GPUs: a matrix product scores all rows, which stay in the memory of the GPUs.

It is torch's product and top-k. FAISS's indexes for GPUs take no selectors, which `--where` needs,
no bfloat16, at most 2,048 answers, and nothing but a GPU to test them on.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forvalue_index.devices import (
    computes_in_bfloat16,
    gpu_room,
    none_if_out_of_memory,
    shared_out,
)
from forvalue_index.exceptions import UsageError
from forvalue_index.progress import OnProgress
from forvalue_index.search import ranking
from forvalue_index.search.contract import Ids, Scores
from forvalue_index.search.kinds import FLAT
from forvalue_index.search.ranking import (
    Ranked,
    begun,
    best,
    whole_products,
)
from forvalue_index.store.rows import StoredRows
from forvalue_index.store.segments import StoredBlock
from forvalue_index.store.view import View

LOG = logging.getLogger(__name__)
# What the rounding of a score can reach, relative to the product of the two norms: that of a query
# to 16 bits, and of sums in float32, which tensor cores cut off, for each number that is added.
QUERY_ROUNDING = 4e-6
SUM_ROUNDING = 1.5e-9
# Scores on a device at once.
SCORES = 2**26
# Numbers in float32 at once.
BLOCK_FLOATS = 2**26


class _Shard(NamedTuple):
    """Rows on one device: `values` [row, dim], what they are multiplied by, their norms [row]."""

    values: Tensor
    scales: Tensor
    norms: Tensor

    def scores(self, queries: Tensor, mask: Tensor | None) -> Float[Tensor, "query row"]:
        """Inner products, of the rows of `mask` alone."""
        hidden = None if mask is None else ~mask.to(self.values.device)
        scores = _products(queries.to(self.values.device), self.values).mul_(self.scales)
        return scores if hidden is None else scores.masked_fill_(hidden, -torch.inf)

    def rows(self, which: slice | Tensor) -> Float[Tensor, "row dim"]:
        return self.values[which].float() * self.scales[which, None]


class GpuIndex:
    """Rows of known `ids`, which go up, in the memory of devices: so many of each one's share.

    With `exact`, rows are kept in float32, else in bfloat16, which holds those of bfloat16 and the
    values of int8. All of them have to be `put` before the first search.
    """

    kind = FLAT

    def __init__(
        self, ids: Ids, dim: int, shares: Mapping[torch.device, int], *, exact: bool
    ) -> None:
        if sum(shares.values()) != len(ids):
            raise UsageError(f"{len(ids)} ids for shares of {sum(shares.values())} rows")
        dtype = torch.float32 if exact else torch.bfloat16
        self.ids, self.dim = ids, dim
        self._shards = [
            _Shard(
                torch.empty(count, dim, dtype=dtype, device=device),
                torch.empty(count, device=device),
                torch.empty(count, device=device),
            )
            for device, count in shares.items()
        ]
        self._starts = np.cumsum([0, *shares.values()])

    @staticmethod
    def row_bytes(dim: int, *, exact: bool) -> int:
        """Bytes of a row on a device."""
        return dim * (4 if exact else 2) + 8

    def __len__(self) -> int:
        return len(self.ids)

    def put(self, ids: Ids, rows: StoredRows, *, normalize: bool = False) -> None:
        """Store the rows of some ids, in order; several threads may. Raises UsageError for NaN."""
        positions = np.searchsorted(self.ids, ids)
        for number, shard in enumerate(self._shards):
            start, end = self._starts[number], self._starts[number + 1]
            held = torch.from_numpy((positions >= start) & (positions < end))
            if held.any():
                here = torch.from_numpy(positions)[held] - int(start)
                _put(shard, here.to(shard.values.device), rows[held], normalize=normalize)

    def search(self, queries: Scores, k: int, allowed: Ids | None = None) -> list[Ranked]:
        """Ids and scores of the k best rows for each query: best first, ties by id."""
        most = 0 if allowed is None else ranking.SCANNED
        queries, among, answers = begun(self, queries, k, allowed, most=most)
        if answers is not None:
            return answers
        mask = None
        if allowed is not None:
            mask = torch.from_numpy(np.isin(self.ids, among, assume_unique=True))
        together = max(1, SCORES // int(np.diff(self._starts).max()))
        ranked: list[Ranked] = []
        for start in range(0, len(queries), together):
            ranked += self._searched(queries[start : start + together], min(k, len(among)), mask)
        return ranked

    def rows(self, ids: Ids) -> Scores:
        """The rows of known ids, in their order."""
        rows = np.empty((len(ids), self.dim), dtype=np.float32)
        positions = np.searchsorted(self.ids, ids)
        owners = np.searchsorted(self._starts, positions, side="right") - 1
        for number in np.unique(owners):
            shard, held = self._shards[number], owners == number
            here = torch.from_numpy(positions[held] - self._starts[number])
            rows[held] = shard.rows(here.to(shard.values.device)).cpu().numpy()
        return rows

    def stored_values(self) -> list[Tensor]:
        """The values [row, dim] of each device, before they are scaled."""
        return [shard.values for shard in self._shards]

    def blocks(self) -> Iterator[tuple[Ids, Float[Tensor, "row dim"]]]:
        """All rows in float32, on their devices, with their ids: a bounded number at a time."""
        for first, shard in zip(self._starts, self._shards, strict=False):
            for block in _blocks(shard.values):
                rows = shard.rows(block)
                yield self.ids[first + block.start : first + block.start + len(rows)], rows

    def _searched(self, queries: Scores, k: int, mask: Tensor | None) -> list[Ranked]:
        """All rows that may be among the k best, but for rounding, are scored again.

        Their scores then depend on the row alone, and rows that tie for place k are all there.
        """
        asked = torch.from_numpy(queries)
        ends = zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True)
        masks = [None if mask is None else mask[start:end] for start, end in ends]
        scores = [s.scores(asked, m) for s, m in zip(self._shards, masks, strict=True)]
        tops = [part.topk(min(k, part.shape[1])).values for part in scores]
        last = torch.cat([top.cpu() for top in tops], dim=1).topk(k).values[:, -1]
        longest = max(float(shard.norms.max()) for shard in self._shards)
        rounding = (QUERY_ROUNDING + SUM_ROUNDING * self.dim) * longest
        least = last - 2 * rounding * torch.linalg.vector_norm(asked, dim=1)
        ranked = []
        for i, query in enumerate(queries):
            near = [(part[i] >= least[i].to(part.device)).nonzero()[:, 0].cpu() for part in scores]
            positions = [
                here.numpy() + start for here, start in zip(near, self._starts, strict=False)
            ]
            ids = self.ids[np.concatenate(positions)]
            ranked.append(best(query[None], ids, self.rows, k)[0])
        return ranked


def rows_on_gpus(
    view: View, geometry: str, *, normalize: bool, on_progress: OnProgress
) -> GpuIndex | None:
    """A search index over live rows, or None where no GPU has the room, which a warning says."""
    room = gpu_room()
    if not room:
        return None
    ids, dim = view.catalog.live_ids(), view.manifest.row_width
    exact = view.manifest.settings.row_dtype == "float32"
    row_bytes = GpuIndex.row_bytes(dim, exact=exact)
    shares = shared_out(len(ids), row_bytes, room)

    def filled() -> GpuIndex:
        index = GpuIndex(ids, dim, shares or {}, exact=exact)

        def put(block: StoredBlock) -> None:
            index.put(block.ids, block.rows, normalize=normalize)

        for _ in view.stored_scan(geometry, put, "opening", on_progress):
            pass
        return index

    size = f"{len(ids):,} rows of {len(ids) * row_bytes / 1e9:.1f} GB"
    names = ", ".join(map(str, room))
    if shares is None:
        free = sum(room.values()) / 1e9
        LOG.warning("%s, and room for %.1f GB on %s; searching on the CPU", size, free, names)
        return None
    index = none_if_out_of_memory(filled)
    if index is None:
        LOG.warning("%s, and the memory of %s ran out; searching on the CPU", size, names)
    return index


def _put(shard: _Shard, positions: Tensor, rows: StoredRows, *, normalize: bool) -> None:
    device = positions.device
    values = rows.values.to(device).to(shard.values.dtype)
    scales = torch.ones(len(positions)) if rows.scales is None else rows.scales
    scales = scales.to(device)
    norms = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32)
    if not torch.isfinite(norms * scales).all():
        raise UsageError("a row holds NaN or infinity; find the sample and leave it out")
    if normalize:
        scales = 1 / norms.masked_fill(norms == 0, 1)
    shard.values[positions] = values
    shard.scales[positions] = scales
    shard.norms[positions] = norms * scales


def _products(queries: Tensor, values: Tensor) -> Float[Tensor, "query row"]:
    """Inner products [query, row] in float32.

    For rows of bfloat16 a query is the sum of two of bfloat16, so tensor cores take them, and rows
    are read once, as they are.
    """
    if values.dtype == torch.bfloat16 and values.is_cuda and computes_in_bfloat16(values.device):
        high = queries.bfloat16()
        parts = torch.cat([high, (queries - high.float()).bfloat16()])
        products = torch.mm(parts, values.T, out_dtype=torch.float32)
        return products[: len(queries)] + products[len(queries) :]
    products = torch.empty(len(queries), len(values), device=values.device)
    with whole_products():
        for block in _blocks(values):
            products[:, block] = queries @ values[block].float().T
    return products


def _blocks(values: Tensor) -> Iterator[slice]:
    size = max(1, BLOCK_FLOATS // values.shape[1])
    for start in range(0, len(values), size):
        yield slice(start, start + size)
