"""Processors of Hugging Face transformers, for images alone: no video, no audio, no torchvision."""

from __future__ import annotations

import inspect
from typing import Any

from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.models.auto.processing_auto import (
    PROCESSOR_MAPPING_NAMES,
    processor_class_from_name,
)
from transformers.processing_utils import ProcessorMixin

from forvalue_index.exceptions import MissingDependencyError, ModelError
from forvalue_index.model.huggingface.files import ModelFiles
from forvalue_index.model.huggingface.vision import image_token_of

# Families whose processors would pass, by what keeps their samples from being valued.
REFUSED = {
    "PaliGemmaProcessor": "PaliGemma wants prompt and answer given apart, each in a form of its own"
}


def load_processor(files: ModelFiles, tokenizer: Any, *, model_type: str, trusted: bool) -> Any:
    """The processor of a vision-language model, with the tokenizer given.

    Images are processed by Pillow wherever this runs, so that rows do not depend on what else is
    installed.

    Raises ModelError where there is none that can be taken apart.
    """
    written, _ = ProcessorMixin.get_processor_dict(**files.location)
    of_images, _ = BaseImageProcessor.get_image_processor_dict(**files.location)
    name = written.get("processor_class") or of_images.get("processor_class")
    kind = _kind(files.name, name or PROCESSOR_MAPPING_NAMES.get(model_type))
    images = AutoImageProcessor.from_pretrained(
        **files.location, backend="pil", trust_remote_code=trusted
    )
    parts = dict.fromkeys(kind.get_attributes()) | {"image_processor": images}
    taken = inspect.signature(kind.__init__).parameters.keys() - parts.keys()
    options = {name: value for name, value in written.items() if name in taken}
    options.setdefault("chat_template", tokenizer.chat_template)
    processor = _without_other_media(kind)(**parts | {"tokenizer": tokenizer}, **options)
    if not image_token_of(processor):
        raise ModelError(
            f"{files.name}: {kind.__name__} has no token that stands for an image, so samples with "
            "images cannot be told apart from their prompts; use another model"
        )
    return processor


def _kind(model: str, name: Any) -> Any:
    """The class of a processor."""
    name = name[0] if isinstance(name, tuple) else name
    if name in REFUSED:
        raise ModelError(f"{model}: {REFUSED[name]}; use a model of another family")
    kind = processor_class_from_name(name) if isinstance(name, str) else None
    if kind is None or getattr(kind, "is_dummy", False):
        raise ModelError(
            f"{model}: its processor, {name or 'which it does not name'}, is not one that "
            "transformers has without torchvision; use another model"
        )
    if not hasattr(kind, "get_text_with_replacements"):
        raise MissingDependencyError(
            "images need a newer transformers than is installed; pip install -U transformers"
        )
    return kind


def _without_other_media(kind: Any) -> Any:
    """The same class, which does not insist on what reads videos and sounds."""

    def check_argument_for_proper_class(self: Any, name: str, argument: Any) -> Any:
        if argument is None:
            return None
        return kind.check_argument_for_proper_class(self, name, argument)

    return type(
        kind.__name__,
        (kind,),
        {"check_argument_for_proper_class": check_argument_for_proper_class},
    )
