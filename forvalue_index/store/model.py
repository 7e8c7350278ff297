"""The model of an index: loaded, checked, and ready to read samples."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from forvalue_index.devices import default_device, gpus, none_if_out_of_memory
from forvalue_index.exceptions import BrokenIndexError, UsageError
from forvalue_index.gradients.embedder import Embedder, Feature, features_of, geometry_of, sketch_of
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.gradients.hash_tables import VOCAB_ORDER, HashTables
from forvalue_index.gradients.sketch import Sketch
from forvalue_index.model.contracts import InputSide
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.vision import VisionProcessor
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.settings import DEFAULT_CONTEXT, GEOMETRIES, RAW, Settings
from forvalue_index.sources.data import Data
from forvalue_index.sources.images import OpenPixels
from forvalue_index.sources.source import RowSource
from forvalue_index.store.agreement import refuse_other_model, refuse_trust
from forvalue_index.store.manifest import CALIBRATION, Manifest
from forvalue_index.store.store import Storage

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelAccess:
    """What whoever opens an index says of its model: where it lies now, and whether to trust it."""

    model: str | None = None
    trust_remote_code: bool = False

    def load(self, path: Path, manifest: Manifest, *, device: torch.device) -> Backbone:
        """The model of the index at `path`, on a device.

        Raises:
            UsageError: the model runs code of its own, and is not trusted to.
            ModelError: the model cannot be loaded.
            SettingsMismatchError: it is not the one that the index was built with.
        """
        settings = manifest.settings
        refuse_trust(path, settings, trust_remote_code=self.trust_remote_code)
        if self.model is not None:
            settings = replace(settings, model=self.model, revision=None)
        images = manifest.model.reads_images
        backbone = Backbone.load(settings, device=device, images=images)
        refuse_other_model(path, manifest.model, backbone.identity())
        return backbone


class IndexModel:
    """An index on disk with the model that it was built with, loaded when it is first needed.

    `on_progress` is called with each step of long tasks.
    """

    def __init__(
        self,
        storage: Storage,
        access: ModelAccess,
        *,
        backbone: Backbone | None = None,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        self.storage = storage
        self.on_progress = on_progress
        self._access = access
        self._backbone = backbone
        self._reader: ModelReader | None = None
        self._other_readers: list[ModelReader] | None = None
        # By name, and the digest of the calibration that they were made for.
        self._geometries: dict[tuple[str, str | None], Geometry] = {}
        self._sketches: dict[tuple[str, str | None], Sketch] = {}

    def report(self, progress: Progress) -> None:
        """Tell `on_progress`, whichever it is by now."""
        self.on_progress(progress)

    def sources(self, data: Data) -> list[RowSource]:
        """Data opened for this model, which reads images or text alone."""
        return data.open(images=self.storage.manifest.model.reads_images)

    def close(self) -> None:
        """Let go of the model, and of what was read and made for it."""
        self.storage.frozen.forget()
        self._backbone = self._reader = self._other_readers = None
        self._geometries, self._sketches = {}, {}

    @property
    def backbone(self) -> Backbone:
        """The model itself. Raises as `ModelAccess.load` does."""
        if self._backbone is None:
            self._backbone = load_backbone(self.storage, self._access, self.on_progress)
        return self._backbone

    @property
    def reader(self) -> ModelReader:
        """What reads samples."""
        if self._reader is None:
            self._reader = reader_of(self.storage, self.backbone)
        return self._reader

    def other_readers(self) -> list[ModelReader]:
        """What reads samples on all GPUs but the first."""
        if self._other_readers is None:
            backbones = load_on_other_gpus(self.storage, self._access)
            self._other_readers = [reader_of(self.storage, one) for one in backbones]
        return self._other_readers

    def refuse_swapped_calibration(self) -> None:
        """Raise BrokenIndexError where new rows would not fit those of the last segment."""
        storage = self.storage
        with storage.catalog.snapshot() as snapshot:
            last = snapshot.segments()[-1:]
        if last:
            refuse_uncalibrated(storage, storage.manifest.settings.geometries)
        files = []
        with suppress(BrokenIndexError):  # what is lost or damaged is a matter of `check`
            files = [storage.segments.open(segment) for segment in last]
        storage.refuse_other_calibration(files)

    def embedder(self, geometries: Sequence[str] | None = None) -> Embedder:
        """What turns samples into rows, in some or all geometries of the index.

        Raises BrokenIndexError where a geometry needs a calibration and there is none.
        """
        names = self.storage.manifest.settings.geometries if geometries is None else geometries
        refuse_uncalibrated(self.storage, names)
        features = {name: Feature(self.geometry(name), self._sketch(name)) for name in names}
        return Embedder(self.reader, features)

    def geometry(self, name: str) -> Geometry:
        """A geometry as the index is calibrated, whether it holds rows of it or not.

        It is made once for each calibration: that of kfac costs an eigendecomposition.
        """
        if name not in GEOMETRIES:
            raise UsageError(f"--geometry cannot be {name!r}; use one of {', '.join(GEOMETRIES)}")
        frozen, settings = self.storage.frozen, self.storage.manifest.settings
        key = (name, frozen.calibration_digest())
        if key not in self._geometries:
            made = geometry_of(name, self.reader, frozen.calibration(), settings)
            self._geometries[key] = made
        return self._geometries[key]

    def _sketch(self, name: str) -> Sketch:
        frozen, dim = self.storage.frozen, self.storage.manifest.settings.dim
        key = (name, frozen.calibration_digest())
        if key not in self._sketches:
            device = self.reader.vocab_order.device
            made = sketch_of(
                name, frozen.hash_tables(), frozen.calibration(), dim=dim, device=device
            )
            self._sketches[key] = made
        return self._sketches[key]


def embedder_of(storage: Storage, reader: ModelReader) -> Embedder:
    """What turns samples into rows of all geometries of an index, with another reader of it."""
    names = storage.manifest.settings.geometries
    refuse_uncalibrated(storage, names)
    frozen, settings = storage.frozen, storage.manifest.settings
    features = features_of(reader, frozen.hash_tables(), settings, frozen.calibration(), names)
    return Embedder(reader, features)


def refuse_uncalibrated(storage: Storage, geometries: Sequence[str]) -> None:
    """Raise BrokenIndexError where rows need a calibration, and there is none."""
    calibrated = [name for name in geometries if name != RAW]
    if calibrated and storage.frozen.calibration() is None:
        raise BrokenIndexError(
            f"{storage.path / CALIBRATION} is missing, and rows of {', '.join(calibrated)} depend "
            "on it; restore it from a backup, or build the index anew"
        )


def load_backbone(storage: Storage, access: ModelAccess, on_progress: OnProgress) -> Backbone:
    """The model of an index. Raises as `ModelAccess.load` does."""
    on_progress(Progress("loading", 0, 1))
    backbone = access.load(storage.path, storage.manifest, device=default_device())
    on_progress(Progress("loading", 1, 1))
    return backbone


def load_on_other_gpus(storage: Storage, access: ModelAccess) -> list[Backbone]:
    """The model of an index on all GPUs but the first, where they have the memory for it."""
    backbones = []
    for gpu in gpus()[1:]:
        load = partial(access.load, storage.path, storage.manifest, device=gpu)
        backbone = none_if_out_of_memory(load)
        if backbone is None:
            LOG.warning("No memory for the model on %s; going on without it", gpu)
        else:
            backbones.append(backbone)
    return backbones


def reader_of(storage: Storage, backbone: Backbone) -> ModelReader:
    """What reads samples for an index."""
    tables, settings = storage.frozen.hash_tables(), storage.manifest.settings
    return make_reader(backbone, settings, tables, storage.media.open)


def make_reader(
    backbone: Backbone, settings: Settings, tables: HashTables, open_image: OpenPixels
) -> ModelReader:
    """What reads samples for an index with these resolved settings and tables."""
    encoder = make_encoder(backbone, settings, open_image)
    order = torch.from_numpy(np.array(tables[VOCAB_ORDER])).to(backbone.device)
    return ModelReader(
        backbone,
        backbone.head,
        encoder=encoder,
        vocab_order=order,
        hardest=settings.hardest,
        replaced_tokens=backbone.replaced_tokens,
    )


def make_encoder(model: InputSide, settings: Settings, open_image: OpenPixels) -> PromptEncoder:
    """What tokenises samples for a model and resolved settings."""
    vision = None
    if model.processor is not None:
        around = model.placeholders
        vision = VisionProcessor(model.processor, open_image, context_tokens=around)
    return PromptEncoder(
        model.tokenizer,
        template=settings.template,
        labels=settings.labels,
        max_length=settings.max_length or DEFAULT_CONTEXT,
        max_label_tokens=settings.max_label_tokens,
        vision=vision,
    )
