"""Processors of vision-language models: what they make of images, and of a text with images.

How many tokens stand for an image depends on its size alone, so samples are tokenised without
their pixels, which are read when their batch is.
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.contracts import Expanded
from forvalue_index.model.encoded import Inputs
from forvalue_index.sources.images import OpenPixels, Pixels, blank, image_of
from forvalue_index.sources.sample import Image

Size = tuple[int, int]

# Values of a patch of 14 x 14 pixels, in which most encoders of images cut them.
PATCH_VALUES = 3 * 14 * 14
REPLACED = {"add_special_tokens": False, "return_text_replacement_offsets": True}
# Of the images that a processor is known by.
KNOWN_SIZES = ((96, 64), (56, 80))
# Names of fields of a configuration: tokens in whose place something else is read, and, with
# them, those that stand around it.
REPLACED_TOKEN = re.compile(r"^(image|video|audio)_token_(id|index)$")
PLACEHOLDER = re.compile(r"(image|video|audio|vision|boi|eoi).*_token_(id|index)$")
# Inputs [1, token, ...]; all others run over images or parts of them.
PER_TOKEN = {"token_type_ids", "mm_token_type_ids", "cross_attention_mask"}
# What a processor gives besides, and its caller knows or nobody reads.
NOT_READ = {"input_ids", "attention_mask", "labels", "text_replacement_offsets", "offset_mapping"}


class _Replaced(NamedTuple):
    """What stands for images of some sizes in a text, and how many patches they have."""

    texts: tuple[str, ...]
    n_patches: int


class _OneAtATime:
    """A tokenizer for one thread at a time, while many process images: it keeps how it pads."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._lock = Lock()

    def __call__(self, *texts: Any, **options: Any) -> Any:
        with self._lock:
            return self._tokenizer(*texts, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class VisionProcessor:
    """The model.contracts.Vision of a Hugging Face processor; `open_image` gives pixels."""

    def __init__(
        self, processor: Any, open_image: OpenPixels, *, context_tokens: Collection[int] = ()
    ) -> None:
        self.context_tokens: Sequence[int] = sorted(context_tokens)
        self.image_token = image_token_of(processor)
        self._processor = copy.copy(processor)
        self._processor.tokenizer = _OneAtATime(processor.tokenizer)
        self.open = open_image
        # Many data sets have images of few sizes; a text may have some 100 KB.
        self._replaced = lru_cache(maxsize=2**11)(self._replaced_by)

    def expand(self, text: str, sizes: Sequence[Size]) -> Expanded:
        """Put the tokens for images of such widths and heights into a text."""
        for name in ("video_token", "audio_token"):
            token = getattr(self._processor, name, None)
            if isinstance(token, str) and token and token in text:
                raise BadSampleError(
                    f"its text holds {token}, which stands for something else in this model; take "
                    "it out"
                )
        count = text.count(self.image_token)
        if count != len(sizes):
            raise BadSampleError(
                f"it has {len(sizes)} image(s), and the text for the model has {count} times "
                f"{self.image_token}, which stands for one; where the text itself holds that, take "
                "it out, and else use a chat template that renders images"
            )
        if not sizes:
            return Expanded(text, (), 0)
        replaced = self._replaced(tuple(sizes))
        if not replaced.texts:  # one token is all that stands for an image (mllama)
            return Expanded(text, self._where_it_stands(text), replaced.n_patches)
        (expanded,), (offsets,) = self._processor.get_text_with_replacements(
            [text], images_replacements=list(replaced.texts)
        )
        spans = tuple((o["span"], o["new_span"]) for o in offsets)
        return Expanded(expanded, spans, replaced.n_patches)

    def inputs(
        self, text: str, images: Sequence[Image], *, add_special_tokens: bool
    ) -> tuple[list[int], Inputs]:
        """The token ids of a text that is not expanded, and what else the model reads."""
        pixels = [self.open(image) for image in images]
        processed = _processed(self._processor, text, pixels, add_special_tokens=add_special_tokens)
        inputs = {
            name: np.asarray(value) for name, value in processed.items() if name not in NOT_READ
        }
        return [int(i) for i in processed["input_ids"][0]], inputs

    def _where_it_stands(self, text: str) -> tuple[tuple[Size, Size], ...]:
        parts, spans, start = text.split(self.image_token), [], 0
        for part in parts[:-1]:
            span = (start + len(part), start + len(part) + len(self.image_token))
            spans.append((span, span))
            start = span[1]
        return tuple(spans)

    def _replaced_by(self, sizes: tuple[Size, ...]) -> _Replaced:
        images = [blank(*size) for size in sizes]
        text = " ".join([self.image_token] * len(sizes))
        processed = _processed(self._processor, text, images, **REPLACED)
        arrays = [np.asarray(value) for name, value in processed.items() if name not in NOT_READ]
        n_values = sum(array.size for array in arrays if array.dtype.kind == "f")
        return _Replaced(_replacements(processed), n_values // PATCH_VALUES)


def image_token_of(processor: Any) -> str:
    """What stands for an image in a text; empty where nothing does."""
    token = getattr(processor, "image_token", None)
    return str(getattr(token, "content", token) or "")


def processor_digest(processor: Any) -> str:
    """Digest of what a processor makes of known images, which tells what it does to others.

    Of their values the means and standard deviations, to three decimals: another release of a
    library may round them otherwise.
    """
    token = image_token_of(processor)
    images = [known_image(size) for size in KNOWN_SIZES]
    processed = _processed(processor, " ".join([token] * len(images)), images, **REPLACED)
    facts: dict[str, Any] = {"texts": _replacements(processed)}
    for name, value in processed.items():
        if name not in NOT_READ:
            array = np.asarray(value)
            moments = array.mean(dtype=np.float64), array.std(dtype=np.float64)
            facts[name] = [array.shape, *(f"{moment:.3f}" for moment in moments)]
    return hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()


def _processed(
    processor: Any, text: str, images: Sequence[Pixels], **options: Any
) -> Mapping[str, Any]:
    try:
        processed: Mapping[str, Any] = processor(
            text=[text], images=[list(images)], return_tensors="np", **options
        )
    except Exception as error:  # Each family refuses images in its own way.
        sizes = ", ".join(f"{image.width} x {image.height}" for image in images)
        raise BadSampleError(
            f"the model's processor refuses its image(s) of {sizes} pixels: "
            f"{' '.join(str(error).split())}"
        ) from error
    return processed


def _replacements(processed: Mapping[str, Any]) -> tuple[str, ...]:
    """What stands for each image in a text that was processed."""
    offsets = (processed.get("text_replacement_offsets") or [()])[0]
    return tuple(one["replacement"] for one in offsets)


def placeholders(config: Mapping[Any, Any], named: re.Pattern[str] = PLACEHOLDER) -> set[int]:
    """The ids of tokens that stand for images and the like, as a model's configuration names them.

    Those that end a text or fill it up are plain tokens.
    """
    ids = set()
    for name, value in config.items():
        if isinstance(value, Mapping):
            ids |= placeholders(value, named)
        elif named.search(str(name)) and isinstance(value, int):
            ids.add(value)
    return ids


def known_image(size: Size) -> Pixels:
    """Colours that run over an image in other ways, with an edge for what resizing does."""
    x, y = np.meshgrid(np.linspace(0, 255, size[0]), np.linspace(0, 255, size[1]))
    pixels = np.stack([x, y, np.where(x > y, x, 0)], axis=-1).astype(np.uint8)
    return image_of(pixels)


def stacked(inputs: Sequence[Inputs], length: int) -> dict[str, Tensor]:
    """Inputs of samples as those of a batch whose samples have `length` tokens at most.

    Arrays run over tokens, images or patches: they are padded with zeros to the largest and follow
    each other, as models know by the tokens whose they are.
    """
    return {name: torch.cat(_alike(name, inputs, length)) for name in inputs[0]}


def _alike(name: str, inputs: Sequence[Inputs], length: int) -> list[Tensor]:
    tensors = [torch.from_numpy(np.ascontiguousarray(one[name])) for one in inputs]
    if name in PER_TOKEN:
        tensors = [tensor[:, :length] for tensor in tensors]
        largest = [length, *_largest([tensor[:, :1] for tensor in tensors])[1:]]
    else:
        largest = _largest(tensors)
    return [_padded(tensor, largest) for tensor in tensors]


def _largest(tensors: Sequence[Tensor]) -> list[int]:
    return [max(sizes) for sizes in zip(*(tensor.shape[1:] for tensor in tensors), strict=True)]


def _padded(tensor: Tensor, largest: Sequence[int]) -> Tensor:
    if list(tensor.shape[1:]) == list(largest):
        return tensor
    padded = tensor.new_zeros(len(tensor), *largest)
    padded[tuple(slice(size) for size in tensor.shape)] = tensor
    return padded
