"""From samples to what the head sees of them: prompts -> batches -> trunk -> prediction error.

The head is applied to label positions only and in chunks, so logits of [batch, token, vocabulary]
never exist.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.devices import none_if_out_of_memory
from forvalue_index.exceptions import BadSampleError, ModelError
from forvalue_index.model.batching import batches
from forvalue_index.model.contracts import Trunk
from forvalue_index.model.encoded import Batch, Encoded
from forvalue_index.model.prediction_error import Head, PredictionError, prediction_error
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.sample import BadRow, Sample, Source, bad_row

# Measured on SmolLM2-135M: the trunk is at full speed from 1,024 tokens on; a chunk's logits
# should stay in the processor's cache (128 x 49,152 floats).
TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
CHUNK_TOKENS = {"cpu": 128, "cuda": 2048}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample and what the model reads of it."""

    sample: Sample
    encoded: Encoded


class LabelTokens(NamedTuple):
    """Some label tokens of a batch, in order of sample and position.

    `error` [token, vocab] with the vocabulary in the reader's order, `hidden` [token, hidden],
    `owner` [token] the place of their sample in the batch, `position` [token] that in the sample,
    `loss` [token] in nats, `probability` [token] of the label. Floats are float32, or float64 where
    the model is.
    """

    error: Tensor
    hidden: Tensor
    owner: Tensor
    position: Tensor
    loss: Tensor
    probability: Tensor


class _Labels(NamedTuple):
    """Of the labels of a batch: hidden states, ranks in the vocabulary, owners and positions."""

    hidden: Tensor
    vocab_ranks: Tensor
    owner: Tensor
    position: Tensor

    def part(self, which: slice | Tensor) -> _Labels:
        return _Labels(*(tensor[which] for tensor in self))


def prepare(
    encoder: PromptEncoder, sample: Sample, *, vocab_size: int, replaced_tokens: Collection[int]
) -> Prepared | BadRow:
    """Tokenise a sample, or say why a model with such a vocabulary cannot value it.

    `replaced_tokens` are ids in whose place the model reads parts of images.
    """
    try:
        encoded = encoder.encode(sample)
        of_text = np.ones(len(encoded), dtype=bool)
        for start, end in encoded.image_tokens:
            of_text[start:end] = False
        _refuse_unreadable(encoder, encoded.token_ids[of_text], vocab_size, replaced_tokens)
    except BadSampleError as error:
        return bad_row(sample, str(error))
    return Prepared(sample, encoded)


def _refuse_unreadable(
    encoder: PromptEncoder,
    token_ids: NDArray[np.int64],
    vocab_size: int,
    replaced_tokens: Collection[int],
) -> None:
    """Raise BadSampleError where tokens of a text cannot be read."""
    reserved = token_ids[np.isin(token_ids, sorted(replaced_tokens))]
    if len(reserved):
        raise BadSampleError(
            f"its text holds {encoder.decode(reserved[:1].tolist())}, which stands for a part of "
            "an image or the like in this model; take it out"
        )
    if (largest := int(token_ids.max())) >= vocab_size:
        raise BadSampleError(
            f"it has token {largest:,}, and the model knows {vocab_size:,} tokens; the "
            "tokenizer is of another model, or was extended alone"
        )


class ModelReader:
    """Reads samples with one model; `vocab_order` says how it orders the vocabulary.

    With `hardest`, only that share of each sample's label tokens counts: those of highest loss.
    `replaced_tokens` are ids in whose place the model reads parts of images.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: Head,
        *,
        encoder: PromptEncoder,
        vocab_order: Int[Tensor, " vocab"],
        hardest: float | None = None,
        replaced_tokens: Collection[int] = (),
    ) -> None:
        self.trunk = trunk
        self.head = head.reordered(vocab_order)
        self.vocab_order = vocab_order
        self._encoder = encoder
        self._hardest = hardest
        self._replaced_tokens = replaced_tokens
        # Where each vocabulary entry went, so that labels follow the reordered head.
        self._vocab_rank = torch.argsort(vocab_order)
        self._chunk_tokens = CHUNK_TOKENS[head.weight.device.type]
        self.token_budget = TOKEN_BUDGET[head.weight.device.type]

    def prepare(self, sample: Sample) -> Prepared | BadRow:
        """Tokenise a sample, or say why it cannot be valued."""
        return prepare(
            self._encoder,
            sample,
            vocab_size=len(self._vocab_rank),
            replaced_tokens=self._replaced_tokens,
        )

    def count_labels(self, encoded: Encoded) -> int:
        """How many label tokens of a sample count."""
        share = 1.0 if self._hardest is None else self._hardest
        return math.ceil(share * encoded.n_label_tokens)

    def open_images(self, sample: Sample) -> None:
        """Raise BadSampleError where an image of a sample cannot be opened."""
        self._encoder.open_images(sample)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, special ones as they are written."""
        return self._encoder.decode(token_ids)

    def batches(self, prepared: Sequence[Prepared]) -> Iterable[Batch]:
        """The batches in which these samples should be read."""
        return batches([p.encoded for p in prepared], token_budget=self.token_budget)

    def empty(self) -> Tensor:
        """No numbers, in the precision and on the device of the label tokens."""
        weight = self.head.weight
        return weight.new_empty(0, dtype=torch.promote_types(weight.dtype, torch.float32))

    @torch.inference_mode()
    def label_tokens(self, batch: Batch) -> Iterator[LabelTokens]:
        """The label tokens of a batch, a chunk at a time; each chunk's tensors are the caller's."""
        hidden = self.trunk.hidden_states(batch)
        labels = _Labels(
            hidden,
            self._vocab_rank[torch.from_numpy(batch.labels).to(hidden.device)],
            torch.from_numpy(batch.label_rows).to(hidden.device),
            torch.from_numpy(batch.label_columns + 1).to(hidden.device),
        )
        if self._hardest is not None:
            labels = labels.part(self._hardest_of(labels, self._hardest))
        for chunk, errors in self._predicted(labels):
            yield LabelTokens(
                errors.error,
                chunk.hidden.to(errors.error.dtype),
                chunk.owner,
                chunk.position,
                errors.loss,
                errors.probability,
            )

    def _predicted(self, labels: _Labels) -> Iterator[tuple[_Labels, PredictionError]]:
        """Labels in chunks, which become smaller where memory does not suffice for them."""
        start = 0
        while start < len(labels.hidden):
            chunk = labels.part(slice(start, start + self._chunk_tokens))
            errors = none_if_out_of_memory(partial(self._errors, chunk))
            if errors is not None:
                start += len(chunk.hidden)
                yield chunk, errors
            elif self._chunk_tokens == 1:
                raise ModelError(
                    f"there is not the memory on {chunk.hidden.device} for the errors of one token "
                    f"over {len(self._vocab_rank):,} vocabulary entries; close other programs"
                )
            else:
                self._chunk_tokens //= 2

    def _errors(self, chunk: _Labels) -> PredictionError:
        return prediction_error(self.head, chunk.hidden, chunk.vocab_ranks)

    def _hardest_of(self, labels: _Labels, share: float) -> Int[Tensor, " kept"]:
        """Which labels have the highest loss of their sample, rounded up, in order of position."""
        loss = torch.cat([errors.loss for _, errors in self._predicted(labels)])
        kept, start = [], 0
        for count in torch.bincount(labels.owner).tolist():
            own_loss = loss[start : start + count]
            order = own_loss.argsort(descending=True, stable=True)[: math.ceil(share * count)]
            kept.append(start + order.sort().values)
            start += count
        return torch.cat(kept)


def rows_of(reader: ModelReader, sources: Sequence[Source]) -> Iterator[Prepared | BadRow]:
    """The rows of sources in order, tokenised where that can be done."""
    for row in (row for source in sources for row in source.samples()):
        yield row if isinstance(row, BadRow) else reader.prepare(row)
