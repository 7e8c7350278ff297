"""The output layer of a transformers model, and what is done to its logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from forvalue_index.exceptions import ModelError
from forvalue_index.model.prediction_error import Head

# Relative to the largest logit; half precision rounds the two ways of computing it differently.
HEAD_TOLERANCE = {torch.float64: 1e-6, torch.float32: 1e-3}
HALF_PRECISION_TOLERANCE = 5e-2


def tolerance(dtype: torch.dtype) -> float:
    """How far numbers of a model may be from what they are to be, of the largest of them."""
    return HEAD_TOLERANCE.get(dtype, HALF_PRECISION_TOLERANCE)


def relative_gap(computed: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number expected; infinite for other shapes."""
    if computed.shape != expected.shape:
        return float("inf")
    return float((computed - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


def heads_of(model: Any, name: str) -> Sequence[Head]:
    """The output layer with what the configuration says is done to its logits, and without.

    Some models of images do not do what the configuration of their language model says.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise ModelError(f"{name}: {type(model).__name__} has no language-model head; use another")
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)  # Granite
    factor = getattr(config, "logit_scale", None) or getattr(config, "lm_head_multiplier", None)
    bias = None if getattr(layer, "bias", None) is None else layer.bias.detach()
    scale = float(factor or 1.0) / float(divisor or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    plain = Head(layer.weight.detach(), bias)
    return [replace(plain, scale=scale, softcap=softcap), plain]
