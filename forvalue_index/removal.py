"""Which samples to remove: named ones, or all of a source, or all that meet a condition."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.snapshot import Snapshot


def chosen_ids(
    snapshot: Snapshot,
    names: Sequence[str | int] = (),
    *,
    source: str | None = None,
    where: str | None = None,
) -> NDArray[np.int64]:
    """Ids of the live samples with these keys or ids, or of those of a source and a condition.

    A name is a key first, and live samples come first: key, number, removed key, removed number.

    Raises:
        UsageError: nothing is chosen, or names are mixed with a source or a condition.
        CatalogError: there is no sample of a name, or no source.
        FilterError: the condition is malformed or names an unknown column.
    """
    described = source is not None or where is not None
    if bool(names) == described:
        raise UsageError(
            "say which samples to remove: either by key or number, or with --source and --where"
        )
    if described:
        return snapshot.live_ids(where, source=source)
    found = {snapshot.sample_id(str(name)) for name in names}
    return snapshot.live_among(found)
