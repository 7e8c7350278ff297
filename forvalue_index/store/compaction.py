"""Compaction: small segments become large ones, and removed rows go.

Each group of neighbours is written as one new segment, which then takes their place in one
transaction. Readers that have the old files open keep them; what stops a compaction leaves whole
segments of the old kind or of the new one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.records import StoredSegment
from forvalue_index.store.results import CompactReport
from forvalue_index.store.rows import StoredRows, joined
from forvalue_index.store.store import Storage

TARGET_BYTES = 2**28
# Bounds the variables in one statement.
MAX_MERGED = 500


class Group(NamedTuple):
    """Neighbours that become one segment; `removed` of their rows are dropped."""

    segments: tuple[StoredSegment, ...]
    removed: int


def compact(storage: Storage, *, on_progress: OnProgress = ignore_progress) -> CompactReport:
    """Merge small segments and drop removed rows. The writer's lock is held.

    Raises BrokenIndexError where a segment is damaged; what was merged before stays merged.
    """
    with storage.catalog.snapshot() as snapshot:
        before, removed = snapshot.segments(), snapshot.removed_ids()
    groups = plan_groups(before, removed, target_bytes=TARGET_BYTES)
    for done, group in enumerate(groups):
        on_progress(Progress("compacting", done, len(groups)))
        _rewrite(storage, group, removed)
    on_progress(Progress("compacting", len(groups), len(groups)))
    with storage.catalog.snapshot() as snapshot:
        after = snapshot.segments()
        if storage.manifest.settings.media == "copy":
            _forget_images(storage, snapshot)
    return CompactReport(
        segments_before=len(before),
        segments_after=len(after),
        bytes_before=sum(segment.file.n_bytes for segment in before),
        bytes_after=sum(segment.file.n_bytes for segment in after),
        dropped=sum(group.removed for group in groups),
    )


def plan_groups(
    segments: Sequence[StoredSegment], removed: NDArray[np.int64], *, target_bytes: int
) -> list[Group]:
    """Neighbours that together fit into a segment, where merging them, or dropping rows, helps."""
    starts = [segment.first_id for segment in segments]
    dropped = np.diff(np.searchsorted(removed, [*starts, np.iinfo(np.int64).max])).tolist()
    groups: list[Group] = []
    open_group, n_bytes = Group((), 0), 0.0
    for segment, n_removed in zip(segments, dropped, strict=True):
        kept_bytes = segment.file.n_bytes * (1 - n_removed / max(1, segment.file.n_rows))
        full = n_bytes + kept_bytes > target_bytes or len(open_group.segments) == MAX_MERGED
        if open_group.segments and full:
            groups.append(open_group)
            open_group, n_bytes = Group((), 0), 0.0
        open_group = Group((*open_group.segments, segment), open_group.removed + n_removed)
        n_bytes += kept_bytes
    groups.append(open_group)
    return [group for group in groups if group.removed or len(group.segments) > 1]


def _forget_images(storage: Storage, snapshot: Snapshot) -> None:
    """Delete copies of images that no sample has any more, where all samples can be read."""
    digests: set[str] = set()
    for _, stored in snapshot.every_sample():
        if isinstance(stored, str):
            return
        digests.update(image.digest for image in stored.sample.images)
    storage.media.forget_all_but(digests)


def _rewrite(storage: Storage, group: Group, removed: NDArray[np.int64]) -> None:
    files = [storage.segments.open(segment) for segment in group.segments]
    rows: dict[str, StoredRows] = {}
    for geometry in storage.manifest.settings.geometries:
        blocks = [b.without(removed) for file in files for b in file.blocks(geometry)]
        ids = np.concatenate([block.ids for block in blocks])
        rows[geometry] = joined([block.rows for block in blocks])
    storage.replace([segment.file.uid for segment in group.segments], ids, rows)
