"""What all search indexes do alike: check what they are given, and rank rows by exact scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch

from forvalue_index.exceptions import UsageError
from forvalue_index.search.contract import Ids, Scores
from forvalue_index.search.faiss_library import faiss_library

Ranked = tuple[Ids, Scores]
FetchRows = Callable[[Ids], Scores]

# So few allowed rows are scored one and all.
SCANNED = 4096
FETCHED = 4096


@runtime_checkable
class HeldRows(Protocol):
    """Rows of width `dim` under `ids`."""

    dim: int
    ids: Ids

    def rows(self, ids: Ids) -> Scores:
        """The rows of known ids, in their order."""
        ...


def checked(rows: Scores, dim: int, k: int = 1) -> Scores:
    """Rows or queries [n, dim] as FAISS wants them. Raises UsageError for what it lets pass."""
    if k < 1:
        raise UsageError(f"k is {k}; ask for at least 1 row")
    if rows.ndim != 2 or rows.shape[1] != dim:
        raise UsageError(f"rows of shape {rows.shape} in an index of width {dim}")
    if not np.isfinite(rows).all():
        raise UsageError("a row holds NaN or infinity; find the sample and leave it out")
    return np.ascontiguousarray(rows, dtype=np.float32)


def best(queries: Scores, ids: Ids, fetch: FetchRows, k: int) -> list[Ranked]:
    """The k best of the rows of some ids for each query, best first, ties by id.

    Scores depend on the row alone. Few rows are fetched at a time, however many ids there are.
    """
    scores = np.empty((len(queries), len(ids)), dtype=np.float32)
    for start in range(0, len(ids), FETCHED):
        chunk = slice(start, start + FETCHED)
        rows = fetch(ids[chunk])
        for query_scores, query in zip(scores, queries, strict=True):
            query_scores[chunk] = (rows * query).sum(axis=1, dtype=np.float64)
    orders = [np.lexsort((ids, -query_scores))[:k] for query_scores in scores]
    return [(ids[order], scores[i, order]) for i, order in enumerate(orders)]


def begun(
    index: HeldRows, queries: Scores, k: int, allowed: Ids | None, *, most: int
) -> tuple[Scores, Ids, list[Ranked] | None]:
    """What every search begins with: the queries as FAISS wants them, the ids to search among.

    And the answers where there are at most so many ids: their rows are scored one and all.
    """
    queries = checked(queries, index.dim, k)
    among = index.ids if allowed is None else np.intersect1d(index.ids, allowed)
    if len(among) > most:
        return queries, among, None
    if not len(among):
        return queries, among, [(np.empty(0, np.int64), np.empty(0, np.float32)) for _ in queries]
    return queries, among, best(queries, among, index.rows, k)


@contextmanager
def whole_products() -> Iterator[None]:
    """Within it, float32 is multiplied as float32, whatever a program has allowed torch."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def selector_of(ids: Ids, allowed: Ids) -> Any:
    """What lets FAISS look at the positions of allowed ids alone, among `ids` in order."""
    return faiss_library().IDSelectorBitmap(
        np.packbits(np.isin(ids, allowed, assume_unique=True), bitorder="little")
    )
