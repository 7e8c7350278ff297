"""What a score is: the geometry, cosines, whitening, and how rows are searched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import UsageError
from forvalue_index.settings import GEOMETRIES


@dataclass(frozen=True)
class Scoring:
    """What a score is: the inner product in a geometry, or a cosine where normalised.

    A whitened query is multiplied by (R + L I)^-1 in the space of rows, see `whitening`. `search`
    is the kind of index that candidates come from; None chooses one by the number of rows.
    """

    geometry: str = "raw"
    normalize: bool = False
    whiten: bool = False
    search: str | None = None


def wanted_scoring(
    path: Path, held: Sequence[str], how: Mapping[str, Any], *, exact: bool, rows: bool
) -> Scoring:
    """What is asked of the index at `path`, by default in the first of the geometries it holds.

    Raises UsageError where there is no such geometry, or no `rows` of it, or a whitened `exact`
    score is asked for.
    """
    chosen = Scoring(**{**how, "geometry": how.get("geometry") or held[0]})
    if chosen.geometry not in GEOMETRIES:
        raise UsageError(
            f"--geometry cannot be {chosen.geometry!r}; use one of {', '.join(GEOMETRIES)}"
        )
    if rows and chosen.geometry not in held:
        raise UsageError(
            f"--geometry {chosen.geometry}: {path} has rows of {', '.join(held)}; use one of "
            "these, exact scores, or build an index with it"
        )
    if chosen.whiten and exact:
        raise UsageError(
            "--whiten changes a query in the space of rows, which exact scores do not have; leave "
            "one of them out"
        )
    return chosen
