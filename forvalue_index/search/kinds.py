"""The kinds of search, and which one an index of some size gets."""

from __future__ import annotations

from forvalue_index.settings import require_one_of

FLAT, RABITQ, IVF_RABITQ = SEARCH_KINDS = ("flat", "rabitq", "ivf-rabitq")
# From so many rows on, one bit a float is searched. Lists of them are for whoever tuned them: with
# inner products and norms of a long tail, the lists near a query do not hold its best rows.
RABITQ_FROM = 50_000


def search_kind(n_rows: int, wanted: str | None = None) -> str:
    """The kind of search index for so many rows, unless one is asked for."""
    if wanted is not None:
        require_one_of("search", wanted, SEARCH_KINDS)
        return wanted
    return FLAT if n_rows < RABITQ_FROM else RABITQ
