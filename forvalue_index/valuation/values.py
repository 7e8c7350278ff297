"""A score for every sample of an index: blocked products over rows, or exactly with the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice, starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.gradients.exact_values import (
    ValidationGradient,
    exact_values,
    validation_gradient,
)
from forvalue_index.gradients.sketch_error import SketchError
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.sources.data import Data
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.model import IndexModel
from forvalue_index.store.view import Block, View
from forvalue_index.valuation.exports import write_values, writer_for
from forvalue_index.valuation.held_search import HeldSearch
from forvalue_index.valuation.rerank import prepare_stored
from forvalue_index.valuation.results import Values
from forvalue_index.valuation.row_scorer import (
    RowScorer,
    refuse_filled,
    refuse_other_ids,
    whitening_of,
)
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import (
    ValidationRows,
    ValidationSet,
    embedded_rows,
    read_validation,
)

NO_VALUES = Values(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
# Of a block: ids, scores, and squared norms of each part of its rows where they are asked for.
_Scored = tuple[NDArray[Any], ...]
EXPORTED_ROWS = 10_000
# Texts that are held at once.
EXACT_SAMPLES = 1024


class Selection(NamedTuple):
    """Which samples get a value, all or those that meet `where`, and a file for these, if any."""

    where: str | None = None
    output: Path | None = None


def refuse_selection(selection: Selection) -> None:
    """Raise UsageError where the output cannot be written, before any work is done."""
    if selection.output is not None:
        writer_for(selection.output)


def values(
    model: IndexModel,
    search: HeldSearch,
    data: Data,
    *,
    scoring: Scoring,
    exact: bool = False,
    selection: Selection,
) -> Values:
    """A score for every sample of an index, or those selected, from its rows or `exact`.

    Raises as `query`, and ExportError where the output cannot be written.
    """
    validation, _ = read_validation(model, data)
    if exact and not model.storage.uncalibrated:
        return _exact_values(model, scoring, validation, selection)
    embedded = embedded_rows(model, scoring, validation)
    return search.with_or_without_gpus(
        scoring, partial(_sketched_values, model, search, scoring, embedded, selection)
    )


def _exact_values(
    model: IndexModel, scoring: Scoring, validation: ValidationSet, selection: Selection
) -> Values:
    target = validation_gradient(
        model.reader,
        model.geometry(scoring.geometry),
        validation.prepared,
        normalize=scoring.normalize,
        on_progress=model.on_progress,
    )
    with model.storage.catalog.snapshot() as snapshot:
        scored = streamed_values(
            snapshot, model.reader, target, where=selection.where, on_progress=model.on_progress
        )
        return _written(scored, snapshot, selection)


def _sketched_values(
    model: IndexModel,
    search: HeldSearch,
    scoring: Scoring,
    embedded: ValidationRows | None,
    selection: Selection,
) -> Values:
    if embedded is not None:
        with search.on_gpus(scoring) as resident:
            if resident is not None:
                scorer, rows, snapshot = resident
                scored = resident_values(scorer, rows, embedded, snapshot, selection.where)
                return _written(scored, snapshot, selection)
    errors = SketchError(())
    if embedded is not None:
        errors = model.storage.frozen.sketch_error(scoring.geometry)
    with model.storage.view() as view:
        scored = scanned_values(
            view,
            embedded,
            scoring,
            errors=errors,
            where=selection.where,
            on_progress=model.on_progress,
        )
        return _written(scored, view.catalog, selection)


def _written(scored: Values, catalog: Snapshot, selection: Selection) -> Values:
    if selection.output is not None:
        write_values(selection.output, named_values(catalog, scored, selection.where))
    return scored


def scanned_values(
    view: View,
    embedded: ValidationRows | None,
    scoring: Scoring,
    *,
    errors: SketchError,
    where: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Values:
    """A score for every live sample, in order of id, from all rows of an index.

    `embedded` may be None where there are no samples. Only samples that meet `where` are given.
    """
    if embedded is None:
        refuse_filled(view.catalog)
        return NO_VALUES
    query = embedded.mean
    if scoring.whiten and view.catalog.count():
        query = whitening_of(view, scoring)(query[None])[0]
    query_row, known = torch.from_numpy(query), None if scoring.whiten else errors

    def scored_block(block: Block) -> _Scored:
        scores = torch.mv(block.rows, query_row).numpy()
        return block.ids, scores, *(() if known is None else known.squares(block.rows.numpy()))

    scored = view.scan(
        scoring.geometry, scored_block, normalize=scoring.normalize, on_progress=on_progress
    )
    return _values(scored, query, known, view.catalog, where)


def resident_values(
    scorer: RowScorer,
    search: GpuIndex,
    embedded: ValidationRows,
    catalog: Snapshot,
    where: str | None = None,
) -> Values:
    """As `scanned_values`, of rows in the memory of GPUs."""
    query, errors = scorer.queries(embedded, 1)[0], scorer.errors
    query_row = torch.from_numpy(query)

    def scored_block(ids: NDArray[np.int64], rows: Tensor) -> _Scored:
        scores = torch.mv(rows, query_row.to(rows.device)).cpu().numpy()
        parts = () if errors is None else errors.parts()
        return ids, scores, *(rows[:, part].square().sum(dim=1).cpu().numpy() for part in parts)

    scored = starmap(scored_block, search.blocks())
    return _values(scored, query, errors, catalog, where)


def _values(
    blocks: Iterable[_Scored],
    query: NDArray[np.float32],
    errors: SketchError | None,
    catalog: Snapshot,
    where: str | None,
) -> Values:
    """Scored blocks after each other, of samples that meet `where`, with standard errors."""
    columns = [np.concatenate(column) for column in zip(*blocks, strict=True)]
    if not columns:
        return NO_VALUES
    ids, scores, *squares = columns
    stderrs = np.full(len(ids), np.nan, np.float32)
    if errors is not None:
        stderrs = errors.of_squares(query, squares, scores)
    if where is None:
        return Values(ids, scores, stderrs)
    wanted = np.isin(ids, catalog.live_ids(where), assume_unique=True)
    return Values(ids[wanted], scores[wanted], stderrs[wanted])


def streamed_values(
    catalog: Snapshot,
    reader: ModelReader,
    target: ValidationGradient,
    *,
    where: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Values:
    """The exact score of every live sample, or of those that meet `where`, in order of id.

    Raises BadSampleError, naming the sample, where its text is lost or cannot be valued.
    """
    ids = catalog.live_ids(where)
    scores = np.empty(len(ids), dtype=np.float32)
    for start in range(0, len(ids), EXACT_SAMPLES):
        chunk = slice(start, start + EXACT_SAMPLES)
        stored = catalog.samples(ids[chunk])
        refuse_other_ids(np.array(sorted(stored), dtype=np.int64), ids[chunk])
        prepared = [prepare_stored(reader, stored[id_]) for id_ in ids[chunk].tolist()]

        def scored(progress: Progress, before: int = start) -> None:
            on_progress(Progress("scoring", before + progress.done, len(ids)))

        scores[chunk] = exact_values(reader, target, prepared, on_progress=scored)
    return Values(ids=ids, scores=scores, stderrs=np.zeros(len(ids), dtype=np.float32))


def named_values(
    catalog: Snapshot, scored: Values, where: str | None = None
) -> Iterator[dict[str, list[object]]]:
    """Values with keys and sources beside them, as columns, a bounded number of rows at a time.

    `catalog` is a snapshot of the state that was scored, and `where` the condition for it.
    """
    identities = catalog.identities(where)
    for start in range(0, len(scored.ids), EXPORTED_ROWS):
        chunk = slice(start, start + EXPORTED_ROWS)
        named = list(islice(identities, EXPORTED_ROWS))
        refuse_other_ids(np.array([id_ for id_, _, _ in named], np.int64), scored.ids[chunk])
        stderrs = scored.stderrs[chunk]
        yield {
            "id": scored.ids[chunk].tolist(),
            "key": [key for _, key, _ in named],
            "source": [source for _, _, source in named],
            "score": scored.scores[chunk].tolist(),
            "stderr": [None if np.isnan(s) else s for s in stderrs.tolist()],
        }
