"""An adapter becomes part of the weights, and the model says what it said with it beside them."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from forvalue_index.exceptions import ModelError
from forvalue_index.model.huggingface.files import first_line
from forvalue_index.model.huggingface.heads import HEAD_TOLERANCE, tolerance, trunk_of
from forvalue_index.model.huggingface.probes import plain_tokens

TOKENS = 32


class _Said(NamedTuple):
    states: Tensor
    logits: Tensor


def merged_as_trained(adapted: Any, adapter: str) -> Any:
    """The model with an adapter that is attached to it merged into its weights.

    Where head and embedding share a weight, it is parted first, beneath the adapter. Merged into
    one weight, an adapter of one end would change the other as well, and one of both be added
    twice. The adapter itself stands on the model as it was trained, with the weight shared: so it
    follows both ends where it is to.

    Raises:
        ModelError: merged, the model says something else.
    """
    model = adapted.get_base_model()
    token_ids = torch.tensor([list(islice(_tokens(adapted), TOKENS))])
    trained = _said(adapted, model, token_ids)
    _part_ends(model)
    try:
        merged = adapted.merge_and_unload()
    except (ValueError, NotImplementedError) as error:
        reason = first_line(error).rstrip(".")
        raise ModelError(
            f"{adapter}: this adapter cannot be merged into the model: {reason}; train one that "
            "can, or merge it with the program that trained it, and name that model"
        ) from error
    told = _said(merged, merged, token_ids)
    gap = max(_gap(*pair) for pair in zip(told, trained, strict=True))
    if not gap <= tolerance(trained.states.dtype):
        raise ModelError(
            f"{adapter}: merged into the model, this adapter says something else than beside it "
            f"(by {gap:.1e} of the largest logit or state), so samples would be valued for a model "
            "that was never trained; merge it with the program that trained it, and name the "
            "merged model, without --adapter"
        )
    return merged


def refuse_unread_weights(adapted: Any, adapter: str, directory: Path) -> None:
    """Raise ModelError where a directory has weights that the adapter, as it was attached, has not.

    PEFT passes over them; the adapter is then another one than was trained.
    """
    from peft import load_peft_weights, set_peft_model_state_dict

    weights = load_peft_weights(str(directory), device="cpu")
    unread = set_peft_model_state_dict(adapted, weights).unexpected_keys
    if unread:
        raise ModelError(
            f"{adapter} has {len(unread)} weights that find no place in the model ({unread[0]}), "
            "so it would be valued as it was not trained; name the model that it was trained on, "
            "or merge it with the program that trained it, and name the merged model"
        )


def _tokens(adapted: Any) -> Iterator[int]:
    """Tokens that the adapter has weights of its own for, at two places of three; and any others.

    So most hidden states have seen one of them.
    """
    config = adapted.peft_config[adapted.active_adapter]
    indices: Any = getattr(config, "trainable_token_indices", None) or ()
    if not isinstance(indices, dict):
        indices = {"": indices}
    own = [*chain.from_iterable(indices.values()), *(getattr(config, "token_indices", None) or ())]
    plain = plain_tokens(adapted.get_base_model().get_input_embeddings().weight.shape[0])
    if not own:
        return plain
    mine = cycle(own)
    return (token for others in plain for token in (next(mine), others, next(mine)))


def _gap(told: Tensor, trained: Tensor) -> float:
    """The largest difference of [1, token, number] that counts, of the largest number trained.

    Where weights are rounded to half precision as they are merged, that moves single tokens far.
    What is merged wrongly moves most of them.
    """
    difference = (told - trained)[0].abs().float()
    strict = trained.dtype in HEAD_TOLERANCE
    worst = difference.amax(0) if strict else difference.median(0).values
    return float(worst.max() / trained.abs().max().clamp(min=1e-9))


@torch.inference_mode()
def _said(whole: Any, model: Any, token_ids: Tensor) -> _Said:
    options = {"attention_mask": torch.ones_like(token_ids), "use_cache": False}
    states = trunk_of(model)(input_ids=token_ids, **options)[0]
    return _Said(states, whole(input_ids=token_ids, **options).logits)


def _part_ends(model: Any) -> None:
    """Give the head a weight of its own where it is the embedding's, with adapters or without."""
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head is None or embedding is None:
        return
    shared = {id(module._parameters.get("weight")) for module in embedding.modules()}
    for module in head.modules():
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in shared:
            module.weight = torch.nn.Parameter(weight.detach().clone())
            model.config.get_text_config().tie_word_embeddings = False
