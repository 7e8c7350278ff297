"""An index on disk: a manifest, hash tables, segments of rows and a catalog, kept in step.

Rows are written first and recorded afterwards: a sample in the catalog is the proof that its row
exists. Search indexes are made from the segments.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.gradients.hash_tables import (
    ModelProfile,
    draw_tables,
    row_layout,
    tables_digest,
)
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.settings import ModelIdentity, Settings
from forvalue_index.sources.sample import Sample
from forvalue_index.store.catalog.addresses import catalog_address
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import NoRoomError
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.catalog.witness import Witness
from forvalue_index.store.durable import interrupts_held, write_durably
from forvalue_index.store.frozen import FrozenParts, hash_tables_file
from forvalue_index.store.manifest import (
    CALIBRATION,
    MANIFEST,
    SEARCH,
    SEGMENTS,
    TABLES,
    Manifest,
    open_catalog,
    refuse_occupied,
    texts_of,
)
from forvalue_index.store.media import Media
from forvalue_index.store.records import SegmentRecord
from forvalue_index.store.rows import StoredRows, quantized
from forvalue_index.store.segments import CURE, MissingSegmentError, SegmentFile, SegmentStore
from forvalue_index.store.view import View

# How often a reader starts over because rows were compacted between two of its steps.
ATTEMPTS = 10


class Storage:
    """One opened index, without a model."""

    def __init__(self, path: Path, manifest: Manifest, catalog: Catalog) -> None:
        self.path = path.absolute()  # the program may change its working directory
        self.manifest = manifest
        self.catalog = catalog
        self.segments = SegmentStore(self.path / SEGMENTS)
        self.media = Media(self.path, manifest.settings)
        self.frozen = FrozenParts(self.path, manifest)

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
            layouts={
                name: row_layout(
                    name,
                    dim=settings.dim,
                    vocab_size=model.vocab_size,
                    hidden_size=model.hidden_size,
                    profile=profile,
                )
                for name in settings.geometries
            },
        )
        write_durably(path / TABLES, hash_tables_file(tables))
        manifest = Manifest(uuid.uuid4().hex, catalog, settings, model, tables_digest(tables))
        opened = Catalog.create(
            catalog_address(path, catalog),
            manifest.uid,
            manifest.fingerprint,
            texts=texts_of(path, settings, model),
            witness=Witness(path.absolute()),
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

    @property
    def uncalibrated(self) -> bool:
        """Whether the first samples are yet to come, and a calibration with them."""
        with self.catalog.snapshot() as snapshot:
            return not snapshot.segments() and self.frozen.calibration() is None

    def append(
        self,
        rows: Mapping[str, StoredRows],
        samples: Sequence[Sample],
        statistics: Sequence[SampleStatistics],
        *,
        replaced: Sequence[int] = (),
    ) -> None:
        """Store rows of each geometry and samples: the segment file first, then one transaction.

        The images of samples are kept already. Samples with ids in `replaced` are removed with it.
        """
        segment = self._write(rows)
        with self._unrecorded(segment):
            self.catalog.commit_segment(segment, samples, statistics, replaced=replaced)

    def replace(
        self,
        uids: Sequence[str],
        ids: NDArray[np.int64],
        rows: Mapping[str, StoredRows],
        *,
        forget: Sequence[int] | None = None,
    ) -> None:
        """Let one new segment with rows [id, dim] a geometry take the place of others, by uid.

        `ids` are in order those of all samples of the old segments but for removed ones with ids in
        `forget`, or all removed ones, which are forgotten.
        """
        with interrupts_held():
            new, first_id = None, 0
            if len(ids):
                first_id, offsets = int(ids[0]), ids - ids[0]
                plain = np.array_equal(offsets, np.arange(len(ids)))
                new = self._write(rows, None if plain else offsets)
            with self._unrecorded(new):
                self.catalog.replace_segments(uids, new, first_id=first_id, forget=forget)
            for uid in uids:
                self.segments.delete(uid)

    def _write(
        self, rows: Mapping[str, StoredRows], offsets: NDArray[np.int64] | None = None
    ) -> SegmentRecord:
        return self.segments.write(
            rows, offsets=offsets, calibration=self.frozen.calibration_digest()
        )

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

    def quantized(self, rows: Mapping[str, Tensor]) -> dict[str, StoredRows]:
        """Rows of each geometry in the precision that they are stored in."""
        return {
            name: quantized(floats, self.manifest.settings.row_dtype)
            for name, floats in rows.items()
        }

    @contextmanager
    def view(self) -> Iterator[View]:
        """Read one state of the index, while others write to it.

        Raises BrokenIndexError where a segment is missing or damaged.
        """
        with ExitStack() as stack:
            yield self._view(stack)

    def refuse_other_widths(self, files: Iterable[SegmentFile]) -> None:
        """Raise BrokenIndexError for a segment whose rows are not of this index's kind."""
        settings = self.manifest.settings
        expected = dict.fromkeys(settings.geometries, self.manifest.row_width)
        for file in files:
            kinds = sorted({*file.row_dtypes.values()})
            if file.dims != expected or kinds != [settings.row_dtype]:
                raise BrokenIndexError(
                    f"{file.path} is damaged: its rows have {_shown(file.dims)} in "
                    f"{' and '.join(kinds)}, and those of the index {_shown(expected)} in "
                    f"{settings.row_dtype}; {CURE}"
                )

    def refuse_other_calibration(self, files: Iterable[SegmentFile]) -> None:
        """Raise BrokenIndexError for a segment that another calibration was used for."""
        digest = self.frozen.calibration_digest()
        for file in files:
            if file.calibration != digest:
                raise BrokenIndexError(
                    f"{file.path} was made with the calibration {file.calibration}, and that of "
                    f"the index is {digest or 'missing'}; restore {self.path / CALIBRATION} from a "
                    f"backup, or {CURE}"
                )

    def _refuse_strange_rows(self, catalog: Snapshot, files: Sequence[SegmentFile]) -> None:
        """Raise BrokenIndexError unless there is one row for each sample, of the right kind."""
        stored = np.concatenate([np.empty(0, np.int64), *(file.ids for file in files)])
        recorded = np.concatenate([catalog.live_ids(), catalog.removed_ids()])
        if not np.array_equal(np.sort(stored), np.sort(recorded)):
            raise BrokenIndexError(
                f"{self.path} is damaged: its segments hold other samples than its catalog; {CURE}"
            )
        self.refuse_other_widths(files)
        self.refuse_other_calibration(files)

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
                return View(snapshot, files, self.manifest, self.path / SEARCH)
        raise BrokenIndexError(
            f"{self.path} was compacted {ATTEMPTS} times while it was opened; run the same again"
        )


def _shown(dims: Mapping[str, int]) -> str:
    return " and ".join(f"{dim:,} floats of {name}" for name, dim in dims.items())
