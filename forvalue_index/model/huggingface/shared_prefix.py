"""Reading once what all samples of a batch begin with: in a causal model it is alike for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from forvalue_index.model.huggingface.heads import relative_gap, tolerance

# Rotary embeddings that turn a position alike however long the text is; others look at its length.
STEADY_ROPE = {"default", "linear", "llama3", "yarn"}


def states_after(
    trunk: Any, head_weight: Tensor, shared: int, token_ids: Tensor, attention_mask: Tensor
) -> Tensor:
    """Last hidden states [batch, token, hidden] behind the first `shared` tokens.

    These are the same in all samples, and read once. The states have the precision of the head.
    """
    ids, mask = token_ids.to(head_weight.device), attention_mask.to(head_weight.device)
    cache = trunk(input_ids=ids[:1, :shared], use_cache=True).past_key_values
    cache.batch_repeat_interleave(len(ids))
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    output = trunk(
        input_ids=ids[:, shared:],
        attention_mask=mask,
        position_ids=positions[:, shared:],
        past_key_values=cache,
        use_cache=True,
    )
    states: Tensor = output[0].to(head_weight.dtype)
    return states


@torch.inference_mode()
def can_share_prefix(trunk: Any, config: Any, head_weight: Tensor) -> bool:
    """Whether a model keeps keys and values of every token, and reads on from them alike."""
    if not set(_rope_types(config.to_dict())) <= STEADY_ROPE:
        return False
    try:
        return _reads_on_alike(trunk, head_weight)
    except Exception:  # a cache of another kind may raise anything, and is not needed
        return False


def _reads_on_alike(trunk: Any, head_weight: Tensor) -> bool:
    token_ids = torch.arange(1, 13).view(2, 6) % head_weight.shape[0]
    token_ids[:, :3] = token_ids[0, :3]
    mask = torch.ones_like(token_ids)
    output = trunk(input_ids=token_ids.to(head_weight.device), use_cache=True)
    layers = getattr(getattr(output, "past_key_values", None), "layers", ())
    if not layers or any(type(layer) is not DynamicLayer for layer in layers):
        return False
    computed = states_after(trunk, head_weight, 3, token_ids, mask)
    expected = output[0][:, 3:].to(computed.dtype)
    return relative_gap(computed, expected) <= tolerance(computed.dtype)


def _rope_types(config: dict[Any, Any]) -> Iterator[str]:
    """The kinds of rotary embeddings that a configuration names, wherever it does."""
    for name, value in config.items():
        if isinstance(value, dict):
            yield from _rope_types(value)
        elif name in ("rope_type", "type"):
            yield str(value)
