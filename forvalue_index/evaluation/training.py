"""Fine-tuning, for the checks that ask what training really does; valuing itself never trains.

The loss of a step is the cross-entropy summed over the label tokens of its samples, divided by
their number, so neither padding nor the split into batches enters. Dropout stays off: a run is a
function of the weights it starts from, the samples, the recipe and the seed alone.

The head's part of the gradient is what For-Value is made of: with e = onehot(y) - softmax(logits),
the loss of a token has the gradient -e h^T with respect to the head's weight W, and -W^T e with
respect to h. So the head is differentiated here by hand, in chunks, and its logits over all tokens
never exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.exceptions import ModelError, UsageError
from forvalue_index.model.batching import batches
from forvalue_index.model.encoded import Batch, Encoded
from forvalue_index.model.huggingface.adapters import attached_lora
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.prediction_error import PredictionError, prediction_error
from forvalue_index.progress import OnProgress, Progress, ignore_progress

TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
CHUNK_TOKENS = {"cpu": 128, "cuda": 2048}


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned: AdamW, a linear warm-up, then a constant learning rate.

    `batch_samples` samples make one step, in a new seeded order each epoch. `lora_rank` None
    trains all weights, a number trains a LoRA of that rank on every linear layer but the head.
    `warmup_steps` is how many steps the learning rate takes to rise. With `bfloat16` the matrix
    products are computed in it, and weights and losses stay as precise as they are.
    """

    epochs: int = 4
    learning_rate: float = 1e-3
    batch_samples: int = 16
    lora_rank: int | None = None
    weight_decay: float = 0.0
    warmup_steps: int = 0
    bfloat16: bool = False

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_samples"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}; train with at least 1")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise UsageError(f"lora_rank is {self.lora_rank}; use at least 1, or train all weights")
        if not 0 < self.learning_rate < float("inf"):
            raise UsageError(f"learning_rate is {self.learning_rate}; use a number above 0")
        for name in ("weight_decay", "warmup_steps"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UsageError(f"{name} is {getattr(self, name)}; use 0 or more")


@contextmanager
def trainable(backbone: Backbone, *, lora_rank: int | None = None) -> Iterator[list[Tensor]]:
    """The parameters to train: all weights of a model, or those of a new LoRA of it.

    Afterwards the model is what it was before, to the bit, whatever happened.
    """
    if lora_rank is not None:
        with attached_lora(backbone.model, rank=lora_rank) as parameters:
            yield parameters
        return
    before = {name: t.detach().clone() for name, t in backbone.model.state_dict().items()}
    weights = [p for p in backbone.model.parameters() if p.is_floating_point()]
    try:
        yield [weight.requires_grad_(True) for weight in weights]
    finally:
        for weight in weights:
            weight.requires_grad_(False).grad = None
        with torch.no_grad():
            for name, tensor in backbone.model.state_dict().items():
                tensor.copy_(before[name])


def fine_tune(
    backbone: Backbone,
    parameters: Sequence[Tensor],
    samples: Sequence[Encoded],
    recipe: Recipe,
    *,
    seed: int,
    on_progress: OnProgress = ignore_progress,
) -> None:
    """Train parameters that `trainable` gave on samples. `seed` is that of their order.

    Raises:
        UsageError: there is no sample.
        ModelError: the loss is no longer a number.
    """
    if not samples:
        raise UsageError("There is no sample to train on; give at least 1")
    optimizer = torch.optim.AdamW(
        parameters, lr=recipe.learning_rate, weight_decay=recipe.weight_decay, fused=True
    )
    n_steps = recipe.epochs * -(-len(samples) // recipe.batch_samples)
    for step, members in enumerate(_steps(len(samples), recipe, seed), 1):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate * min(1.0, step / max(1, recipe.warmup_steps))
        with _matrix_products(backbone.device, in_bfloat16=recipe.bfloat16):
            loss = add_gradients(backbone, [samples[i] for i in members])
        if not np.isfinite(loss):
            raise ModelError(
                f"{backbone.name}: the training loss is {loss} at step {step} of {n_steps}; use "
                f"float32, or a learning rate below {recipe.learning_rate:g}"
            )
        optimizer.step()
        optimizer.zero_grad()
        on_progress(Progress("training", step, n_steps))


def add_gradients(backbone: Backbone, samples: Sequence[Encoded]) -> float:
    """Add the gradient of the mean loss over all label tokens to trainable weights.

    Returns that loss.
    """
    n_labels = sum(sample.n_label_tokens for sample in samples)
    layer = backbone.model.get_output_embeddings()
    total = 0.0
    for batch in batches(samples, token_budget=TOKEN_BUDGET[backbone.device.type]):
        states = backbone.differentiable_states(batch)
        hidden = states.detach()
        pulled = torch.empty_like(hidden)
        for chunk, errors in _errors(backbone, hidden, batch):
            error = errors.error.to(hidden.dtype).div_(-n_labels)
            pulled[chunk] = error @ layer.weight.detach()
            _add_gradient(layer.weight, error.T @ hidden[chunk])
            if getattr(layer, "bias", None) is not None:
                _add_gradient(layer.bias, error.sum(dim=0))
            total += float(errors.loss.sum())
        torch.autograd.backward(states, pulled)
    return total / n_labels


@torch.no_grad()
def mean_losses(backbone: Backbone, samples: Sequence[Encoded]) -> NDArray[np.float64]:
    """The mean cross-entropy over its label tokens of each sample, in nats, [sample].

    Raises ModelError where one is no number, as after a step that was too long.
    """
    means = np.empty(len(samples))
    for batch in batches(samples, token_budget=TOKEN_BUDGET[backbone.device.type]):
        hidden = backbone.differentiable_states(batch)
        losses = [errors.loss.double().cpu() for _, errors in _errors(backbone, hidden, batch)]
        totals = np.bincount(batch.label_rows, weights=torch.cat(losses).numpy())
        means[list(batch.indices)] = totals / np.bincount(batch.label_rows)
    if undefined := int((~np.isfinite(means)).sum()):
        raise ModelError(
            f"{backbone.name}: the losses of {undefined} of {len(means)} samples are infinite or "
            "undefined; use float32, or a lower learning rate where this comes of training"
        )
    return means


def precision_warnings(backbone: Backbone, recipe: Recipe) -> tuple[str, ...]:
    """What to say of weights so coarse that steps of full fine-tuning vanish in them."""
    dtype = backbone.head.weight.dtype
    if recipe.lora_rank is not None or torch.finfo(dtype).eps <= torch.finfo(torch.float32).eps:
        return ()
    return (
        f"the model is in {str(dtype).removeprefix('torch.')}, in which steps of learning rate "
        f"{recipe.learning_rate:g} are mostly rounded away; use an index made with --dtype float32",
    )


def _matrix_products(device: torch.device, *, in_bfloat16: bool) -> torch.autocast:
    # With its cache, autocast would go on with the weights of the first step.
    return torch.autocast(device.type, torch.bfloat16, enabled=in_bfloat16, cache_enabled=False)


def _steps(n_samples: int, recipe: Recipe, seed: int) -> Iterator[NDArray[np.int64]]:
    """The places of the samples of each step."""
    random = np.random.default_rng(seed)
    for _ in range(recipe.epochs):
        order = random.permutation(n_samples)
        for start in range(0, n_samples, recipe.batch_samples):
            yield order[start : start + recipe.batch_samples]


def _add_gradient(parameter: Tensor, gradient: Tensor) -> None:
    if parameter.requires_grad:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        parameter.grad.add_(gradient)


@torch.no_grad()
def _errors(
    backbone: Backbone, hidden: Tensor, batch: Batch
) -> Iterator[tuple[slice, PredictionError]]:
    """Prediction errors of a batch's label tokens, a chunk of them at a time."""
    labels = torch.from_numpy(batch.labels).to(hidden.device)
    size = CHUNK_TOKENS[hidden.device.type]
    for start in range(0, len(hidden), size):
        chunk = slice(start, start + size)
        yield chunk, prediction_error(backbone.head, hidden[chunk], labels[chunk])
