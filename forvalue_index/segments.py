"""Segments: immutable blocks of rows on disk, the truth that search indexes are derived from.

`segments/<uid>.safetensors` holds one tensor [row, dim] per geometry. A file is written under a
temporary name, flushed to the disk and renamed, so a segment is there whole or not at all.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.records import SegmentRecord

GEOMETRY = "raw"
BLOCK_ROWS = 8192


class SegmentStore:
    """The segment files of one index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(self, rows: Float[Tensor, "row dim"], *, dtype: torch.dtype) -> SegmentRecord:
        """Write rows, in `dtype`, to a new segment that survives a power cut."""
        uid = uuid.uuid4().hex
        content = save({GEOMETRY: rows.to(dtype).contiguous()})
        write_durably(self._path(uid), content)
        return SegmentRecord(uid, len(rows), len(content), hashlib.sha256(content).hexdigest())

    def blocks(self, uid: str, n_rows: int) -> Iterator[Float[Tensor, "row dim"]]:
        """The rows of a segment in order, as blocks of float32. The file is memory-mapped.

        Raises BrokenIndexError where the file is missing, damaged or of another length.
        """
        path = self._path(uid)
        try:
            with safe_open(path, framework="pt") as file:
                rows = file.get_slice(GEOMETRY)
                if rows.get_shape()[0] != n_rows:
                    raise BrokenIndexError(
                        f"{path} has {rows.get_shape()[0]:,} rows, the catalog says {n_rows:,}; "
                        "restore the file from a backup, or build the index anew"
                    )
                for start in range(0, n_rows, BLOCK_ROWS):
                    yield rows[start : start + BLOCK_ROWS].float()
        except (OSError, SafetensorError) as error:
            raise BrokenIndexError(
                f"{path} cannot be read ({error}); restore the file from a backup, or build the "
                "index anew"
            ) from error

    def _path(self, uid: str) -> Path:
        return self._directory / f"{uid}.safetensors"


def write_durably(path: Path, content: bytes) -> None:
    """Write a file so that, whenever the machine stops, it is there whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
