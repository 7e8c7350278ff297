"""An index with the model that it was built with, which is loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Any

from forvalue_index.exceptions import UsageError
from forvalue_index.gradients.embedder import Embedder, geometry_of
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.progress import OnProgress, ignore_progress
from forvalue_index.settings import GEOMETRIES
from forvalue_index.sources.source import RowSource, open_sources
from forvalue_index.store.model import ModelAccess, load_backbone, load_on_other_gpus, make_reader
from forvalue_index.store.samples import IndexSamples
from forvalue_index.store.store import Storage
from forvalue_index.valuation.held_search import Valuers


class IndexModel(IndexSamples):
    """The samples of an index, its rows, and its model."""

    def __init__(
        self,
        storage: Storage,
        access: ModelAccess,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        super().__init__(storage.path, storage.manifest, storage.catalog, on_progress=on_progress)
        self._storage = storage
        self._access = access
        self._backbone: Backbone | None = None
        self._reader: ModelReader | None = None
        self._other_readers: list[ModelReader] | None = None
        self._valuers = Valuers(storage, on_progress)

    def close(self) -> None:
        """Let go of the model and of the catalog."""
        self._backbone = self._reader = None
        self._other_readers = None
        self._valuers.clear()
        super().close()

    def sources(
        self,
        data: Any,
        columns: Mapping[str, str] | None = None,
        media_root: str | PathLike[str] | None = None,
    ) -> list[RowSource]:
        """Open data for this index; raises as `open_sources`."""
        images = self.manifest.model.reads_images
        return open_sources(data, columns, media_root, images=images)

    @property
    def storage(self) -> Storage:
        """The index on disk, for what reads its rows."""
        return self._storage

    @property
    def on_progress(self) -> OnProgress:
        """What is called with each step of long tasks."""
        return self._on_progress

    @property
    def backbone(self) -> Backbone:
        """The model. It is loaded when it is first asked for."""
        if self._backbone is None:
            self._backbone = load_backbone(self._storage, self._access, self._on_progress)
        return self._backbone

    @property
    def reader(self) -> ModelReader:
        """What reads samples. Loads the model when it is first asked for."""
        if self._reader is None:
            settings, tables = self.manifest.settings, self._storage.tables()
            self._reader = make_reader(self.backbone, settings, tables, self._storage.media.open)
        return self._reader

    def _readers_on_other_gpus(self) -> list[ModelReader]:
        """What reads samples on all GPUs but the first. Loads the model when it is first asked."""
        if self._other_readers is None:
            settings, tables = self.manifest.settings, self._storage.tables()
            backbones = load_on_other_gpus(self._storage, self._access)
            opened = self._storage.media.open
            self._other_readers = [make_reader(one, settings, tables, opened) for one in backbones]
        return self._other_readers

    @property
    def embedder(self) -> Embedder:
        """What turns samples into rows. Loads the model when it is first asked for."""
        return self._storage.embedder(self.reader)

    def geometry(self, name: str) -> Geometry:
        """A geometry as the index is calibrated, whether it holds rows of it or not."""
        if name not in GEOMETRIES:
            raise UsageError(f"--geometry cannot be {name!r}; use one of {', '.join(GEOMETRIES)}")
        return geometry_of(name, self.reader, self._storage.calibration(), self.manifest.settings)
