"""Exact values, from the model and without a sketch: the oracle behind the index.

The streaming form (`exact`): with M the mean gradient of a validation set, a training sample's
value is the sum over its label tokens of e . (M h), one more head-sized product a token. All of it
in a geometry, on both sides. Cosines divide each side's gradient by its own norm.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.exceptions import BadSampleError
from forvalue_index.gradients.embedder import undefined_numbers
from forvalue_index.gradients.exact import gram, streaming_terms
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.model.encoded import Batch
from forvalue_index.model.label_tokens import LabelTokens, ModelReader, Prepared
from forvalue_index.progress import OnProgress, Progress, ignore_progress

NO_GRADIENT = (
    "the gradient of the validation set is zero: the model predicts each of its labels with "
    "certainty, so no sample can help or hurt; use other validation samples, or an earlier "
    "checkpoint of the model"
)


class ValidationGradient(NamedTuple):
    """M, the mean head gradient [vocab, hidden] of a validation set, in one geometry.

    `weights` [sample] are what each sample's gradient was multiplied by: 1 / n, and with
    `normalize` also 1 / its norm. The vocabulary is in the reader's order.
    """

    mean: Tensor
    weights: NDArray[np.float64]
    geometry: Geometry
    normalize: bool


def validation_gradient(
    reader: ModelReader,
    geometry: Geometry,
    validation: Sequence[Prepared],
    *,
    normalize: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ValidationGradient:
    """The mean gradient of a validation set, in one geometry.

    Raises:
        BadSampleError: it is zero, or as `mean_gradient` does.
    """
    gradient = mean_gradient(
        reader, geometry, validation, normalize=normalize, on_progress=on_progress
    )
    if not gradient.mean.any():
        raise BadSampleError(NO_GRADIENT)
    return gradient


def mean_gradient(
    reader: ModelReader,
    geometry: Geometry,
    validation: Sequence[Prepared],
    *,
    normalize: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ValidationGradient:
    """The mean gradient of samples; with `normalize`, of their gradients divided by their norms.

    Raises:
        BadSampleError: the model gives infinite or undefined numbers for a sample, which is named.
    """
    weights = np.full(len(validation), 1 / len(validation))
    if normalize:
        weights /= without_zeros(gradient_norms(reader, geometry, validation))
    mean = reader.empty().new_zeros(reader.head.weight.shape)
    done = 0
    for batch in reader.batches(validation):
        share = torch.from_numpy(weights[list(batch.indices)]).to(mean)
        for tokens in tokens_in(reader, geometry, batch, validation):
            mean.addmm_((tokens.error * share[tokens.owner, None]).T, tokens.hidden)
        done += len(batch.indices)
        on_progress(Progress("embedding", done, len(validation)))
    return ValidationGradient(mean, weights, geometry, normalize)


def exact_values(
    reader: ModelReader,
    target: ValidationGradient,
    prepared: Sequence[Prepared],
    *,
    on_progress: OnProgress = ignore_progress,
) -> NDArray[np.float64]:
    """The exact value of each sample for a validation set, [sample].

    Raises BadSampleError, naming the sample, where the model gives no usable numbers.
    """
    values = np.empty(len(prepared))
    done = 0
    for batch in reader.batches(prepared):
        sums = torch.zeros(len(batch.indices), dtype=torch.float64, device=target.mean.device)
        tokens_of = tokens_in(reader, target.geometry, batch, prepared)
        for tokens in by_sample(tokens_of) if target.normalize else tokens_of:
            terms = exact_terms(target, tokens)
            if target.normalize:
                terms /= gradient_norm(tokens).clamp(min=torch.finfo(tokens.error.dtype).tiny)
            sums.index_add_(0, tokens.owner, terms)
        values[list(batch.indices)] = sums.cpu().numpy()
        done += len(batch.indices)
        on_progress(Progress("re-scoring", done, len(prepared)))
    return values


def exact_terms(target: ValidationGradient, tokens: LabelTokens) -> Float[Tensor, " token"]:
    """What each label token adds to its sample's value before it is divided by a norm, float64."""
    return streaming_terms(target.mean, tokens.error, tokens.hidden).double()


@torch.inference_mode()
def gradient_norms(
    reader: ModelReader, geometry: Geometry, prepared: Sequence[Prepared]
) -> NDArray[np.float64]:
    """The norm of the head gradient of each sample in a geometry, [sample]."""
    norms = np.empty(len(prepared))
    for batch in reader.batches(prepared):
        for tokens in by_sample(tokens_in(reader, geometry, batch, prepared)):
            norms[batch.indices[int(tokens.owner[0])]] = float(gradient_norm(tokens))
    return norms


def tokens_in(
    reader: ModelReader, geometry: Geometry, batch: Batch, prepared: Sequence[Prepared]
) -> Iterator[LabelTokens]:
    """The label tokens of a batch of `prepared` with both sides in a geometry, chunk by chunk.

    Raises BadSampleError, naming the sample, where the model gives no usable numbers.
    """
    for tokens in reader.label_tokens(batch):
        undefined = ~(torch.isfinite(tokens.loss) & torch.isfinite(tokens.hidden).all(dim=1))
        if undefined.any():
            position = batch.indices[int(tokens.owner[int(undefined.nonzero()[0])])]
            sample = prepared[position].sample
            raise BadSampleError(f"{sample.source}:{sample.position}: {undefined_numbers(sample)}")
        error, hidden = geometry.error(tokens.error), geometry.hidden(tokens.hidden)
        yield tokens._replace(error=error, hidden=hidden)


def by_sample(chunks: Iterable[LabelTokens]) -> Iterator[LabelTokens]:
    """The same tokens, all of one sample at a time."""
    held: list[LabelTokens] = []
    for tokens in chunks:
        for owner in sorted(set(tokens.owner.tolist())):
            if held and int(held[0].owner[0]) != owner:
                yield joined(held)
                held = []
            of_owner = tokens.owner == owner
            held.append(LabelTokens(*(tensor[of_owner] for tensor in tokens)))
    if held:
        yield joined(held)


def joined(parts: Sequence[LabelTokens]) -> LabelTokens:
    """All tokens of some parts."""
    return LabelTokens(*(torch.cat(tensors) for tensors in zip(*parts, strict=True)))


def gradient_norm(tokens: LabelTokens) -> Tensor:
    """The norm of the gradient of the one sample that owns all tokens."""
    owner = torch.zeros_like(tokens.owner)
    return gram(tokens.error, tokens.hidden, owner, 1)[0, 0].clamp(min=0).sqrt()


def without_zeros(norms: NDArray[np.float64]) -> NDArray[np.float64]:
    """What to divide by, so that gradients of zero stay."""
    return np.where(norms > 0, norms, 1.0)
