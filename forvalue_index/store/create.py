"""Making an index, or opening the one that is there: places, resolved settings, the model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from forvalue_index.devices import default_device
from forvalue_index.exceptions import UsageError
from forvalue_index.gradients.model_profile import profile_model
from forvalue_index.model.contracts import InputSide
from forvalue_index.model.huggingface.backbone import Backbone, resolve_dtype
from forvalue_index.model.huggingface.causality import refuse_looking_ahead
from forvalue_index.model.huggingface.image_check import open_content, refuse_misread_images
from forvalue_index.model.huggingface.templates import (
    adapter_template,
    read_template,
    refuse_broken,
)
from forvalue_index.progress import OnProgress, Progress
from forvalue_index.settings import DEFAULT_CONTEXT, NO_IMAGES, Settings
from forvalue_index.store.agreement import refuse_other_catalog, refuse_other_settings
from forvalue_index.store.catalog.addresses import refuse_strange_catalog
from forvalue_index.store.manifest import (
    is_index,
    refuse_occupied,
)
from forvalue_index.store.model import IndexModel, ModelAccess, make_encoder
from forvalue_index.store.store import Storage


def wanted_settings(model: str, chosen: Mapping[str, Any]) -> Settings:
    """Settings with local paths made absolute, so that an index can be used from anywhere.

    However the geometries are spaced, they are the same settings.
    """
    adapter, template = chosen.get("adapter"), chosen.get("chat_template")
    located = {
        "model": _located(model),
        "adapter": None if adapter is None else _located(adapter),
        "chat_template": None if template is None else read_template(template),
    }
    settings = Settings(**{**chosen, **located})
    return replace(settings, geometry=",".join(settings.geometries))


def open_or_create(
    path: Path, wanted: Settings, catalog: str, on_progress: OnProgress
) -> IndexModel:
    """An empty index for wanted settings, or the one that is there if it has these.

    Raises:
        UsageError: the catalog's address is not allowed, or is not that of the index.
        SettingsMismatchError: there is an index with other settings.
        BrokenIndexError: the directory holds something else.
    """
    refuse_strange_catalog(catalog)
    access = ModelAccess(trust_remote_code=wanted.trust_remote_code)
    if not is_index(path):
        storage, backbone = create_storage(path, wanted, catalog, on_progress)
        return IndexModel(storage, access, backbone=backbone, on_progress=on_progress)
    storage = Storage.open(path)
    try:
        refuse_other_settings(path, storage.manifest.settings, wanted)
        refuse_other_catalog(path, storage.manifest, catalog)
    except BaseException:
        storage.close()
        raise
    return IndexModel(storage, access, on_progress=on_progress)


def create_storage(
    path: Path, wanted: Settings, catalog: str, on_progress: OnProgress
) -> tuple[Storage, Backbone]:
    """An empty index for wanted settings, and its model.

    Raises BrokenIndexError where the directory holds something else.
    """
    refuse_occupied(path)
    on_progress(Progress("loading", 0, 1))
    wanted = with_adapter_template(wanted)
    images = wanted.media != NO_IMAGES
    backbone = Backbone.load(wanted, device=default_device(), images=images)
    settings = resolve(wanted, backbone)
    if backbone.processor is not None:
        # Neither cut nor labelled in part, whatever samples of the index will be.
        whole = replace(settings, max_length=backbone.context, max_label_tokens=None)
        refuse_misread_images(backbone, make_encoder(backbone, whole, open_content))
    refuse_looking_ahead(backbone)
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


def with_adapter_template(wanted: Settings) -> Settings:
    """Settings with the chat template of the adapter, if it has one and no other is wanted.

    Raises ModelError where there is no such adapter.
    """
    if wanted.adapter is None or wanted.chat_template is not None:
        return wanted
    return replace(wanted, chat_template=adapter_template(wanted.adapter))


def resolve(wanted: Settings, backbone: Backbone) -> Settings:
    """Settings without `auto`: template, dtype and maximum length as the model has them.

    Raises as `resolve_reading`.
    """
    return replace(
        resolve_reading(wanted, backbone),
        revision=backbone.revision,
        dtype=resolve_dtype(wanted.dtype, backbone.device),
    )


def resolve_reading(wanted: Settings, model: InputSide) -> Settings:
    """Settings whose template and maximum length are those that samples are read with.

    Raises UsageError where the model has no chat template, or reads fewer tokens, than wanted.
    """
    context = model.context or wanted.max_length or DEFAULT_CONTEXT
    has_template = bool(model.tokenizer.chat_template)
    template = wanted.template
    if wanted.chat_template is not None:
        if template == "plain":
            raise UsageError("--chat-template is not used with --template plain; leave one out")
        refuse_broken(model.tokenizer)
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
    return replace(wanted, template=template, max_length=wanted.max_length or context)


def _located(name: str) -> str:
    path = Path(name).expanduser()
    return str(path.resolve()) if path.exists() else name
