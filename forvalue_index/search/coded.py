"""`rabitq` and `ivf-rabitq`: one bit a float in memory finds candidates, their rows decide.

A code says roughly what a row's score is. So several times as many candidates as are asked for are
scored again with the rows as they are stored, which are read from the segments: 8 KB a candidate.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.search import ranking
from forvalue_index.search.contract import Ids, Scores
from forvalue_index.search.quantizer import Codes, Quantizer
from forvalue_index.search.ranking import (
    FetchRows,
    Ranked,
    begun,
    best,
    selector_of,
)

# Candidates for each answer, and at least: codes order the harmful end much less well.
REFINE = 32
LEAST_CANDIDATES = 1000


class CodedIndex:
    """Codes of rows in memory, in order of id; `fetch` reads the rows of ids, in their order.

    `refine` candidates for each answer are scored with their rows, of `probes` lists. There is room
    for `expected` codes from the start.
    """

    def __init__(
        self,
        quantizer: Quantizer,
        dim: int,
        fetch: FetchRows,
        *,
        refine: int = REFINE,
        probes: int | None = None,
        expected: int = 0,
    ) -> None:
        self._quantizer, self.dim, self._fetch = quantizer, dim, fetch
        self.refine, self.probes = refine, probes
        self._index: Any = quantizer.empty(expected)
        self.ids: Ids = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def kind(self) -> str:
        """`rabitq` or `ivf-rabitq`."""
        return self._quantizer.kind

    @property
    def n_lists(self) -> int:
        """How many lists codes are in; one where there are none."""
        return len(self._quantizer.centres)

    def add(self, ids: Ids, codes: Codes) -> None:
        """Add the codes [n, code_size] of rows whose ids follow those that are there, in order."""
        if len(ids) != len(codes):
            raise UsageError(f"{len(ids)} ids for {len(codes)} codes; give one id a code")
        last = self.ids[-1:]
        if (np.diff(np.concatenate([last, ids])) <= 0).any():
            raise UsageError("ids of codes must go up; add each row once, in order of id")
        positions = np.arange(len(self), len(self) + len(ids), dtype=np.int64)
        self._quantizer.add(self._index, np.ascontiguousarray(codes), positions)
        self.ids = np.concatenate([self.ids, ids])

    def search(self, queries: Scores, k: int, allowed: Ids | None = None) -> list[Ranked]:
        """Ids and scores of the k best rows for each query: best first, ties by id."""
        candidates = max(self.refine * k, LEAST_CANDIDATES)
        most = max(candidates, ranking.SCANNED)
        queries, among, answers = begun(self, queries, k, allowed, most=most)
        if answers is not None:
            return answers
        selector = None if allowed is None else selector_of(self.ids, among)
        parameters = self._quantizer.parameters(probes=self.probes, selector=selector)
        rotated = self._quantizer.rotation(queries)
        _, positions = self._index.search(rotated, candidates, params=parameters)
        return [self._refined(*pair, k) for pair in zip(queries, positions, strict=True)]

    def rows(self, ids: Ids) -> Scores:
        """The rows of known ids, in their order."""
        return self._fetch(ids)

    def _refined(self, query: Scores, positions: NDArray[np.int64], k: int) -> Ranked:
        # Few probes may find fewer than were asked for, and FAISS pads.
        ids = np.sort(self.ids[positions[positions >= 0]])
        return best(query[None], ids, self._fetch, k)[0]
