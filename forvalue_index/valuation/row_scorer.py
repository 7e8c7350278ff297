"""Scores of the rows of one state of an index, in one way."""

from __future__ import annotations

import numpy as np

from forvalue_index.exceptions import BrokenIndexError, BusyIndexError
from forvalue_index.gradients.sketch_error import SketchError
from forvalue_index.search.contract import Ids, Rows, SearchIndex
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.segments import CURE
from forvalue_index.store.store import Storage
from forvalue_index.store.view import View
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import ValidationRows
from forvalue_index.valuation.whitening import WHITENING_ROWS, Whitening


class RowScorer:
    """Scores one state of an index in one way, with a search index over its rows."""

    def __init__(self, storage: Storage, view: View, scoring: Scoring, search: SearchIndex) -> None:
        self.manifest = storage.manifest
        self.path = storage.path
        self.scoring = scoring
        self.search = search
        self.version = view.version
        self._errors = storage.frozen.sketch_error(scoring.geometry)
        self._whitening: Whitening | None = None
        if scoring.whiten and len(search):
            self._whitening = whitening_of(view, scoring)

    @property
    def errors(self) -> SketchError | None:
        """How far sketched scores are off; None where they are whitened."""
        return self._errors if self._whitening is None else None

    @property
    def exact(self) -> bool:
        """Whether rows are the gradients themselves, and their scores exact."""
        return not self._errors.widths and self._whitening is None

    def queries(self, embedded: ValidationRows | None, count: int) -> Rows:
        """The mean of a validation set and then its samples, the first `count` of them."""
        if embedded is None:
            return np.zeros((count, self.manifest.row_width), np.float32)
        queries = np.concatenate([embedded.mean[None], embedded.rows])[:count]
        return queries if self._whitening is None else self._whitening(queries)

    def standard_errors(self, query: Rows, ids: Ids) -> list[float | None]:
        """Those of the sketched scores of samples; None where scores are whitened."""
        if self._whitening is not None:
            return [None] * len(ids)
        errors: list[float | None] = self._errors.standard_errors(
            query, self.search.rows(ids)
        ).tolist()
        return errors


def whitening_of(view: View, scoring: Scoring) -> Whitening:
    """The whitening by a sample of the rows of an index."""
    geometry, normalize = scoring.geometry, scoring.normalize
    rows = view.some_rows(geometry, WHITENING_ROWS, normalize=normalize)
    return Whitening(rows, ridge=view.manifest.settings.damping)


def refuse_filled(catalog: Snapshot) -> None:
    """Raise BusyIndexError where an index that was empty a moment ago has samples now."""
    if catalog.count():
        raise BusyIndexError(
            "The first samples came into the index while it was asked; run the same again"
        )


def refuse_other_ids(ids: Ids, wanted: Ids) -> None:
    """Raise BrokenIndexError where the catalog has other samples than asked for."""
    if not np.array_equal(ids, wanted):
        raise BrokenIndexError(f"The catalog does not find all samples by their ids; {CURE}")
