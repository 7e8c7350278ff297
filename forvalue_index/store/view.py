"""One committed state of an index, for readers: its catalog and its mapped segments."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.manifest import Manifest
from forvalue_index.store.rows import float_rows, unit_rows
from forvalue_index.store.segments import BLOCK_ROWS, SegmentFile, StoredBlock

Result = TypeVar("Result")
# What a core works on before it asks for more.
PART_ROWS = 4096


class Block(NamedTuple):
    """Live rows in order of id, in float32: `ids` [row], `rows` [row, dim]."""

    ids: NDArray[np.int64]
    rows: Tensor


class View:
    """One state of an index: what was committed when it was opened, whatever comes after."""

    def __init__(
        self,
        catalog: Snapshot,
        files: Sequence[SegmentFile],
        manifest: Manifest,
        search_path: Path,
    ) -> None:
        self.catalog = catalog
        self.version = catalog.version()
        self.files = files
        self.manifest = manifest
        self.search_path = search_path

    def blocks(self, geometry: str, *, normalize: bool = False) -> Iterator[Block]:
        """All live rows in float32 in order of id, a bounded number at a time.

        With `normalize` each is divided by its norm; rows of zeros stay.
        """
        removed = self.catalog.removed_ids()
        for file in self.files:
            for block in file.blocks(geometry):
                live = block.without(removed)
                yield Block(live.ids, float_rows(live.rows, normalize=normalize))

    def scan(
        self,
        geometry: str,
        work: Callable[[Block], Result],
        *,
        normalize: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> Iterator[Result]:
        """What `work` makes of each of `blocks`, on all cores, in order of id.

        The rows of a block are gone when `work` returns: they lie where those of the next one will,
        as fresh memory for each would take longer than the work.
        """
        spaces: SimpleQueue[Tensor] = SimpleQueue()
        for _ in range(torch.get_num_threads()):
            spaces.put(torch.empty(BLOCK_ROWS, self.manifest.row_width))

        def worked(block: StoredBlock) -> Result:
            space = spaces.get()
            try:
                rows = block.rows.floats(space)
                return work(Block(block.ids, unit_rows(rows) if normalize else rows))
            finally:
                spaces.put(space)

        return self.stored_scan(geometry, worked, "scoring", on_progress)

    def stored_scan(
        self,
        geometry: str,
        work: Callable[[StoredBlock], Result],
        stage: str,
        on_progress: OnProgress = ignore_progress,
    ) -> Iterator[Result]:
        """What `work` makes of all live rows as they are stored, on all cores, in order of id.

        Operations on blocks this small gain nothing from several threads each, so each core works
        on blocks of its own.
        """
        removed = self.catalog.removed_ids()
        total = sum(len(file.ids) for file in self.files)

        def worked(part: tuple[SegmentFile, int]) -> list[Result]:
            file, start = part
            blocks = file.blocks(geometry, start, start + PART_ROWS)
            live = (block.without(removed) for block in blocks) if len(removed) else blocks
            return [work(block) for block in live if len(block.ids)]

        parts = [
            (file, start) for file in self.files for start in range(0, len(file.ids), PART_ROWS)
        ]
        n_threads, done = torch.get_num_threads(), 0
        with one_thread_each(), ThreadPoolExecutor(n_threads) as pool:
            for part, results in zip(parts, pool.map(worked, parts), strict=True):
                yield from results
                done += min(PART_ROWS, len(part[0].ids) - part[1])
                on_progress(Progress(stage, done, total))

    def rows(
        self, geometry: str, ids: NDArray[np.int64], *, normalize: bool = False
    ) -> NDArray[np.float32]:
        """The rows [row, dim] of some ids, in their order, as `blocks` gives them."""
        gathered = torch.empty(len(ids), self.manifest.row_width)
        owners = np.searchsorted([file.ids[-1] for file in self.files], ids)
        for owner in np.unique(owners):
            held = owners == owner
            rows = self.files[owner].rows(geometry, ids[held])
            gathered[torch.from_numpy(held)] = float_rows(rows, normalize=normalize)
        return gathered.numpy()

    def some_rows(
        self, geometry: str, count: int, *, normalize: bool = False
    ) -> Float[Tensor, "row dim"]:
        """At most so many live rows, a seeded random choice in order of id."""
        ids = self.catalog.live_ids()
        if len(ids) > count:
            ids = np.sort(np.random.default_rng(0).choice(ids, count, replace=False))
        blocks = self.blocks(geometry, normalize=normalize)
        chosen = [block.rows[torch.from_numpy(np.isin(block.ids, ids))] for block in blocks]
        return torch.cat([torch.empty(0, self.manifest.row_width), *chosen])


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Within it, an operation of torch runs on the thread that asks for it."""
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(n_threads)
