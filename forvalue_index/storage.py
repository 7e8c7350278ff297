"""An index on disk: a manifest, hash tables, segments of rows and a catalog, kept in step.

Rows are written first and recorded afterwards: a sample in the catalog is the proof that its row
exists. Search indexes are made from the segments.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save
from torch import Tensor

from forvalue_index.catalog import Catalog
from forvalue_index.database import NoRoomError
from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.interrupts import interrupts_held
from forvalue_index.manifest import (
    MANIFEST,
    SEGMENTS,
    TABLES,
    catalog_address,
    open_catalog,
    refuse_occupied,
    texts_of,
)
from forvalue_index.records import Sample, SampleStatistics, SegmentRecord
from forvalue_index.search.flat import FlatIndex
from forvalue_index.segments import (
    CURE,
    Block,
    MissingSegmentError,
    SegmentFile,
    SegmentStore,
    write_durably,
)
from forvalue_index.settings import Manifest, ModelIdentity, Settings
from forvalue_index.sketch import HashTables, ModelProfile, draw_tables, part_widths, tables_digest
from forvalue_index.snapshot import Snapshot

# How often a reader starts over because rows were compacted between two of its steps.
ATTEMPTS = 10


class View:
    """One state of an index: what was committed when it was opened, whatever comes after."""

    def __init__(self, catalog: Snapshot, files: Sequence[SegmentFile], manifest: Manifest) -> None:
        self.catalog = catalog
        self.version = catalog.version()
        self._files = files
        self._manifest = manifest

    def blocks(self) -> Iterator[Block]:
        """All live rows in float32 in order of id, a bounded number at a time."""
        removed = self.catalog.removed_ids()
        for file in self._files:
            for block in file.blocks():
                live = block.without(removed)
                yield Block(live.ids, live.rows.float())

    def search_index(self) -> FlatIndex:
        """A search index over all live rows."""
        settings = self._manifest.settings
        index = FlatIndex(self._manifest.row_width, row_dtype=settings.row_dtype)
        for block in self.blocks():
            index.add(block.ids, block.rows.numpy())
        return index


class Storage:
    """One opened index, without a model."""

    def __init__(self, path: Path, manifest: Manifest, catalog: Catalog) -> None:
        # Absolute, so that the program may change its working directory.
        self.path = path.absolute()
        self.manifest = manifest
        self.catalog = catalog
        self.segments = SegmentStore(self.path / SEGMENTS)

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
        opened = Catalog.create(
            catalog_address(path, catalog),
            manifest.uid,
            manifest.fingerprint,
            texts=texts_of(path, settings),
        )
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
        segment = self.segments.write(rows, dtype=self.row_dtype)
        with self._unrecorded(segment):
            self.catalog.commit_segment(segment, samples, statistics)

    def replace(
        self,
        uids: Sequence[str],
        ids: NDArray[np.int64],
        rows: Tensor,
        *,
        forget: Sequence[int] | None = None,
    ) -> None:
        """Let one new segment with the rows [id, dim] take the place of others, by uid.

        `ids` are in order those of all samples of the old segments but for removed ones with ids in
        `forget`, or all removed ones, which are forgotten.
        """
        with interrupts_held():
            new, first_id = None, 0
            if len(ids):
                first_id, offsets = int(ids[0]), ids - ids[0]
                plain = np.array_equal(offsets, np.arange(len(ids)))
                new = self.segments.write(
                    rows, dtype=self.row_dtype, offsets=None if plain else offsets
                )
            with self._unrecorded(new):
                self.catalog.replace_segments(uids, new, first_id=first_id, forget=forget)
            for uid in uids:
                self.segments.delete(uid)

    @contextmanager
    def _unrecorded(self, segment: SegmentRecord | None) -> Iterator[None]:
        """Take back a written segment that a full disk kept from being recorded.

        After any other error it stays: whether it was recorded may show only later.
        """
        try:
            yield
        except NoRoomError:
            if segment is not None:
                self.segments.delete(segment.uid)
            raise

    @property
    def row_dtype(self) -> torch.dtype:
        """The precision that rows are stored in."""
        dtype: torch.dtype = getattr(torch, self.manifest.settings.row_dtype)
        return dtype

    @contextmanager
    def view(self) -> Iterator[View]:
        """Read one state of the index, while others write to it.

        Raises BrokenIndexError where a segment is missing or damaged.
        """
        with ExitStack() as stack:
            yield self._view(stack)

    def _refuse_strange_rows(self, catalog: Snapshot, files: Sequence[SegmentFile]) -> None:
        """Raise BrokenIndexError unless there is one row for each sample, of the right width."""
        width = self.manifest.row_width
        stored = np.concatenate([np.empty(0, np.int64), *(file.ids for file in files)])
        recorded = np.concatenate([catalog.live_ids(), catalog.removed_ids()])
        if not np.array_equal(np.sort(stored), np.sort(recorded)):
            raise BrokenIndexError(
                f"{self.path} is damaged: its segments hold other samples than its catalog; {CURE}"
            )
        for file in files:
            if file.dim != width:
                raise BrokenIndexError(
                    f"{file.path} is damaged: its rows have {file.dim} floats, and those of the "
                    f"index {width}; {CURE}"
                )

    def _view(self, stack: ExitStack) -> View:
        for _ in range(ATTEMPTS):
            snapshot = stack.enter_context(self.catalog.snapshot())
            try:
                # All files at once: mapped, they outlive their deletion.
                files = [self.segments.open(segment) for segment in snapshot.segments()]
            except MissingSegmentError:
                with self.catalog.snapshot() as now:
                    if now.version() == snapshot.version():
                        raise
                stack.close()
            else:
                self._refuse_strange_rows(snapshot, files)
                return View(snapshot, files, self.manifest)
        raise BrokenIndexError(
            f"{self.path} was compacted {ATTEMPTS} times while it was opened; run the same again"
        )
