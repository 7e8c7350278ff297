"""Values by the definition, in float64: autograd through the whole model, and explicit maps.

Nothing here is the package's own code. Errors are in the order of token ids.
"""

from typing import NamedTuple

import numpy as np
import torch


class Seen(NamedTuple):
    """Of the label tokens of a sample: errors [label, vocab], states [label, hidden], losses."""

    error: np.ndarray
    hidden: np.ndarray
    loss: np.ndarray


def seen(model, token_ids, label_mask):
    """What the head gets and what its output is told, by hooks and autograd."""
    kept = {}

    def keep(_layer, inputs, output):
        kept["hidden"] = inputs[0].detach()
        kept["output"] = output.detach().requires_grad_()
        return kept["output"]

    hook = model.get_output_embeddings().register_forward_hook(keep)
    try:
        ids = torch.as_tensor(np.array(token_ids))
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
    finally:
        hook.remove()
    at = torch.as_tensor(np.flatnonzero(label_mask))
    log_p = torch.log_softmax(logits.double(), dim=1)[at - 1, ids[at]]
    (error,) = torch.autograd.grad(log_p.sum(), kept["output"])
    both = (error[0][at - 1], kept["hidden"][0][at - 1], -log_p.detach())
    return Seen(*(tensor.double().numpy() for tensor in both))


def head_gradient(model, token_ids, label_mask):
    """Minus the gradient of the summed loss for a head with its own weight, [vocab, hidden]."""
    layer = model.get_output_embeddings()
    kept, layer.weight = layer.weight, torch.nn.Parameter(layer.weight.detach().clone())
    try:
        ids = torch.as_tensor(np.array(token_ids))
        logits = model(input_ids=ids[None], use_cache=False).logits[0]
        at = torch.as_tensor(np.flatnonzero(label_mask))
        loss = torch.nn.functional.cross_entropy(logits[at - 1], ids[at], reduction="sum")
        (found,) = torch.autograd.grad(loss, layer.weight)
    finally:
        layer.weight = kept
    return -found.double().numpy()


class Moments(NamedTuple):
    """E|e_v| [vocab], E[h] [hidden] and E[h h^T] [hidden, hidden] over label tokens."""

    error_size: np.ndarray
    hidden_mean: np.ndarray
    hidden_square: np.ndarray


def moments(samples):
    """Of what was seen of samples."""
    error = np.concatenate([sample.error for sample in samples])
    hidden = np.concatenate([sample.hidden for sample in samples])
    return Moments(np.abs(error).mean(0), hidden.mean(0), hidden.T @ hidden / len(hidden))


def mapped(sample, geometry, known, damping):
    """A sample in a geometry: both sides mapped, token by token."""
    error, hidden = sample.error, sample.hidden
    if geometry in ("fisher", "kfac"):
        error = error / np.sqrt(known.error_size / known.error_size.mean() + damping)
    if geometry == "centered":
        hidden = hidden - known.hidden_mean
    if geometry == "kfac":
        values, vectors = np.linalg.eigh(known.hidden_square)
        root = np.sqrt(values.clip(0) / values.mean() + damping)
        hidden = hidden @ (vectors / root @ vectors.T)
    return Seen(error, hidden, sample.loss)


def gradient(sample):
    return sample.error.T @ sample.hidden


def unit(matrix):
    """A gradient divided by its norm."""
    norm = np.linalg.norm(matrix)
    return matrix / norm if norm else matrix


def value_matrix(validation, training, *, normalize=False):
    """<G_v, G_i> [validation, training], or their cosines."""
    sides = [
        np.stack([(unit if normalize else np.array)(gradient(one)).ravel() for one in samples])
        for samples in (validation, training)
    ]
    return sides[0] @ sides[1].T


def scales(validation, training, *, normalize=False):
    """The products of norms that errors are measured against, [validation, training]."""
    if normalize:
        return np.ones((len(validation), len(training)))
    norms = [[np.linalg.norm(gradient(o)) for o in side] for side in (validation, training)]
    return np.outer(*norms)
