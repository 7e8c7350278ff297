"""Self-influence: the value of a sample for itself (TracIn, Pruthi et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.store.view import View


def self_influences(view: View, ids: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """By geometry, inner products of rows with themselves, of samples whose ids are in order.

    TracIn (Pruthi et al. 2020, section 4.1) finds mislabelled samples by them.
    """
    wanted = np.asarray(ids, dtype=np.int64)
    by_geometry: dict[str, NDArray[np.float64]] = {}
    for geometry in view.manifest.settings.geometries:
        products = np.empty(len(wanted))
        by_geometry[geometry] = products
        for block in view.blocks(geometry):
            here = np.isin(block.ids, wanted)
            rows = block.rows.numpy()[here].astype(np.float64)
            products[np.searchsorted(wanted, block.ids[here])] = (rows * rows).sum(axis=1)
    return by_geometry
