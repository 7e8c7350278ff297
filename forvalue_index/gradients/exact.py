"""Exact values: three forms of For-Value's score, equal to rounding (arXiv 2508.10180, Eq. 1).

A sample's head gradient is G = E^T H, a sum over its label tokens, with E [token, vocab] its
prediction errors and H [token, hidden] its hidden states. G is minus the gradient of the summed
cross-entropy with respect to the head weight. The value of sample i for sample v is <G_v, G_i>.

* kernel form: sum of (E_v E_i^T) * (H_v H_i^T); no matrix of the head's size;
* matrix form: `gradient`, then the Frobenius inner product; for many pairs;
* streaming form: with M the mean gradient of a validation set, one extra head-sized product a
  training token and no matrix kept per sample.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def gradient(
    error: Float[Tensor, "token vocab"], hidden: Float[Tensor, "token hidden"]
) -> Float[Tensor, "vocab hidden"]:
    """G = E^T H: minus the gradient of the summed cross-entropy w.r.t. the head weight."""
    return torch.einsum("tv,th->vh", error, hidden)


def kernel_score(
    validation: tuple[Float[Tensor, "v vocab"], Float[Tensor, "v hidden"]],
    training: tuple[Float[Tensor, "t vocab"], Float[Tensor, "t hidden"]],
) -> Float[Tensor, ""]:
    """<G_v, G_i> from the (error, hidden) pairs of the two samples."""
    errors = validation[0] @ training[0].T  # [v, t]
    states = validation[1] @ training[1].T  # [v, t]
    return (errors * states).sum()


def streaming_terms(
    mean_gradient: Float[Tensor, "vocab hidden"],
    error: Float[Tensor, "token vocab"],
    hidden: Float[Tensor, "token hidden"],
) -> Float[Tensor, " token"]:
    """What each training token adds to its sample's score: e_k . (M h_k)."""
    return torch.einsum("tv,tv->t", error, hidden @ mean_gradient.T)


def gram(
    error: Float[Tensor, "token vocab"],
    hidden: Float[Tensor, "token hidden"],
    owner: Int[Tensor, " token"],
    n_samples: int,
) -> Float[Tensor, "sample sample"]:
    """<G_i, G_j> of all pairs of samples, from the tokens of all of them, in float64."""
    return cross_gram((error, hidden, owner), (error, hidden, owner), (n_samples, n_samples))


def cross_gram(
    left: tuple[Tensor, Tensor, Tensor],
    right: tuple[Tensor, Tensor, Tensor],
    n_samples: tuple[int, int],
) -> Float[Tensor, "left right"]:
    """<G_i, G_j> of the samples on both sides, each given as (error, hidden, owner) of its tokens.

    Kernel form, summed over the tokens of each pair in float64.
    """
    products = (left[0] @ right[0].T).double() * (left[1] @ right[1].T)  # [token, token]
    rows = products.new_zeros(n_samples[0], products.shape[1]).index_add_(0, left[2], products)
    return rows.new_zeros(n_samples).index_add_(1, right[2], rows)
