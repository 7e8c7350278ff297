"""The valuer of an open index: made when it is first asked, and kept until the index changes."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar, cast

from forvalue_index.devices import none_if_out_of_memory
from forvalue_index.progress import OnProgress
from forvalue_index.search.building import RowKind, search_index
from forvalue_index.search.contract import SearchIndex
from forvalue_index.search.gpu import GpuIndex, rows_on_gpus
from forvalue_index.search.kinds import FLAT
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.store import Storage
from forvalue_index.store.view import View
from forvalue_index.valuation.query import Valuer
from forvalue_index.valuation.scoring import Scoring

LOG = logging.getLogger(__name__)
Result = TypeVar("Result")
Work = Callable[[Valuer, Snapshot], Result]
GpuWork = Callable[[Valuer, GpuIndex, Snapshot], Result]


class Valuers:
    """One valuer at a time, as each holds rows or codes in memory."""

    def __init__(self, storage: Storage, on_progress: OnProgress) -> None:
        self._storage = storage
        self._on_progress = on_progress
        self._gpus_suffice = True
        self._held: dict[Scoring, Valuer] = {}

    def clear(self) -> None:
        """Let go of what is held in memory, on GPUs too."""
        self._held = {}

    @contextmanager
    def current(self, chosen: Scoring) -> Iterator[tuple[Valuer, Snapshot]]:
        """A valuer over the index as it is now, and a snapshot of the same state."""
        with self._current(chosen, self._search_index) as found:
            yield cast("tuple[Valuer, Snapshot]", found)  # there is always some search index

    def ask(self, chosen: Scoring, work: Work[Result]) -> Result:
        """What `work`, which gives no None, makes of the current valuer.

        Where the memory of the GPUs is too small for it, the CPU searches from then on.
        """
        with self.current(chosen) as (valuer, snapshot):
            if not isinstance(valuer.search, GpuIndex):
                return work(valuer, snapshot)
            found = none_if_out_of_memory(partial(work, valuer, snapshot))
        if found is not None:
            return found
        del valuer
        self._leave_gpus()
        with self.current(chosen) as (valuer, snapshot):
            return work(valuer, snapshot)

    def ask_gpus(self, chosen: Scoring, work: GpuWork[Result]) -> Result | None:
        """What `work` makes of rows in the memory of GPUs; None where they are not there."""
        if chosen.search not in (None, FLAT):
            return None
        with self._current(chosen, self._rows_on_gpus) as found:
            if found is None or not isinstance(search := found[0].search, GpuIndex):
                return None
            result = none_if_out_of_memory(partial(work, found[0], search, found[1]))
        if result is None:
            del found, search
            self._leave_gpus()
        return result

    def _leave_gpus(self) -> None:
        LOG.warning("No memory on the GPUs to score rows; going on with the CPU")
        self._gpus_suffice = False
        self.clear()

    @contextmanager
    def _current(
        self, chosen: Scoring, make: Callable[[View, Scoring], SearchIndex | None]
    ) -> Iterator[tuple[Valuer, Snapshot] | None]:
        with self._storage.catalog.snapshot() as snapshot:
            known = self._held.get(chosen)
            if known is not None and known.version == snapshot.version():
                yield known, snapshot
                return
        # None is held while the next is made.
        del known
        self.clear()
        with self._storage.view() as view:
            search = make(view, chosen)
            if search is None:
                yield None
                return
            valuer = Valuer(self._storage, view, chosen, search)
            self._held = {chosen: valuer}
            yield valuer, view.catalog

    def _search_index(self, view: View, chosen: Scoring) -> SearchIndex:
        return search_index(
            view,
            RowKind(chosen.geometry, chosen.normalize),
            kind=chosen.search,
            on_gpus=self._gpus_suffice,
            on_progress=self._on_progress,
        )

    def _rows_on_gpus(self, view: View, chosen: Scoring) -> GpuIndex | None:
        if not self._gpus_suffice:
            return None
        return rows_on_gpus(
            view, chosen.geometry, normalize=chosen.normalize, on_progress=self._on_progress
        )
