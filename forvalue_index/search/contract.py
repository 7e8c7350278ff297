"""What every search index does, and what tuning one reports."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

Ids = NDArray[np.int64]
Rows = NDArray[np.float32]
Scores = NDArray[np.float32]


@runtime_checkable
class SearchIndex(Protocol):
    """Rows of float32 under int64 ids. Scores are signed inner products: larger helps more.

    `kind` says what finds them, as `--search` does.
    """

    @property
    def kind(self) -> str:
        """One of SEARCH_KINDS."""
        ...

    def search(self, queries: Rows, k: int, allowed: Ids | None = None) -> list[tuple[Ids, Scores]]:
        """Ids and scores of the k best rows for each query [q, dim], among those of allowed ids.

        Best first, ties by id, never padded: fewer than k come back where there are fewer rows.
        The most harmful rows are the best rows for the negated query. Scores are those of the rows
        as they are stored, whatever found them. Refuses NaN and infinity, and another width.
        """
        ...

    def rows(self, ids: Ids) -> Rows:
        """The rows of known ids, in their order, [n, dim]."""
        ...

    def __len__(self) -> int: ...


@dataclass(frozen=True)
class TuneTrial:
    """One way to search codes: `refine` candidates for each answer, `probes` lists of them.

    `top` and `bottom` are the recall at the helpful and the harmful end; `seconds` a query.
    """

    refine: int
    probes: int | None
    top: float
    bottom: float
    seconds: float


@dataclass(frozen=True)
class TuneReport:
    """What `tune` tried on `queries` rows of an index for `answers` answers, and what it keeps."""

    search: str
    geometry: str
    normalized: bool
    rows: int
    queries: int
    answers: int
    recall: float
    trials: tuple[TuneTrial, ...]
    chosen: TuneTrial | None
