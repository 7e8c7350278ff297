"""Where a transformers model is taken apart: trunk, output layer, what is done to its logits."""

from __future__ import annotations

import math
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
# What configurations call it: logits are multiplied (Cohere, MPT; Falcon-H1), divided (Granite;
# Inkling) or capped (Gemma; RecurrentGemma; xLSTM).
SCALES = ("logit_scale", "lm_head_multiplier")
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
# MPT's scale in words.
INVERSE_ROOT = "inv_sqrt_d_model"


def tolerance(dtype: torch.dtype) -> float:
    """How far numbers of a model may be from what they are to be, of the largest of them."""
    return HEAD_TOLERANCE.get(dtype, HALF_PRECISION_TOLERANCE)


def relative_gap(computed: Tensor, expected: Tensor) -> float:
    """The largest difference, of the largest number expected; infinite for other shapes."""
    if computed.shape != expected.shape:
        return float("inf")
    return float((computed - expected).abs().max() / expected.abs().max().clamp(min=1e-9))


def trunk_of(model: Any) -> Any:
    """The model up to, and without, its head."""
    trunk = model.base_model
    # Llama 4's text model looks for its trunk under a name that only the whole of it has.
    return getattr(model, "model", trunk) if trunk is model else trunk


def heads_of(model: Any, name: str) -> Sequence[Head]:
    """The output layer with what the configuration says is done to its logits, and with less.

    Some models do not do what their configuration says: of images, with what their language model
    is to do; MPT, with its scale. HyperCLOVA X multiplies where Granite divides.
    """
    layer = model.get_output_embeddings()
    if layer is None or getattr(layer, "weight", None) is None:
        raise ModelError(f"{name}: {type(model).__name__} has no language-model head; use another")
    config = model.config.get_text_config()
    bias = None if getattr(layer, "bias", None) is None else layer.bias.detach()
    plain = Head(layer.weight.detach(), bias)
    factor, divisor = _number(config, SCALES) or 1.0, _number(config, DIVISORS) or 1.0
    softcap = _number(config, SOFTCAPS)
    found = dict.fromkeys(
        (scale, cap) for cap in (softcap, None) for scale in (factor / divisor, factor * divisor, 1)
    )
    return [replace(plain, scale=float(scale), softcap=cap) for scale, cap in found]


def _number(config: Any, fields: Sequence[str]) -> float | None:
    """The first of these fields that a configuration has a number in."""
    values = (getattr(config, field, None) for field in fields)
    for value in values:
        if value == INVERSE_ROOT:
            return 1 / math.sqrt(config.hidden_size)
        try:
            if value:
                return float(value)
        except (TypeError, ValueError):
            continue  # words that no model of transformers heeds; the check of the head decides
    return None
