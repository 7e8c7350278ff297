"""Whether a vision-language model can be taken apart, found out on a few small samples.

Families of models read images in ways of their own. What this package takes for granted is tried
before an index is made, so that a model of another kind is refused and never valued wrongly.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forvalue_index.exceptions import ModelError
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.causality import change_by_later_tokens
from forvalue_index.model.huggingface.heads import relative_gap, tolerance
from forvalue_index.model.huggingface.vision import KNOWN_SIZES, known_image
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.images import ImageFiles, Pixels, decode
from forvalue_index.sources.sample import Image, Message, Sample


def open_content(image: Image) -> Pixels:
    """The pixels of an image that holds its file."""
    return decode(io.BytesIO(image.content or b""), str(image))


@torch.inference_mode()
def refuse_misread_images(backbone: Backbone, encoder: PromptEncoder) -> None:
    """Raise ModelError unless samples with images can be valued with this model.

    Their hidden states must not depend on the batch, nor on later tokens, and the head must give
    the model's own logits of them.
    """
    try:
        samples = [encoder.encode(sample) for sample in _samples()]
        alone = [backbone.differentiable_states(collate([one], [0])) for one in samples]
        together = backbone.differentiable_states(collate(samples[:2], [0, 1]))
        logits = _logits(backbone, samples[1])
        first, *_, last = np.flatnonzero(samples[1].label_mask)
        # In the middle of the response: its last token is read for no prediction.
        ahead = change_by_later_tokens(backbone, samples[1], int(first + last) // 2)
    except Exception as error:  # Each family fails in its own way.
        raise _refusal(backbone, f"it cannot read them: {_told(error)}") from error
    mixed = relative_gap(together, torch.cat(alone[:2]))
    misread = relative_gap(backbone.head.logits(alone[1]), logits)
    for gap, problem in (
        (mixed, "what it makes of one sample depends on its batch"),
        (ahead, "it looks ahead at later tokens of the response"),
        (misread, "its head is of an unknown kind"),
    ):
        if not gap <= tolerance(backbone.head.weight.dtype):
            raise _refusal(backbone, f"{problem} (by {gap:.1e} of the numbers' size)")


def _samples() -> list[Sample]:
    files = ImageFiles(Path())
    first, second = (files.read(known_image(size), "an image") for size in KNOWN_SIZES)
    return [
        _asked((first,), "A square."),
        _asked((second,), "Another one, in colour."),
        # Of which is only asked that they can be read.
        _asked((second, first), "Two of them."),
        _asked((), "None at all."),
    ]


def _asked(images: tuple[Image, ...], response: str) -> Sample:
    asked = Message("user", "What is this?", images=images)
    return Sample((asked, Message("assistant", response)))


def _logits(backbone: Backbone, sample: Encoded) -> Tensor:
    """What the whole model says where labels are predicted."""
    batch = collate([sample], [0])
    output: Any = backbone.model(
        input_ids=torch.from_numpy(batch.token_ids).to(backbone.device),
        attention_mask=torch.from_numpy(batch.attention_mask).to(backbone.device),
        use_cache=False,
        **backbone.inputs(batch),
    )
    logits: Tensor = output.logits[0, torch.from_numpy(batch.label_columns)]
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _told(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _refusal(backbone: Backbone, problem: str) -> ModelError:
    kind = type(backbone.model).__name__
    return ModelError(
        f"{backbone.name}: samples with images cannot be valued with {kind}: {problem}. Use a "
        "model of another family, or another --template (docs/models.md, Vision-language models)"
    )
