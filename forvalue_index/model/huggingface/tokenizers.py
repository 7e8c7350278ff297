"""What a model reads texts and images with, without its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from forvalue_index.model.huggingface.files import (
    ModelFiles,
    image_model_type,
    locate_model,
    model_errors,
    quiet,
    refuse_own_code,
    refuse_text_alone,
    without_pickle,
)
from forvalue_index.model.huggingface.processors import load_processor
from forvalue_index.model.huggingface.vision import placeholders
from forvalue_index.settings import Settings


@dataclass(frozen=True, eq=False)
class ModelTokenizer:
    """The tokenizer of a model, and its processor of images where it reads some.

    `image_type` is the kind of a model that reads images.
    """

    files: ModelFiles
    tokenizer: Any
    processor: Any = None
    image_type: str | None = None

    @classmethod
    def load(cls, settings: Settings, *, images: bool = True) -> ModelTokenizer:
        """What the model that settings name is read with; with `images`, those it reads, too.

        Raises ModelError where there is no such model, or it runs code of its own and is not
        trusted to.
        """
        name, trusted = settings.model, settings.trust_remote_code
        files = locate_model(settings)
        with quiet(), model_errors(name), without_pickle(name):
            if not trusted:
                refuse_own_code(files)
            # Said in so many words: where nothing is said, transformers asks on the terminal.
            tokenizer = AutoTokenizer.from_pretrained(**files.location, trust_remote_code=trusted)
            if not images:
                refuse_text_alone(files)
            image_type = image_model_type(files) if images else None
            processor = None
            if image_type is not None:
                processor = load_processor(files, tokenizer, model_type=image_type, trusted=trusted)
                # One for texts and one for texts with images, which other threads read.
                tokenizer = copy.deepcopy(processor.tokenizer)
                tokenizer.chat_template = processor.chat_template or tokenizer.chat_template
        if settings.chat_template is not None:
            tokenizer.chat_template = settings.chat_template
        return cls(files, tokenizer, processor, image_type)

    def config(self, settings: Settings) -> Any:
        """The configuration of the model. Raises ModelError where it cannot be read."""
        trusted = settings.trust_remote_code
        with quiet(), model_errors(settings.model), without_pickle(settings.model):
            return AutoConfig.from_pretrained(**self.files.location, trust_remote_code=trusted)


def context_of(config: Any) -> int | None:
    """The most tokens that a model reads, or None where its configuration does not say."""
    for field in ("max_position_embeddings", "n_positions", "max_seq_len"):
        size = getattr(config.get_text_config(), field, None)
        if size and size > 0:  # XLNet, which reads any number, says -1
            return int(size)
    return None


def image_tokens(processor: Any, config: Any) -> set[int]:
    """The ids of tokens that stand for something else, such as a part of an image."""
    return set() if processor is None else placeholders(config.to_dict())
