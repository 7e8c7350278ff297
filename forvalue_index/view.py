"""One committed state of an index, for readers: its catalog and its mapped segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.segments import Block, SegmentFile
from forvalue_index.settings import Manifest
from forvalue_index.snapshot import Snapshot


class View:
    """One state of an index: what was committed when it was opened, whatever comes after."""

    def __init__(
        self,
        catalog: Snapshot,
        files: Sequence[SegmentFile],
        manifest: Manifest,
        search_path: Path,
    ) -> None:
        self.catalog = catalog
        self.version = catalog.version()
        self.files = files
        self.manifest = manifest
        self.search_path = search_path

    def blocks(self, geometry: str, *, normalize: bool = False) -> Iterator[Block]:
        """All live rows in float32 in order of id, a bounded number at a time.

        With `normalize` each is divided by its norm; rows of zeros stay.
        """
        removed = self.catalog.removed_ids()
        for file in self.files:
            for block in file.blocks(geometry):
                live = block.without(removed)
                yield Block(live.ids, scored_rows(live.rows, normalize=normalize))

    def rows(
        self, geometry: str, ids: NDArray[np.int64], *, normalize: bool = False
    ) -> NDArray[np.float32]:
        """The rows [row, dim] of some ids, in their order, as `blocks` gives them."""
        found = torch.empty(len(ids), self.manifest.row_width)
        owners = np.searchsorted([file.ids[-1] for file in self.files], ids)
        for owner in np.unique(owners):
            mine = owners == owner
            rows = self.files[owner].rows(geometry, ids[mine])
            found[torch.from_numpy(mine)] = scored_rows(rows, normalize=normalize)
        return found.numpy()

    def some_rows(
        self, geometry: str, count: int, *, normalize: bool = False
    ) -> Float[Tensor, "row dim"]:
        """At most so many live rows, a seeded random choice in order of id."""
        ids = self.catalog.live_ids()
        if len(ids) > count:
            ids = np.sort(np.random.default_rng(0).choice(ids, count, replace=False))
        blocks = self.blocks(geometry, normalize=normalize)
        chosen = [block.rows[torch.from_numpy(np.isin(block.ids, ids))] for block in blocks]
        return torch.cat([torch.empty(0, self.manifest.row_width), *chosen])


def scored_rows(rows: Float[Tensor, "row dim"], *, normalize: bool) -> Float[Tensor, "row dim"]:
    """Rows of any precision as inner products are taken with them: float32, of norm 1 or not."""
    return unit_rows(rows.float()) if normalize else rows.float()


def unit_rows(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Rows divided by their norms; those of zeros stay."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    unit: Tensor = (rows / norms.masked_fill(norms == 0, 1)).float()
    return unit
