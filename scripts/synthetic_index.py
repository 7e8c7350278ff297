"""Indexes of many rows without a model, for benchmarks of search and of values.

Rows are what sketched gradients look like: few strong directions, with energies that fall off as a
power, noise in all others, a common part, and norms with a long tail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.settings import ModelIdentity, Settings
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.manifest import is_index
from forvalue_index.store.store import Storage

SEGMENT = 8192
DIRECTIONS, NOISE, TAIL = 256, 0.35, 0.6
MEASURED = SampleStatistics(
    n_tokens=20, n_label_tokens=10, truncated=False, loss=2.0, label_error_mass=0.8, norm=1.0
)
MODEL = ModelIdentity("0" * 32, "0" * 32, vocab_size=49_152, hidden_size=576)


class Rows:
    """Draws rows, always the same ones for a dimension."""

    def __init__(self, dim: int) -> None:
        random = torch.Generator().manual_seed(0)
        energy = torch.arange(1, DIRECTIONS + 1).float() ** -0.6
        self._directions = torch.randn(DIRECTIONS, dim, generator=random) * energy[:, None]
        self._common = 1.5 * torch.randn(dim, generator=random)
        self._dim = dim

    def draw(self, count: int, seed: int) -> Tensor:
        """`count` rows [row, dim], of norms near those of a small model's gradients."""
        random = torch.Generator().manual_seed(seed + 1)
        weights = torch.randn(count, DIRECTIONS, generator=random)
        noise = torch.randn(count, self._dim, generator=random)
        rows = (weights @ self._directions).add_(noise, alpha=NOISE).add_(self._common)
        norms = torch.exp(TAIL * torch.randn(count, 1, generator=random))
        return rows.mul_(norms)


def synthetic_index(
    work: Path, n_rows: int, dim: int, *, row_dtype: str, report: Callable[[str], None]
) -> Storage:
    """The index of so many rows within `work`, made or finished where it is not."""
    path = work / f"rows-{n_rows}-{dim}-{row_dtype}"
    if is_index(path):
        storage = Storage.open(path)
    else:
        settings = Settings("synthetic", dim=dim, row_dtype=row_dtype, max_length=64)
        storage = Storage.create(path, settings, model=MODEL, catalog="sqlite")
    grow(storage, n_rows, report=report)
    return storage


def grow(storage: Storage, n_rows: int, *, report: Callable[[str], None]) -> None:
    """Add rows to an index until it has so many, in segments of 8,192 where they are many."""
    rows = Rows(storage.manifest.row_width)
    with storage.catalog.snapshot() as snapshot:
        done = snapshot.count()
    for first in range(done, n_rows, SEGMENT):
        count = min(SEGMENT, n_rows - first)
        samples = [_sample(first + i) for i in range(count)]
        statistics = [MEASURED] * count
        storage.append(storage.quantized({"raw": rows.draw(count, first)}), samples, statistics)
        report(f"{first + count:,} rows of {n_rows:,}")


def _sample(number: int) -> Sample:
    return Sample((Message("text", f"text {number}"),), f"part-{number % 10}", number + 1)
