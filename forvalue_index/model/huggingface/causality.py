"""Whether a model reads from left to right, as For-Value takes for granted.

Its gradients are those of tokens predicted from what stands before them. Models that fill in gaps
(masked and diffusion language models, embedding models) load and answer like the others, and each
of their hidden states has seen the very token that it would be scored by.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from forvalue_index.exceptions import ModelError
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.heads import tolerance
from forvalue_index.model.huggingface.probes import plain_tokens, probe_errors

TOKENS = 32
# Where later tokens begin. Primes are no bounds of blocks, within which some models look ahead.
STARTS = (17, 11, 13, 23)


@torch.inference_mode()
def refuse_looking_ahead(backbone: Backbone) -> None:
    """Raise ModelError where hidden states depend on later tokens, seen on a few dozen tokens.

    A mixture of experts in half precision may send an earlier token elsewhere, by rounding alone.
    So a change counts only where later tokens make it from wherever they begin; a model without
    one is read twice.
    """
    _refuse_prefix_model(backbone)
    length = min(TOKENS, backbone.context or TOKENS)
    plain = plain_tokens(backbone.head.weight.shape[0], backbone.placeholders)
    sample = Encoded(np.array(list(islice(plain, length))), np.arange(length) > 0)
    changes = []
    for start in [start for start in STARTS if start < length - 1] or [max(1, length // 2)]:
        with probe_errors(backbone.name, backbone.model):
            change = change_by_later_tokens(backbone, sample, start)
        if change <= tolerance(backbone.head.weight.dtype):
            return
        changes.append(change)
    if np.isnan(changes).all():
        raise ModelError(
            f"{backbone.name}: its hidden states of {length} tokens are not finite in "
            f"{backbone.head.weight.dtype}, so its samples cannot be valued; use another --dtype"
        )
    raise ModelError(
        f"{backbone.name}: {type(backbone.model).__name__} looks ahead: the hidden state before a "
        f"token moves by {np.nanmin(changes):.1e} of its length where that token and later ones "
        "are replaced, so a sample cannot be valued by its tokens' prediction; use a causal model, "
        "or a configuration that makes it one (is_decoder, use_bidirectional_attention)"
    )


@torch.inference_mode()
def change_by_later_tokens(backbone: Backbone, sample: Encoded, start: int) -> float:
    """How far the state before `start` moves, of its length, when the tokens from there on do.

    `start` is a label of the sample, and not its last. NaN where a state is not finite.
    """
    vocab_size = backbone.head.weight.shape[0]
    plain, other = islice(plain_tokens(vocab_size, backbone.placeholders), 2)
    token_ids = sample.token_ids.copy()
    token_ids[start:] = np.where(token_ids[start:] == plain, other, plain)
    at = int(sample.label_mask[:start].sum())
    before, after = (
        backbone.differentiable_states(collate([one], [0]))[at].double()
        for one in (sample, replace(sample, token_ids=token_ids))
    )
    if not (torch.isfinite(before).all() and torch.isfinite(after).all()):
        return float("nan")
    return float((after - before).norm() / before.norm().clamp(min=1e-9))


def _refuse_prefix_model(backbone: Backbone) -> None:
    """A prefix language model is causal where it is not told what the prompt is."""
    config = backbone.model.config.get_text_config()
    attention = getattr(config, "attn_config", None)  # where MPT says it
    if any(getattr(part, "prefix_lm", False) for part in (config, attention)):
        raise ModelError(
            f"{backbone.name}: {type(backbone.model).__name__} was trained to look ahead within "
            "prompts (prefix_lm in its config.json), which is not done here; use a causal model, "
            "or set prefix_lm to false if it was trained as one"
        )
