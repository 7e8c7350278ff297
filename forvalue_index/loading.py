"""From what a user asks for to a model at work: places, resolved settings, the embedder."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from forvalue_index.backbone import Backbone, resolve_dtype
from forvalue_index.calibration import Calibration
from forvalue_index.contracts import OnProgress, OpenPixels
from forvalue_index.devices import default_device, gpus
from forvalue_index.exceptions import SettingsMismatchError, UsageError
from forvalue_index.hash_tables import VOCAB_ORDER, HashTables
from forvalue_index.image_check import open_content, refuse_misread_images
from forvalue_index.label_tokens import LabelReader
from forvalue_index.manifest import (
    CALIBRATION,
    read_manifest,
    refuse_occupied,
    refuse_other_model,
    refuse_trust,
)
from forvalue_index.memory import unless_memory_runs_out
from forvalue_index.model_profile import profile_model
from forvalue_index.prompts import PromptEncoder
from forvalue_index.records import Progress
from forvalue_index.settings import DEFAULT_CONTEXT, NO_IMAGES, Manifest, Settings
from forvalue_index.storage import Storage
from forvalue_index.vision import VisionProcessor

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


def wanted_settings(model: str, chosen: Mapping[str, Any]) -> Settings:
    """Settings with local paths made absolute, so that an index can be used from anywhere.

    However the geometries are spaced, they are the same settings.
    """
    adapter = chosen.get("adapter")
    located = None if adapter is None else _located(adapter)
    settings = Settings(**{**chosen, "model": _located(model), "adapter": located})
    return replace(settings, geometry=",".join(settings.geometries))


def create_storage(
    path: Path, wanted: Settings, catalog: str, on_progress: OnProgress
) -> tuple[Storage, Backbone]:
    """An empty index for wanted settings, and its model.

    Raises BrokenIndexError where the directory holds something else.
    """
    refuse_occupied(path)
    on_progress(Progress("loading", 0, 1))
    images = wanted.media != NO_IMAGES
    backbone = Backbone.load(wanted, device=default_device(), images=images)
    settings = resolve(wanted, backbone)
    if backbone.processor is not None:
        # Neither cut nor labelled in part, whatever samples of the index will be.
        whole = replace(settings, max_length=backbone.context, max_label_tokens=None)
        refuse_misread_images(backbone, make_encoder(backbone, whole, open_content))
    on_progress(Progress("loading", 1, 1))
    storage = Storage.create(
        path,
        settings,
        model=backbone.identity(),
        catalog=catalog,
        profile=profile_model(
            backbone,
            backbone.head,
            context=backbone.context,
            placeholders=backbone.placeholders,
        ),
    )
    return storage, backbone


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
        backbone = unless_memory_runs_out(load)
        if backbone is None:
            LOG.warning("No memory for the model on %s; going on without it", gpu)
        else:
            found.append(backbone)
    return found


def calibration_from(storage: Storage, other: Path) -> Calibration:
    """The calibration of another index, which has to be made alike.

    Raises:
        SettingsMismatchError: it is of another model, or has another sketch or geometry.
        UsageError: it is not calibrated yet.
    """
    mine, theirs = storage.manifest, read_manifest(other)
    refuse_other_model(other, theirs.model, mine.model)
    for name, value, wanted in (
        ("sketch (--dim, --seed)", theirs.sketch_digest, mine.sketch_digest),
        ("--geometry", theirs.settings.geometry, mine.settings.geometry),
        ("--damping", theirs.settings.damping, mine.settings.damping),
    ):
        if value != wanted:
            raise SettingsMismatchError(
                f"{other} has another {name}: {value}, and {storage.path} has {wanted}; make both "
                "with the same options, or calibrate on data"
            )
    found = Calibration.load(other / CALIBRATION, theirs.model.weights_digest)
    if found is None:
        raise UsageError(f"{other} is not calibrated yet; add samples to it first")
    return found


def resolve(wanted: Settings, backbone: Backbone) -> Settings:
    """Settings without `auto`: template, dtype and maximum length as the model has them.

    Raises UsageError where the model has no chat template, or reads fewer tokens, than wanted.
    """
    context = backbone.context or wanted.max_length or DEFAULT_CONTEXT
    has_template = bool(backbone.tokenizer.chat_template)
    template = wanted.template
    if template == "auto":
        template = "chat" if has_template else "plain"
    if template == "chat" and not has_template:
        raise UsageError(
            f"--template chat: the tokenizer of {wanted.model} has no chat template; use auto or "
            "plain, or a model with one"
        )
    if wanted.max_length is not None and wanted.max_length > context:
        raise UsageError(
            f"--max-length {wanted.max_length:,}: {wanted.model} reads {context:,} tokens "
            "at most; use that or less"
        )
    return replace(
        wanted,
        revision=backbone.revision,
        template=template,
        max_length=wanted.max_length or context,
        dtype=resolve_dtype(wanted.dtype, backbone.device),
    )


def make_reader(
    backbone: Backbone, settings: Settings, tables: HashTables, open_image: OpenPixels
) -> LabelReader:
    """What reads samples for an index with these resolved settings and tables."""
    encoder = make_encoder(backbone, settings, open_image)
    order = torch.from_numpy(np.array(tables[VOCAB_ORDER])).to(backbone.device)
    return LabelReader(
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


def _located(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
