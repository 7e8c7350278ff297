"""Scores of training samples by every method that an evaluation compares.

A score matrix is [validation, training] in the order of both; larger means more alike, or more
helpful.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.gradients.exact_matrix import exact_matrices
from forvalue_index.gradients.sketch_error import SketchError
from forvalue_index.index import ValuationIndex
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.sources.sample import Sample
from forvalue_index.store.rows import unit_rows
from forvalue_index.store.view import View
from forvalue_index.valuation.scorers.bm25 import bm25_scores
from forvalue_index.valuation.scorers.hidden_states import hidden_similarity, mean_hidden_states
from forvalue_index.valuation.scoring import Scoring

Matrix = NDArray[np.float32]

FOR_VALUE = "for-value"
BM25 = "bm25"
BM25_RESPONSE = "bm25, responses alone"
HIDDEN_STATE = "hidden state"


def scorings(index: ValuationIndex) -> dict[str, Scoring]:
    """What an index can be asked for without its model: each geometry, and its cosines."""
    return {
        f"{FOR_VALUE} {geometry}{', cosine' if normalize else ''}": Scoring(geometry, normalize)
        for geometry in index.manifest.settings.geometries
        for normalize in (False, True)
    }


def all_sketched(
    index: ValuationIndex, view: View, prepared: Sequence[Prepared], ids: Sequence[int]
) -> tuple[dict[str, Matrix], dict[str, Matrix]]:
    """Scores of rows and their standard errors, by the name of the scoring."""
    queries = index.model.embedder().embed(prepared).rows
    scores, stderrs = {}, {}
    for name, scoring in scorings(index).items():
        rows = queries[scoring.geometry]
        errors = index.storage.frozen.sketch_error(scoring.geometry)
        scores[name], stderrs[name] = sketched_scores(
            view, unit_rows(rows) if scoring.normalize else rows, ids, scoring, errors
        )
    return scores, stderrs


def sketched_scores(
    view: View, queries: Tensor, ids: Sequence[int], scoring: Scoring, errors: SketchError
) -> tuple[Matrix, Matrix]:
    """Inner products of query rows with the rows of samples whose ids are in order, with errors."""
    wanted, rows = np.asarray(ids, dtype=np.int64), queries.numpy()
    scores = np.empty((len(rows), len(wanted)), dtype=np.float32)
    stderrs = np.empty_like(scores)
    for block in view.blocks(scoring.geometry, normalize=scoring.normalize):
        here = np.isin(block.ids, wanted)
        columns = np.searchsorted(wanted, block.ids[here])
        chosen = block.rows.numpy()[here]
        scores[:, columns] = (queries @ torch.from_numpy(chosen).T).numpy()
        for i, row in enumerate(rows):
            stderrs[i, columns] = errors.standard_errors(row, chosen)
    return scores, stderrs


def all_exact(
    index: ValuationIndex, validation: Sequence[Prepared], training: Sequence[Prepared]
) -> dict[str, Matrix]:
    """Scores of the model, by the name of the scoring."""
    geometries = [index.model.geometry(name) for name in index.manifest.settings.geometries]
    matrices = exact_matrices(
        index.model.reader, geometries, validation, training, on_progress=index.model.on_progress
    )
    scores = {}
    for name, scoring in scorings(index).items():
        matrix = matrices[scoring.geometry]
        scores[name] = (matrix.cosines if scoring.normalize else matrix.values).astype(np.float32)
    return scores


def baselines(
    index: ValuationIndex, validation: Sequence[Prepared], training: Sequence[Prepared]
) -> dict[str, Matrix]:
    """Scores of what has no need of gradients: shared words, and hidden states."""
    queries, documents = ([p.sample for p in side] for side in (validation, training))
    hidden = mean_hidden_states(
        index.model.reader, [*validation, *training], on_progress=index.model.on_progress
    )
    return {
        BM25: bm25_scores(list(map(_text, queries)), list(map(_text, documents))),
        BM25_RESPONSE: bm25_scores(
            [sample.response for sample in queries], [sample.response for sample in documents]
        ),
        HIDDEN_STATE: hidden_similarity(hidden[: len(validation)], hidden[len(validation) :]),
    }


def _text(sample: Sample) -> str:
    return f"{sample.prompt}\n{sample.response}"
