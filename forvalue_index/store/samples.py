"""The samples of an index, as its catalog holds them. Needs no model, no torch and no FAISS."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.progress import OnProgress, ignore_progress
from forvalue_index.sources.images import Pixels
from forvalue_index.sources.sample import Image
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.manifest import Manifest, open_catalog
from forvalue_index.store.media import Media
from forvalue_index.store.records import StoredSample
from forvalue_index.store.results import CatalogSummary
from forvalue_index.store.writer_lock import writer_lock


class Chosen(TypedDict, total=False):
    """Which samples to remove but by name, and how many these should be."""

    source: str | None
    where: str | None
    expected: int | None


class IndexSamples:
    """Reading and removing samples. Use as a context manager, or call `close`."""

    def __init__(
        self,
        path: Path,
        manifest: Manifest,
        catalog: Catalog,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self._catalog = catalog
        self._on_progress = on_progress

    def close(self) -> None:
        """Let go of the catalog's connections."""
        self._catalog.close()

    def __enter__(self) -> IndexSamples:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def snapshot(self) -> AbstractContextManager[Snapshot]:
        """One state of the catalog, for reads that have to fit together."""
        return self._catalog.snapshot()

    def __len__(self) -> int:
        return self.count()

    def count_chosen(
        self,
        names: Sequence[str | int] = (),
        *,
        source: str | None = None,
        where: str | None = None,
    ) -> int:
        """How many samples `remove` would remove; raises as it does."""
        with self._catalog.snapshot() as snapshot:
            return len(chosen_ids(snapshot, names, source=source, where=where))

    def removed_already(self, names: Sequence[str | int]) -> list[str]:
        """Those names whose samples are removed. Raises CatalogError for a name of none."""
        with self._catalog.snapshot() as snapshot:
            ids = {str(name): snapshot.sample_id(str(name)) for name in names}
            live = set(snapshot.live_among(ids.values()).tolist())
        return [name for name, id_ in ids.items() if id_ not in live]

    def remove(
        self,
        names: Sequence[str | int] = (),
        *,
        source: str | None = None,
        where: str | None = None,
        wait: bool = False,
        expected: int | None = None,
    ) -> int:
        """Remove samples by key or number, or all of a source or a filter; returns how many.

        They no longer count, and come back where they are added again. `compact` forgets them.
        Where they are not as many as `expected`, nothing is removed.

        Raises:
            UsageError: nothing is chosen, or another number of samples than expected.
            BusyIndexError: another process writes to the index and `wait` is false.
            CatalogError: there is no sample of a name, or no such source; nothing is removed.
            FilterError: the filter is malformed or names an unknown column.
        """
        with self._writing(wait):
            with self._catalog.snapshot() as snapshot:
                ids = chosen_ids(snapshot, names, source=source, where=where)
            if expected is not None and len(ids) != expected:
                raise UsageError(
                    f"{len(ids):,} samples match now, and {expected:,} did when you were asked; "
                    "nothing was removed, run the same again"
                )
            return self._catalog.remove(ids)

    def info(self) -> CatalogSummary:
        """Counts, bytes, sources and median loss."""
        with self._catalog.snapshot() as snapshot:
            return snapshot.summary()

    @property
    def version(self) -> int:
        """How many changes have been committed to the index."""
        with self._catalog.snapshot() as snapshot:
            return snapshot.version()

    def sample(self, name: str | int) -> StoredSample:
        """The sample with this key, or `@3` for the number 3. Raises CatalogError for none."""
        with self._catalog.snapshot() as snapshot:
            return snapshot.sample(str(name))

    def pixels(self, image: Image) -> Pixels:
        """An image of a sample, RGB. Raises BadSampleError where it is lost, or is another now."""
        return Media(self.path, self.manifest.settings).open(image)

    def list_samples(
        self, where: str | None = None, *, limit: int = 100, offset: int = 0
    ) -> list[StoredSample]:
        """Samples in order of id that meet a filter such as `source = 'a' AND n_tokens > 50`.

        Raises:
            FilterError: the filter is malformed or names an unknown column.
        """
        with self._catalog.snapshot() as snapshot:
            return snapshot.list_samples(where, limit=limit, offset=offset)

    def count(self, where: str | None = None) -> int:
        """How many samples meet a filter. Raises FilterError as `list_samples` does."""
        with self._catalog.snapshot() as snapshot:
            return snapshot.count(where)

    def _writing(self, wait: bool) -> AbstractContextManager[None]:
        return writer_lock(self.path, wait=wait, on_progress=self._on_progress)


def open_samples(path: str | PathLike[str]) -> IndexSamples:
    """The samples of the index at a path. Raises BrokenIndexError as `manifest.open_catalog`."""
    directory = Path(path).absolute()
    return IndexSamples(directory, *open_catalog(directory))


def chosen_ids(
    snapshot: Snapshot,
    names: Sequence[str | int] = (),
    *,
    source: str | None = None,
    where: str | None = None,
) -> NDArray[np.int64]:
    """Ids of the live samples of these names, or of those of a source and a condition.

    A name is as `Snapshot.sample_id` reads it; one of a removed sample chooses nothing.

    Raises:
        UsageError: nothing is chosen, or names are mixed with a source or a condition.
        CatalogError: there is no sample of a name, or no source.
        FilterError: the condition is malformed or names an unknown column.
    """
    described = source is not None or where is not None
    if bool(names) == described:
        raise UsageError(
            "say which samples to remove: either by key or number, or with --source and --where"
        )
    if described:
        return snapshot.live_ids(where, source=source)
    ids = {snapshot.sample_id(str(name)) for name in names}
    return snapshot.live_among(ids)
