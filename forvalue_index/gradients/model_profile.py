"""What a model does on average, seen on random tokens, so that no data is needed for it.

Two facts make the sketch of an index more accurate (see `sketch`): which tokens the model gives
most probability, and the direction along which its hidden states have most of their energy. Both
hold across inputs: on SmolLM2 the direction found on random tokens has 0.57 of the energy on chats.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import torch

from forvalue_index.gradients.hash_tables import ModelProfile
from forvalue_index.model.batching import collate
from forvalue_index.model.contracts import Trunk
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.prediction_error import Head

SAMPLES, TOKENS = 16, 64


@torch.inference_mode()
def profile_model(
    trunk: Trunk, head: Head, *, context: int | None, placeholders: Collection[int] = ()
) -> ModelProfile:
    """Run the model on 16 seeded samples of 64 random tokens, or of its context if less.

    None of them is one of `placeholders`, which stand for something that is not there.
    States that are infinite or undefined are left out: some tokens may make a model overflow.
    """
    vocab_size = head.weight.shape[0]
    shape = (SAMPLES, min(TOKENS, context or TOKENS))
    token_ids = np.random.default_rng(0).integers(vocab_size, size=shape)
    plain = next(i for i in range(vocab_size) if i not in placeholders)
    token_ids[np.isin(token_ids, list(placeholders))] = plain
    is_label = np.arange(shape[1]) > 0
    batch = collate([Encoded(ids, is_label) for ids in token_ids], range(SAMPLES))
    hidden = trunk.hidden_states(batch)
    hidden = hidden[torch.isfinite(hidden).all(dim=1)]
    predicted = torch.zeros(vocab_size, dtype=torch.float64)
    for start in range(0, len(hidden), TOKENS):
        probabilities = head.logits(hidden[start : start + TOKENS]).softmax(-1)
        predicted += probabilities.nan_to_num(0.0).sum(0).cpu()
    states = hidden.double().cpu()
    direction = torch.nn.functional.normalize(states.mean(0), dim=0)
    share = (states @ direction).square().sum() / states.square().sum()
    return ModelProfile(
        token_ranking=predicted.argsort(descending=True, stable=True).numpy(),
        direction=direction.numpy(),
        share=float(share),
    )
