"""Batches of about equal cost: samples in order of length, padded on the right to one length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from forvalue_index.records import Batch, Encoded

PAD = 0


def batches(encoded: Sequence[Encoded], *, token_budget: int) -> Iterator[Batch]:
    """Batches of at most `token_budget` tokens, padding included, longest samples first.

    A sample longer than the budget makes a batch of its own. Longest first, so that a machine
    that is too small says so at once.
    """
    lengths = [_input_length(e) for e in encoded]
    order = sorted(range(len(encoded)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, token_budget // max(1, lengths[order[start]]))
        indices = order[start : start + size]
        yield collate([encoded[i] for i in indices], indices)
        start += size


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
    mine = (batch.label_rows >= first) & (batch.label_rows < last)
    longest = int(batch.attention_mask[first:last].sum(axis=1).max())
    return Batch(
        token_ids=batch.token_ids[first:last, :longest],
        attention_mask=batch.attention_mask[first:last, :longest],
        label_rows=batch.label_rows[mine] - first,
        label_columns=batch.label_columns[mine],
        labels=batch.labels[mine],
        indices=batch.indices[first:last],
    )


def _input_length(encoded: Encoded) -> int:
    return int(np.flatnonzero(encoded.label_mask)[-1])
