"""What a score is: the geometry, cosines, whitening, and how rows are searched."""

from __future__ import annotations

from dataclasses import dataclass


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
