"""The search of an open index: made when it is first asked, and kept until the index changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, cast

from forvalue_index.devices import gpus, is_out_of_memory, release_memory
from forvalue_index.progress import OnProgress
from forvalue_index.search.building import RowKind, search_index
from forvalue_index.search.contract import SearchIndex, TuneReport
from forvalue_index.search.gpu import GpuIndex, rows_on_gpus
from forvalue_index.search.kinds import FLAT
from forvalue_index.search.tuning import tune
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.store import Storage
from forvalue_index.store.view import View
from forvalue_index.valuation.row_scorer import RowScorer
from forvalue_index.valuation.scoring import Scoring

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
Build = Callable[[View, Scoring], SearchIndex | None]


class HeldSearch:
    """One scorer of rows at a time, as each holds rows or codes in memory."""

    def __init__(self, storage: Storage, on_progress: OnProgress) -> None:
        self._storage = storage
        self._on_progress = on_progress
        self._gpus_suffice = True
        self._held: dict[Scoring, RowScorer] = {}

    def clear(self) -> None:
        """Let go of what is held in memory, on GPUs too."""
        self._held = {}

    def tune(self, rows: RowKind, kind: str, *, recall: float) -> TuneReport:
        """Find and keep the cheapest parameters that reach a recall. Raises as `tuning.tune`."""
        with self._storage.view() as view:
            report = tune(view, rows, kind, recall=recall, on_progress=self._on_progress)
        self.clear()  # it searches as it did before
        return report

    @contextmanager
    def current(self, scoring: Scoring) -> Iterator[tuple[RowScorer, Snapshot]]:
        """A scorer over the index as it is now, and a snapshot of the same state."""
        with self._current(scoring, self._search_index) as current:
            yield cast("tuple[RowScorer, Snapshot]", current)  # there is always some search index

    @contextmanager
    def on_gpus(self, scoring: Scoring) -> Iterator[tuple[RowScorer, GpuIndex, Snapshot] | None]:
        """As `current`, of rows in the memory of GPUs; None where they are not to be there."""
        if scoring.search not in (None, FLAT) or not self._gpus_suffice or not gpus():
            yield None
            return
        with self._current(scoring, self._rows_on_gpus) as current:
            if current is None or not isinstance(search := current[0].search, GpuIndex):
                yield None
            else:
                yield current[0], search, current[1]

    def with_or_without_gpus(self, scoring: Scoring, ask: Callable[[], Result]) -> Result:
        """What `ask` gives of scores of a kind, where need be once more on the CPU.

        Where the memory of the GPUs is too small for it, the CPU searches from then on.
        """
        try:
            return ask()
        except (MemoryError, RuntimeError) as error:
            if not self._on_gpus(scoring) or not is_out_of_memory(error):
                raise
        # Only here, where the error has let go of what it held.
        LOG.warning("No memory on the GPUs to score rows; going on with the CPU")
        self._gpus_suffice = False
        self.clear()
        release_memory()
        return ask()

    def _on_gpus(self, scoring: Scoring) -> bool:
        scorer = self._held.get(scoring)
        return scorer is not None and isinstance(scorer.search, GpuIndex)

    @contextmanager
    def _current(
        self, scoring: Scoring, build: Build
    ) -> Iterator[tuple[RowScorer, Snapshot] | None]:
        with self._storage.catalog.snapshot() as snapshot:
            known = self._held.get(scoring)
            if known is not None and known.version == snapshot.version():
                yield known, snapshot
                return
        # None is held while the next is made.
        del known
        self.clear()
        with self._storage.view() as view:
            search = build(view, scoring)
            if search is None:
                yield None
                return
            scorer = RowScorer(self._storage, view, scoring, search)
            self._held = {scoring: scorer}
            yield scorer, view.catalog

    def _search_index(self, view: View, scoring: Scoring) -> SearchIndex:
        return search_index(
            view,
            RowKind(scoring.geometry, scoring.normalize),
            kind=scoring.search,
            on_gpus=self._gpus_suffice,
            on_progress=self._on_progress,
        )

    def _rows_on_gpus(self, view: View, scoring: Scoring) -> GpuIndex | None:
        return rows_on_gpus(
            view, scoring.geometry, normalize=scoring.normalize, on_progress=self._on_progress
        )
