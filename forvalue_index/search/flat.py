"""`flat`: every row is scored, so the answer is exact for the rows as they are stored."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.search import ranking
from forvalue_index.search.contract import Ids, Scores
from forvalue_index.search.faiss_library import faiss_library
from forvalue_index.search.kinds import FLAT
from forvalue_index.search.ranking import (
    Ranked,
    begun,
    best,
    checked,
    selector_of,
    whole_products,
)

# What the rounding of a float32 score can reach, relative to the product of the two norms.
ROUNDING = 1e-6
# From so many queries on products of matrices are faster, with so many scores at once.
MANY = 32
SCORES = 2**26
BLOCK_ROWS = 4096


class FlatIndex:
    """Rows in memory, in the precision they are stored in: float32, or bfloat16 at half of it.

    FAISS keeps bfloat16 as a scalar quantizer whose codes are the upper halves of the floats, so
    rows that come from bfloat16 segments lose nothing.
    """

    kind = FLAT

    def __init__(self, dim: int, *, row_dtype: str = "float32") -> None:
        faiss = faiss_library()
        if row_dtype == "bfloat16":
            self._index = faiss.IndexScalarQuantizer(
                dim, faiss.ScalarQuantizer.QT_bf16, faiss.METRIC_INNER_PRODUCT
            )
        else:
            self._index = faiss.IndexFlatIP(dim)
        self.dim = dim
        self.ids: Ids = np.empty(0, dtype=np.int64)
        self._order: Ids = self.ids  # positions in order of id, made when first needed
        self._known: set[int] = set()
        self._longest = 0.0

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, ids: Ids, rows: Scores) -> None:
        """Add rows [n, dim]. Raises UsageError for what FAISS would accept in silence."""
        rows = checked(rows, self.dim)
        if len(ids) != len(rows):
            raise UsageError(f"{len(ids)} ids for {len(rows)} rows; give one id a row")
        new = set(ids.tolist())
        repeated = sorted(new & self._known)
        if repeated:
            raise UsageError(f"id {repeated[0]} is in the index already; remove it first")
        if len(new) < len(ids):
            raise UsageError(f"{len(ids) - len(new)} of {len(ids)} ids repeat; give one id a row")
        self._index.add(rows)
        self._longest = max(self._longest, _largest_norm(rows))
        self.ids = np.concatenate([self.ids, ids])
        self._known |= new

    def search(self, queries: Scores, k: int, allowed: Ids | None = None) -> list[Ranked]:
        """Ids and scores of the k best rows for each query: best first, ties by id."""
        most = 0 if allowed is None else ranking.SCANNED
        queries, among, answers = begun(self, queries, k, allowed, most=most)
        if answers is not None:
            return answers
        if len(queries) >= MANY:
            hidden = None if allowed is None else ~np.isin(self.ids, among, assume_unique=True)
            together = max(1, SCORES // len(self))
            parts = (queries[i : i + together] for i in range(0, len(queries), together))
            k = min(k, len(among))
            return [one for part in parts for one in self._multiplied(part, k, hidden)]
        chosen = None
        if allowed is not None:
            chosen = faiss_library().SearchParameters(sel=selector_of(self.ids, among))
        fetched = min(k + 1, len(among))
        scores, positions = self._index.search(queries, fetched, params=chosen)
        return [
            self._ranked(query, k, scores[i], positions[i], len(among), chosen)
            for i, query in enumerate(queries)
        ]

    def rows(self, ids: Ids) -> Scores:
        """The rows of known ids, in their order."""
        if len(self._order) < len(self):
            self._order = np.argsort(self.ids)
        positions = self._order[np.searchsorted(self.ids, ids, sorter=self._order)]
        rows: Scores = self._index.reconstruct_batch(positions)
        return rows

    def _multiplied(
        self, queries: Scores, k: int, hidden: NDArray[np.bool_] | None
    ) -> list[Ranked]:
        """As `_ranked` of a search, by products of matrices, as FAISS takes bfloat16 singly."""
        asked, scores = torch.from_numpy(queries), torch.empty(len(queries), len(self))
        with whole_products():
            for start in range(0, len(self), BLOCK_ROWS):
                count = min(BLOCK_ROWS, len(self) - start)
                rows = torch.from_numpy(self._index.reconstruct_n(start, count))
                scores[:, start : start + count] = asked @ rows.T
        if hidden is not None:
            scores.masked_fill_(torch.from_numpy(hidden), -torch.inf)
        rounding = ROUNDING * self._longest * torch.linalg.vector_norm(asked, dim=1)
        least = scores.topk(k).values[:, -1] - 2 * rounding
        near = (scores >= least[:, None]).numpy()
        return [
            best(query[None], self.ids[is_near], self.rows, k)[0]
            for query, is_near in zip(queries, near, strict=True)
        ]

    def _ranked(
        self,
        query: Scores,
        k: int,
        scores: Scores,
        positions: NDArray[np.int64],
        size: int,
        chosen: Any,
    ) -> Ranked:
        """FAISS orders equal scores at random, so all rows that tie for place k are fetched.

        It scores many queries with BLAS, which rounds the scores of equal rows apart. So what ties
        but for rounding is fetched too, and scored again in a way that depends on the row alone.
        """
        rounding = ROUNDING * self._longest * float(np.linalg.norm(query))
        while len(positions) < size and scores[-1] >= scores[k - 1] - rounding:
            wider = self._index.search(query[None], min(2 * len(positions), size), params=chosen)
            scores, positions = wider[0][0], wider[1][0]
        return best(query[None], self.ids[positions], self.rows, k)[0]


def _largest_norm(rows: Scores) -> float:
    return float(np.linalg.norm(rows, axis=1).max(initial=0.0))
