"""The model of an index: loaded, checked, and ready to read samples."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from forvalue_index.devices import default_device, gpus, none_if_out_of_memory
from forvalue_index.gradients.hash_tables import VOCAB_ORDER, HashTables
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.vision import VisionProcessor
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.progress import OnProgress, Progress
from forvalue_index.settings import DEFAULT_CONTEXT, Settings
from forvalue_index.sources.images import OpenPixels
from forvalue_index.store.manifest import Manifest, refuse_other_model, refuse_trust
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


def load_backbone(storage: Storage, access: ModelAccess, on_progress: OnProgress) -> Backbone:
    """The model of an index. Raises as `ModelAccess.load` does."""
    on_progress(Progress("loading", 0, 1))
    backbone = access.load(storage.path, storage.manifest, device=default_device())
    on_progress(Progress("loading", 1, 1))
    return backbone


def load_on_other_gpus(storage: Storage, access: ModelAccess) -> list[Backbone]:
    """The model of an index on all GPUs but the first, where they have the memory for it."""
    found = []
    for gpu in gpus()[1:]:
        load = partial(access.load, storage.path, storage.manifest, device=gpu)
        backbone = none_if_out_of_memory(load)
        if backbone is None:
            LOG.warning("No memory for the model on %s; going on without it", gpu)
        else:
            found.append(backbone)
    return found


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


def make_encoder(backbone: Backbone, settings: Settings, open_image: OpenPixels) -> PromptEncoder:
    """What tokenises samples for a model and resolved settings."""
    vision = None
    if backbone.processor is not None:
        around = backbone.placeholders
        vision = VisionProcessor(backbone.processor, open_image, context_tokens=around)
    return PromptEncoder(
        backbone.tokenizer,
        template=settings.template,
        labels=settings.labels,
        max_length=settings.max_length or DEFAULT_CONTEXT,
        max_label_tokens=settings.max_label_tokens,
        vision=vision,
    )
