"""All live rows of an index in the memory of the GPUs, where there are some that have the room."""

from __future__ import annotations

import logging

from forvalue_index.contracts import OnProgress
from forvalue_index.devices import gpu_room, shared_out
from forvalue_index.memory import unless_memory_runs_out
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.segments import StoredBlock
from forvalue_index.view import View

LOG = logging.getLogger(__name__)


def rows_on_gpus(
    view: View, geometry: str, *, normalize: bool, on_progress: OnProgress
) -> GpuIndex | None:
    """A search index over live rows, or None where no GPU has the room, which a warning says."""
    room = gpu_room()
    if not room:
        return None
    ids, dim = view.catalog.live_ids(), view.manifest.row_width
    exact = view.manifest.settings.row_dtype == "float32"
    row_bytes = GpuIndex.row_bytes(dim, exact=exact)
    shares = shared_out(len(ids), row_bytes, room)

    def filled() -> GpuIndex:
        index = GpuIndex(ids, dim, shares or {}, exact=exact)

        def put(block: StoredBlock) -> None:
            index.put(block.ids, block.rows, normalize=normalize)

        for _ in view.stored_scan(geometry, put, "opening", on_progress):
            pass
        return index

    size = f"{len(ids):,} rows of {len(ids) * row_bytes / 1e9:.1f} GB"
    names = ", ".join(map(str, room))
    if shares is None:
        free = sum(room.values()) / 1e9
        LOG.warning("%s, and room for %.1f GB on %s; searching on the CPU", size, free, names)
        return None
    index = unless_memory_runs_out(filled)
    if index is None:
        LOG.warning("%s, and the memory of %s ran out; searching on the CPU", size, names)
    return index
