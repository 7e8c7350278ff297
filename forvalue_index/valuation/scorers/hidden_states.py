"""The similarity of mean hidden states, as a score."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.exceptions import ModelError
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.valuation.scorers.bm25 import Matrix


@torch.inference_mode()
def mean_hidden_states(
    reader: ModelReader,
    prepared: Sequence[Prepared],
    *,
    on_progress: OnProgress = ignore_progress,
) -> Matrix:
    """Mean over label tokens of what the model's head reads, [sample, hidden].

    Raises ModelError where it is infinite or undefined for a sample, which is named.
    """
    means = np.empty((len(prepared), reader.head.weight.shape[1]), dtype=np.float32)
    done = tokens = 0
    for batch in reader.batches(prepared):
        hidden = reader.trunk.hidden_states(batch).float()
        owner = torch.from_numpy(batch.label_rows).to(hidden.device)
        sums = hidden.new_zeros(len(batch.indices), hidden.shape[1]).index_add_(0, owner, hidden)
        means[list(batch.indices)] = (sums / torch.bincount(owner)[:, None]).cpu().numpy()
        done, tokens = done + len(batch.indices), tokens + int(batch.attention_mask.sum())
        on_progress(Progress("comparing", done, len(prepared), tokens))
    _refuse_undefined(means, prepared)
    return means


def hidden_similarity(validation: Matrix, training: Matrix) -> Matrix:
    """Cosines of mean hidden states, both less the training mean, [validation, training].

    A state that is the training mean itself is like none: zero.
    """
    centre = training.mean(axis=0, dtype=np.float64)
    similarity: Matrix = (_unit(validation - centre) @ _unit(training - centre).T).astype(
        np.float32
    )
    return similarity


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: NDArray[np.float64] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return unit


def _refuse_undefined(means: Matrix, prepared: Sequence[Prepared]) -> None:
    undefined = np.flatnonzero(~np.isfinite(means).all(axis=1))
    if len(undefined):
        sample = prepared[int(undefined[0])].sample
        raise ModelError(
            f"{sample.source}:{sample.position}: the model gives infinite or undefined hidden "
            f"states for sample {sample.key}; use an index with --dtype float32, or leave the "
            "sample out"
        )
