"""Batches of about equal cost: samples in order of length, padded on the right to one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

import numpy as np

from forvalue_index.model.encoded import Batch, Encoded

PAD = 0
# Patches of images for each token of a budget: an encoder of images is smaller than what reads the
# tokens, and keeps little of each patch.
PATCHES = 8


def batches(encoded: Sequence[Encoded], *, token_budget: int) -> Iterator[Batch]:
    """Batches of at most `token_budget` tokens, padding included, longest samples first.

    Images cost what their patches do, too. A sample above the budget makes a batch of its own.
    Longest first, so that a machine that is too small says so at once. All samples of a batch have
    as many images: what an image is padded with is read by some models (mllama), and text alone
    in other ways than with images.
    """
    lengths = [_input_length(e) for e in encoded]
    counts = [len(e.image_tokens) for e in encoded]
    for count in sorted(set(counts), reverse=True):
        members = (i for i in range(len(encoded)) if counts[i] == count)
        order = sorted(members, key=lambda i: (-lengths[i], i))
        while order:
            most = max(1, token_budget // max(1, lengths[order[0]]))
            patches = accumulate(encoded[i].n_patches for i in order[:most])
            size = max(1, sum(total <= PATCHES * token_budget for total in patches))
            indices, order = order[:size], order[size:]
            yield collate([encoded[i] for i in indices], indices)


def collate(encoded: Sequence[Encoded], indices: Sequence[int]) -> Batch:
    """Pad samples to the length of the longest.

    The model is causal, so the last label and what follows it are no input for any prediction
    and are cut off. The token at t is predicted at t - 1.
    """
    lengths = [_input_length(e) for e in encoded]
    token_ids = np.full((len(encoded), max(lengths)), PAD, dtype=np.int64)
    attention_mask = np.zeros_like(token_ids)
    for row, (sample, length) in enumerate(zip(encoded, lengths, strict=True)):
        token_ids[row, :length] = sample.token_ids[:length]
        attention_mask[row, :length] = 1
    at_labels = [np.flatnonzero(e.label_mask) for e in encoded]
    return Batch(
        token_ids=token_ids,
        attention_mask=attention_mask,
        label_rows=np.repeat(np.arange(len(encoded)), [len(at) for at in at_labels]),
        label_columns=np.concatenate(at_labels) - 1,
        labels=np.concatenate([e.token_ids[at] for e, at in zip(encoded, at_labels, strict=True)]),
        indices=tuple(indices),
        readers=tuple(e.read_inputs for e in encoded if e.read_inputs is not None),
    )


def halves(batch: Batch) -> tuple[Batch, Batch]:
    """The first samples of a batch and the others, each padded to the longest among them."""
    middle = (len(batch.indices) + 1) // 2
    return _part(batch, 0, middle), _part(batch, middle, len(batch.indices))


def shared_tokens(batch: Batch) -> int:
    """How many tokens all samples of a batch begin with, none of which predicts a label."""
    differs = (batch.token_ids != batch.token_ids[0]).any(axis=0)
    equal = int(differs.argmax()) if differs.any() else len(differs)
    return min(equal, int(batch.label_columns.min()))


def _part(batch: Batch, first: int, last: int) -> Batch:
    kept = (batch.label_rows >= first) & (batch.label_rows < last)
    longest = int(batch.attention_mask[first:last].sum(axis=1).max())
    return Batch(
        token_ids=batch.token_ids[first:last, :longest],
        attention_mask=batch.attention_mask[first:last, :longest],
        label_rows=batch.label_rows[kept] - first,
        label_columns=batch.label_columns[kept],
        labels=batch.labels[kept],
        indices=batch.indices[first:last],
        readers=batch.readers[first:last],
    )


def _input_length(encoded: Encoded) -> int:
    return int(np.flatnonzero(encoded.label_mask)[-1])
