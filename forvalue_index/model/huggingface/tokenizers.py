"""What a model reads texts and images with, without its weights."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from forvalue_index.exceptions import ModelError
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
from forvalue_index.model.huggingface.vision import REPLACED_TOKEN, placeholders
from forvalue_index.settings import Settings


@dataclass(frozen=True, eq=False)
class ModelTokenizer:
    """The tokenizer of a model, and its processor of images where it reads some.

    `image_type` is the kind of a model that reads images; code that comes with it is run where it
    is `trusted`.
    """

    files: ModelFiles
    tokenizer: Any
    processor: Any = None
    image_type: str | None = None
    trusted: bool = False

    @classmethod
    def load(cls, settings: Settings, *, images: bool = True) -> ModelTokenizer:
        """What the model that settings name is read with; with `images`, those it reads, too.

        Raises ModelError where there is no such model, it runs code of its own and is not trusted
        to, or its tokenizer cannot tell responses from prompts.
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
        refuse_slow(tokenizer, name)
        if settings.chat_template is not None:
            tokenizer.chat_template = settings.chat_template
        return cls(files, tokenizer, processor, image_type, trusted)

    @cached_property
    def config(self) -> Any:
        """The configuration of the model. Raises ModelError where it cannot be read."""
        name = self.files.name
        with quiet(), model_errors(name), without_pickle(name):
            return AutoConfig.from_pretrained(**self.files.location, trust_remote_code=self.trusted)

    @property
    def placeholders(self) -> set[int]:
        """The ids of tokens that stand for something else, such as a part of an image."""
        return image_tokens(self.processor, self.config)

    @property
    def replaced_tokens(self) -> set[int]:
        """Those of them in whose place something else is read."""
        return replaced_tokens(self.processor, self.config)

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads, or None where it does not say."""
        return context_of(self.config)

    @property
    def vocab_size(self) -> int:
        """How many tokens the model knows, by its configuration."""
        return int(self.config.get_text_config().vocab_size)


def refuse_slow(tokenizer: Any, name: str) -> None:
    """Raise ModelError for a tokenizer that does not know the characters of its tokens."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{name}: its tokenizer does not say which characters a token stands for, so "
            "responses cannot be told from prompts; use a model with a tokenizer.json"
        )


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


def replaced_tokens(processor: Any, config: Any) -> set[int]:
    """Those of them in whose place something else is read."""
    return set() if processor is None else placeholders(config.to_dict(), REPLACED_TOKEN)
