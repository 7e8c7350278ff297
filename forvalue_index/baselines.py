"""What simpler methods say of training samples: words in common, and likeness of hidden states.

A value that is worth its price beats both. The home of bm25s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.contracts import OnProgress, ignore_progress
from forvalue_index.exceptions import ModelError
from forvalue_index.extras import evaluation_extra
from forvalue_index.label_tokens import LabelReader, Prepared
from forvalue_index.records import Progress

with evaluation_extra():
    import bm25s

Matrix = NDArray[np.float32]

# Runs of letters and digits, and every other sign that is no space alone: short words and signs
# matter in tasks over text. Lower case, no stop words, no stemming: nothing belongs to a language.
TOKEN = r"(?u)\w+|[^\w\s]"
# Lucene's variant of BM25 with the usual constants.
K1, B = 1.5, 0.75


def bm25_scores(queries: Sequence[str], documents: Sequence[str]) -> Matrix:
    """BM25 of every document for every query, [query, document]; zeros where no word is shared.

    A word that stands twice in a query counts twice.
    """
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    words = _words(documents)
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in words for w in text}))}
    if not vocabulary:
        return scores
    ranker = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    known = [[vocabulary[word] for word in text] for text in words]
    ranker.index((known, vocabulary), show_progress=False)
    for row, query in zip(scores, _words(queries), strict=True):
        if ids := ranker.get_tokens_ids(query):
            row[:] = ranker.get_scores_from_ids(ids)
    return scores


@torch.inference_mode()
def mean_hidden_states(
    reader: LabelReader,
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


def _words(texts: Sequence[str]) -> list[list[str]]:
    if not texts:
        return []  # of which bm25s makes an error
    found: list[list[str]] = bm25s.tokenize(
        list(texts),
        lower=True,
        token_pattern=TOKEN,
        stopwords=[],
        stemmer=None,
        return_ids=False,
        show_progress=False,
    )
    return found


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
