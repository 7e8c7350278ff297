"""An index on disk: a manifest, hash tables, segments of rows and a catalog, kept in step.

Rows are written first and recorded afterwards: a sample in the catalog is the proof that its row
exists. Search indexes are made from the segments.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from forvalue_index.catalog import Catalog
from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.manifest import (
    MANIFEST,
    SEGMENTS,
    TABLES,
    catalog_address,
    open_catalog,
    refuse_occupied,
)
from forvalue_index.records import Sample, SampleStatistics
from forvalue_index.search.flat import FlatIndex
from forvalue_index.segments import SegmentStore, write_durably
from forvalue_index.settings import Manifest, ModelIdentity, Settings
from forvalue_index.sketch import HashTables, ModelProfile, draw_tables, part_widths, tables_digest


class Block(NamedTuple):
    """Live rows in order of id: `ids` [row], `rows` [row, dim] in float32."""

    ids: NDArray[np.int64]
    rows: Tensor


class Storage:
    """One opened index, without a model."""

    def __init__(self, path: Path, manifest: Manifest, catalog: Catalog) -> None:
        # Absolute, so that the program may change its working directory.
        self.path = path.absolute()
        self.manifest = manifest
        self.catalog = catalog
        self._segments = SegmentStore(self.path / SEGMENTS)

    @classmethod
    def create(
        cls,
        path: Path,
        settings: Settings,
        *,
        model: ModelIdentity,
        catalog: str,
        profile: ModelProfile | None = None,
    ) -> Storage:
        """Make an empty index for resolved settings; `profile` makes its sketch more accurate.

        Raises:
            BrokenIndexError: the directory holds something else.
        """
        refuse_occupied(path)
        (path / SEGMENTS).mkdir(parents=True, exist_ok=True)
        tables = draw_tables(
            model.vocab_size,
            model.hidden_size,
            dim=settings.dim,
            seed=settings.seed,
            profile=profile,
        )
        write_durably(path / TABLES, save({name: np.asarray(t) for name, t in tables.items()}))
        manifest = Manifest(uuid.uuid4().hex, catalog, settings, model, tables_digest(tables))
        opened = Catalog.create(catalog_address(path, catalog), manifest.uid, manifest.fingerprint)
        write_durably(path / MANIFEST, manifest.to_json().encode())
        return cls(path, manifest, opened)

    @classmethod
    def open(cls, path: Path) -> Storage:
        """Open an index. Raises BrokenIndexError where there is none, or a damaged or newer one."""
        return cls(path, *open_catalog(path))

    def close(self) -> None:
        """Let go of the catalog's connections."""
        self.catalog.close()

    def tables(self) -> HashTables:
        """The sketch's hash tables. Raises BrokenIndexError where they are not the index's own."""
        path = self.path / TABLES
        try:
            tables = load_file(path)
        except (OSError, SafetensorError) as error:
            raise BrokenIndexError(
                f"{path} cannot be read ({error}); restore it from a backup, or build the index "
                "anew"
            ) from error
        if tables_digest(tables) != self.manifest.sketch_digest:
            raise BrokenIndexError(
                f"{path} is not the file that this index was created with; restore it from a "
                "backup, or build the index anew"
            )
        return tables

    def part_widths(self) -> tuple[int, ...]:
        """Floats of each part of a row that is sketched on its own, see `standard_errors`."""
        return part_widths(self.tables(), self.manifest.settings.dim)

    def append(
        self,
        rows: Float[Tensor, "sample dim"],
        samples: Sequence[Sample],
        statistics: Sequence[SampleStatistics],
    ) -> None:
        """Store rows and samples: the segment file first, then one transaction."""
        dtype = getattr(torch, self.manifest.settings.row_dtype)
        segment = self._segments.write(rows, dtype=dtype)
        self.catalog.commit_segment(segment, samples, statistics)

    def blocks(self) -> Iterator[Block]:
        """All live rows, a bounded number at a time."""
        removed = self.catalog.removed_ids()
        for segment in self.catalog.segments():
            first = segment.first_id
            for rows in self._segments.blocks(segment.file.uid, segment.file.n_rows):
                ids = np.arange(first, first + len(rows), dtype=np.int64)
                first += len(rows)
                live = ~np.isin(ids, removed)
                yield Block(ids[live], rows[torch.from_numpy(live)])

    def search_index(self) -> FlatIndex:
        """A search index over all live rows."""
        width = self.manifest.row_width
        index = FlatIndex(width, row_dtype=self.manifest.settings.row_dtype)
        for block in self.blocks():
            index.add(block.ids, block.rows.numpy())
        return index
