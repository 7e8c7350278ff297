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

from forvalue_index.baselines import bm25_scores, hidden_similarity, mean_hidden_states
from forvalue_index.exact_matrices import exact_matrices
from forvalue_index.hash_tables import SketchError
from forvalue_index.index import ValuationIndex
from forvalue_index.label_tokens import Prepared
from forvalue_index.metrics import Numbers
from forvalue_index.records import Sample
from forvalue_index.results import Scoring
from forvalue_index.view import View, unit_rows

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
    queries = index.embedder.embed(prepared).rows
    scores, stderrs = {}, {}
    for name, scoring in scorings(index).items():
        mine = queries[scoring.geometry]
        errors = index.storage.sketch_error(scoring.geometry)
        scores[name], stderrs[name] = sketched_scores(
            view, unit_rows(mine) if scoring.normalize else mine, ids, scoring, errors
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
        place = np.searchsorted(wanted, block.ids[here])
        chosen = block.rows.numpy()[here]
        scores[:, place] = (queries @ torch.from_numpy(chosen).T).numpy()
        for i, row in enumerate(rows):
            stderrs[i, place] = errors.standard_errors(row, chosen)
    return scores, stderrs


def all_exact(
    index: ValuationIndex, validation: Sequence[Prepared], training: Sequence[Prepared]
) -> dict[str, Matrix]:
    """Scores of the model, by the name of the scoring."""
    geometries = [index.geometry(name) for name in index.manifest.settings.geometries]
    found = exact_matrices(
        index.reader, geometries, validation, training, on_progress=index.on_progress
    )
    scores = {}
    for name, scoring in scorings(index).items():
        mine = found[scoring.geometry]
        scores[name] = (mine.cosines if scoring.normalize else mine.values).astype(np.float32)
    return scores


def self_influences(index: ValuationIndex, view: View, ids: Sequence[int]) -> dict[str, Numbers]:
    """By geometry, inner products of rows with themselves, of samples whose ids are in order.

    TracIn (Pruthi et al. 2020, section 4.1) finds mislabelled samples by them.
    """
    wanted = np.asarray(ids, dtype=np.int64)
    found: dict[str, Numbers] = {}
    for geometry in index.manifest.settings.geometries:
        mine = np.empty(len(wanted))
        found[geometry] = mine
        for block in view.blocks(geometry):
            here = np.isin(block.ids, wanted)
            rows = block.rows.numpy()[here].astype(np.float64)
            mine[np.searchsorted(wanted, block.ids[here])] = (rows * rows).sum(axis=1)
    return found


def baselines(
    index: ValuationIndex, validation: Sequence[Prepared], training: Sequence[Prepared]
) -> dict[str, Matrix]:
    """Scores of what has no need of gradients: shared words, and hidden states."""
    queries, documents = ([p.sample for p in side] for side in (validation, training))
    hidden = mean_hidden_states(
        index.reader, [*validation, *training], on_progress=index.on_progress
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
