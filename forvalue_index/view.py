"""One committed state of an index, for readers: its catalog and its mapped segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from forvalue_index.search.flat import FlatIndex
from forvalue_index.segments import Block, SegmentFile
from forvalue_index.settings import Manifest
from forvalue_index.snapshot import Snapshot


class View:
    """One state of an index: what was committed when it was opened, whatever comes after."""

    def __init__(self, catalog: Snapshot, files: Sequence[SegmentFile], manifest: Manifest) -> None:
        self.catalog = catalog
        self.version = catalog.version()
        self._files = files
        self._manifest = manifest

    def blocks(self, geometry: str, *, normalize: bool = False) -> Iterator[Block]:
        """All live rows in float32 in order of id, a bounded number at a time.

        With `normalize` each is divided by its norm; rows of zeros stay.
        """
        removed = self.catalog.removed_ids()
        for file in self._files:
            for block in file.blocks(geometry):
                live = block.without(removed)
                rows = live.rows.float()
                yield Block(live.ids, unit_rows(rows) if normalize else rows)

    def search_index(self, geometry: str, *, normalize: bool = False) -> FlatIndex:
        """A search index over all live rows; normalised ones are kept in float32."""
        row_dtype = "float32" if normalize else self._manifest.settings.row_dtype
        index = FlatIndex(self._manifest.row_width, row_dtype=row_dtype)
        for block in self.blocks(geometry, normalize=normalize):
            index.add(block.ids, block.rows.numpy())
        return index

    def some_rows(
        self, geometry: str, count: int, *, normalize: bool = False
    ) -> Float[Tensor, "row dim"]:
        """At most so many live rows, a seeded random choice in order of id."""
        ids = self.catalog.live_ids()
        if len(ids) > count:
            ids = np.sort(np.random.default_rng(0).choice(ids, count, replace=False))
        blocks = self.blocks(geometry, normalize=normalize)
        chosen = [block.rows[torch.from_numpy(np.isin(block.ids, ids))] for block in blocks]
        return torch.cat([torch.empty(0, self._manifest.row_width), *chosen])


def unit_rows(rows: Float[Tensor, "row dim"]) -> Float[Tensor, "row dim"]:
    """Rows divided by their norms; those of zeros stay."""
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True, dtype=torch.float64)
    unit: Tensor = (rows / norms.masked_fill(norms == 0, 1)).float()
    return unit
