"""What is embedded waits here, batch by batch, and is stored together as one segment.

It is stored after whole batches: before the next one would end later than COMMIT_S after the last
time, or after the first batch of an `add` began, or where COMMIT_BYTES are full.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from forvalue_index.ingest.tally import Tally
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Sample
from forvalue_index.store.durable import interrupts_held
from forvalue_index.store.rows import StoredRows, joined
from forvalue_index.store.store import Storage

COMMIT_S = 30.0
COMMIT_BYTES = 2**26


@dataclass(frozen=True, eq=False)
class EmbeddedSamples:
    """Samples as they are stored, and their `rows` [sample, dim] in each geometry.

    `positions` are those in the order of reading.
    """

    positions: Sequence[int]
    samples: Sequence[Sample]
    statistics: Sequence[SampleStatistics]
    rows: Mapping[str, StoredRows]

    def __len__(self) -> int:
        return len(self.positions)

    def in_order_of_reading(self) -> EmbeddedSamples:
        """The same samples, by position."""
        order = np.argsort(self.positions)
        return EmbeddedSamples(
            positions=[self.positions[i] for i in order],
            samples=[self.samples[i] for i in order],
            statistics=[self.statistics[i] for i in order],
            rows={name: rows[torch.from_numpy(order)] for name, rows in self.rows.items()},
        )


class Unstored:
    """The embedded samples of one `add` that no segment holds yet."""

    def __init__(self, storage: Storage, tally: Tally) -> None:
        self._storage = storage
        self._tally = tally
        self._batches: list[EmbeddedSamples] = []
        self._since: float | None = None
        # By position, the ids of samples that new ones take the place of.
        self.replaced: dict[int, int] = {}

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def append(self, batch: EmbeddedSamples, seconds: float) -> None:
        """Keep a batch that took so many seconds until it is stored."""
        if self._since is None:
            self._since = time.perf_counter() - seconds
        if len(batch):
            self._batches.append(batch)

    def is_due(self, batch_s: float = 0.0) -> bool:
        """Whether to store them now, if the next batch takes so many seconds."""
        n_bytes = len(self) * self._storage.manifest.sample_bytes
        seconds = 0.0 if self._since is None else time.perf_counter() - self._since
        return n_bytes >= COMMIT_BYTES or seconds + batch_s > COMMIT_S

    def store(self) -> None:
        """Store them as one segment, if there are any."""
        if not self._batches:
            return
        with interrupts_held():
            # No batch is held on to, as its rows are in the segment.
            self._batches, segment = [], _joined(self._batches).in_order_of_reading()
            replaced = [self.replaced[at] for at in segment.positions if at in self.replaced]
            self._storage.append(
                segment.rows, segment.samples, segment.statistics, replaced=replaced
            )
            self._tally.relabelled += len(replaced)
            self._count(segment.statistics)
        self._since = time.perf_counter()

    def _count(self, statistics: Sequence[SampleStatistics]) -> None:
        self._tally.segments += 1
        self._tally.added += len(statistics)
        self._tally.truncated += sum(measured.truncated for measured in statistics)
        self._tally.label_tokens += sum(measured.n_label_tokens for measured in statistics)


def _joined(batches: Sequence[EmbeddedSamples]) -> EmbeddedSamples:
    return EmbeddedSamples(
        positions=[position for batch in batches for position in batch.positions],
        samples=[sample for batch in batches for sample in batch.samples],
        statistics=[measured for batch in batches for measured in batch.statistics],
        rows={name: joined([batch.rows[name] for batch in batches]) for name in batches[0].rows},
    )
