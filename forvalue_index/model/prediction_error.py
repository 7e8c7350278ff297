"""Prediction errors: the head's side of For-Value's gradient (arXiv 2508.10180, Eq. 1).

With logits z = W h + b, cross-entropy has the gradient -(onehot(y) - softmax(z)) h^T with respect
to W. The error e = onehot(y) - softmax(z) is what is left of the vocabulary side of it. Where the
head is more than W h, the chain rule enters e: a scale s multiplies it, soft-capping
c * tanh(z / c) multiplies it element-wise by 1 - (logit / c)^2, a bias changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Head:
    """A language-model head: softcap(scale * (W h + b)). `weight` is [vocab, hidden]."""

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    def logits(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token vocab"]:
        """Logits in float32, or in float64 where the model is."""
        logits = torch.nn.functional.linear(hidden, self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits.mul_(self.scale)
        if self.softcap is not None:
            logits.div_(self.softcap).tanh_().mul_(self.softcap)
        return logits

    def reordered(self, order: Int[Tensor, " vocab"]) -> Head:
        """The same head with vocabulary entry `order[i]` at place i."""
        bias = None if self.bias is None else self.bias[order]
        return replace(self, weight=self.weight[order], bias=bias)


class PredictionError(NamedTuple):
    """Of each label token: `error` [token, vocab], `loss` in nats [token], `probability` [token].

    `error` is the gradient of log p(label) with respect to W h + b.
    """

    error: Tensor
    loss: Tensor
    probability: Tensor


def prediction_error(
    head: Head, hidden: Float[Tensor, "token hidden"], labels: Int[Tensor, " token"]
) -> PredictionError:
    """onehot(label) - softmax(logits), with the head's chain rule applied.

    Works in place on the logits, the one large tensor of a chunk. The loss comes from the shifted
    logits, so it is exact where the probability underflows.
    """
    logits = head.logits(hidden)
    chain = None if head.softcap is None else 1 - (logits / head.softcap) ** 2
    shifted = logits.sub_(logits.amax(dim=-1, keepdim=True))
    at_label = labels[:, None]
    label_logit = shifted.gather(1, at_label)
    total = shifted.exp_().sum(dim=-1, keepdim=True)
    loss = total.log() - label_logit
    error = shifted.div_(-total).scatter_add_(1, at_label, torch.ones_like(total))
    if chain is not None:
        error.mul_(chain)
    if head.scale != 1.0:
        error.mul_(head.scale)
    return PredictionError(error, loss.squeeze(1), loss.neg().exp().squeeze(1))
