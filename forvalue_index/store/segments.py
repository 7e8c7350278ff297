"""Segments: immutable blocks of rows on disk, the truth that search indexes are derived from.

`segments/<uid>.safetensors` holds, for each geometry, a tensor [row, dim], checksums [row] and,
where they are int8, scales [row]. Where ids have gaps it holds `offset` [row], too: the id of a row
is its segment's first id plus its offset, or plus its place. It names itself and the calibration
that its rows were made with. A file is written under a temporary name, flushed to the disk and
renamed, so a segment is there whole or not at all.
Every row that is read is checked against its checksum.
"""

from __future__ import annotations

import hashlib
import re
import stat
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.settings import RAW
from forvalue_index.store.durable import whole_name, write_durably
from forvalue_index.store.permissions import is_unreadable
from forvalue_index.store.records import SegmentRecord, StoredSegment
from forvalue_index.store.rows import INT8, StoredRows

CHECKSUM, SCALE = "checksum", "scale"
OFFSET = "offset"
# What safetensors calls them.
ROW_DTYPES = {"BF16": "bfloat16", "F32": "float32", "I8": INT8}
UID_FIELD, CALIBRATION_FIELD = "uid", "calibration"
# About what stays in the cache of a core while it is checked, converted and scored.
BLOCK_ROWS = 384
SUFFIX = ".safetensors"
UID = re.compile(r"[0-9a-f]{32}")
OWN_FILE = re.compile(rf"{UID.pattern}{re.escape(SUFFIX)}")
CURE = "run: forvalue check INDEX --repair"


class MissingSegmentError(BrokenIndexError):
    """The file of a segment is not there."""


class UnreadableSegmentError(BrokenIndexError):
    """The right to read the file of a segment is lacking."""


class StoredBlock(NamedTuple):
    """Rows in order of id as they are stored: `ids` [row], `rows` [row, dim]."""

    ids: NDArray[np.int64]
    rows: StoredRows

    def without(self, removed: NDArray[np.int64]) -> StoredBlock:
        """The rows but for those of `removed` ids, which are in order and may be many."""
        first, last = np.searchsorted(removed, self.ids[0]), np.searchsorted(removed, self.ids[-1])
        here = removed[first : last + 1]
        if not len(here):
            return self
        live = ~np.isin(self.ids, here)
        return StoredBlock(self.ids[live], self.rows[torch.from_numpy(live)])


class SegmentStore:
    """The segment files of one index."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def write(
        self,
        rows: Mapping[str, StoredRows],
        *,
        offsets: NDArray[np.int64] | None = None,
        calibration: str | None = None,
    ) -> SegmentRecord:
        """Write the rows [row, dim] of each geometry so that they survive a power cut.

        `calibration` is the digest of the one that they were made with.
        """
        uid = uuid.uuid4().hex
        n_rows = len(next(iter(rows.values())))
        positions = np.arange(n_rows) if offsets is None else offsets
        tensors = {} if offsets is None else {OFFSET: torch.from_numpy(offsets)}
        for geometry, stored in rows.items():
            checksums = torch.from_numpy(stored.checksums(positions))
            tensors |= {geometry: stored.values, checksum_of(geometry): checksums}
            if stored.scales is not None:
                tensors[scale_of(geometry)] = stored.scales
        fields = {UID_FIELD: uid} | (
            {} if calibration is None else {CALIBRATION_FIELD: calibration}
        )
        content = save(tensors, fields)
        self._directory.mkdir(exist_ok=True)
        write_durably(self.path(uid), content)
        return SegmentRecord(uid, n_rows, len(content), hashlib.sha256(content).hexdigest())

    def open(self, segment: StoredSegment) -> SegmentFile:
        """Map a segment; it stays readable when its file is deleted. Raises BrokenIndexError."""
        path = self.path(segment.file.uid)
        if _is_strange(path):
            raise MissingSegmentError(f"{path} is no file, and it should hold rows; {CURE}")
        try:
            return SegmentFile(path, segment)
        except UnreadableSegmentError:
            raise
        except BrokenIndexError as error:
            if path.is_file():
                raise
            # It may be deleted at any moment while it is opened.
            raise MissingSegmentError(
                f"{path} is missing, and it holds rows of the index; {CURE}"
            ) from error

    def path(self, uid: str) -> Path:
        """Where a segment's file lies. Raises BrokenIndexError for one outside of the index."""
        path = self._directory / f"{uid}{SUFFIX}"
        inside = self._directory.parent.resolve()
        if not UID.fullmatch(uid) or not path.resolve().is_relative_to(inside):
            raise BrokenIndexError(
                f"The catalog names a segment {uid!r} that leads out of {inside}, and nothing "
                "outside of an index is read; put the file itself there"
            )
        return path

    def files(self) -> list[Path]:
        """All that lies among the segments, in order of name."""
        return sorted(self._directory.iterdir()) if self._directory.is_dir() else []

    def delete(self, uid: str) -> None:
        """Delete the file of a segment that the catalog no longer knows, if it is there."""
        # Where it cannot be deleted it is an orphan, and no reader is misled.
        with suppress(OSError):
            self.path(uid).unlink()


class SegmentFile:
    """One mapped segment."""

    def __init__(self, path: Path, segment: StoredSegment) -> None:
        self.path = path
        self._first_id, self._n_rows = segment.first_id, segment.file.n_rows
        with self._errors():
            file: Any = safe_open(path, framework="pt")
            self._file, names = file, set(file.keys())
            stored = {name: file.get_slice(name) for name in names if _holds_rows(name)}
            shapes = {name: tuple(rows.get_shape()) for name, rows in stored.items()}
            counts = {shape[0] for shape in shapes.values()}
            self.dims = {name: int(shape[1]) for name, shape in shapes.items()}
            fields = file.metadata() or {}
            self.calibration = fields.get(CALIBRATION_FIELD)
            checked = all(checksum_of(name) in names for name in stored)
            self._refuse_other_content(segment, fields.get(UID_FIELD), checked=checked)
            checksums = self._tensors(checksum_of, stored.keys(), names)
            self._checksums = {name: checksum.numpy() for name, checksum in checksums.items()}
            self._scales = self._tensors(scale_of, stored.keys(), names)
            dtypes = {name: rows.get_dtype() for name, rows in stored.items()}
            self.row_dtypes = {name: ROW_DTYPES.get(said, said) for name, said in dtypes.items()}
            plain = np.arange(self._n_rows)
            self._offsets = file.get_tensor(OFFSET).numpy() if OFFSET in names else plain
        self._refuse_strange_scales()
        self._refuse_other_count(counts)

    @property
    def uid(self) -> str:
        """The name of the segment."""
        return self.path.name.removesuffix(SUFFIX)

    @cached_property
    def ids(self) -> NDArray[np.int64]:
        """Ids of the rows, [row], in order."""
        ids: NDArray[np.int64] = self._offsets + np.int64(self._first_id)
        return ids

    def rows(self, geometry: str, ids: NDArray[np.int64]) -> StoredRows:
        """The rows of ids of this segment, in their order.

        Raises BrokenIndexError where a row is not what was written.
        """
        positions = np.searchsorted(self.ids, ids)
        with self._errors():
            rows = self._stored(geometry)[torch.from_numpy(positions)]
            self._check(geometry, rows, positions)
        return rows

    def blocks(
        self, geometry: str, start: int = 0, stop: int | None = None
    ) -> Iterator[StoredBlock]:
        """The rows in order, a bounded number at a time.

        All of them, or those at the positions from `start` to before `stop`. They are mapped from
        the file: copy what is to be changed. Raises BrokenIndexError where a row is not what was
        written.
        """
        with self._errors():
            mapped = self._stored(geometry)[start:stop]
        for first in range(0, len(mapped), BLOCK_ROWS):
            rows = mapped[first : first + BLOCK_ROWS]
            here = slice(start + first, start + first + len(rows))
            with self._errors():
                self._check(geometry, rows, here)
            yield StoredBlock(self.ids[here], rows)

    def _tensors(
        self, name_of: Callable[[str], str], geometries: Iterable[str], names: Collection[str]
    ) -> dict[str, Tensor]:
        """What is stored beside the rows of geometries, where it is: their checksums or scales."""
        beside = {geometry: name_of(geometry) for geometry in geometries}
        return {g: self._file.get_tensor(name) for g, name in beside.items() if name in names}

    def _refuse_other_content(
        self, segment: StoredSegment, uid: str | None, *, checked: bool
    ) -> None:
        """Segments that name themselves and have their rows `checked` are not hashed as a whole."""
        if uid not in (None, segment.file.uid):
            raise self._broken(f"it holds the segment {uid}")
        whole = uid is not None and checked
        if not whole and file_digest(self.path) != segment.file.sha256:
            raise self._broken("its checksum is not that in the catalog")

    def _refuse_strange_scales(self) -> None:
        for name, row_dtype in self.row_dtypes.items():
            scales = self._scales.get(name)
            if row_dtype == INT8 and scales is None:
                raise self._broken(f"its rows of {name} have no scales")
            if scales is not None and (scales.dtype, scales.shape) != (
                torch.float32,
                (self._n_rows,),
            ):
                raise self._broken(f"the scales of its rows of {name} are not one float32 a row")

    def _refuse_other_count(self, counts: set[int]) -> None:
        if counts != {self._n_rows} or len(self._offsets) != self._n_rows:
            seen = " and ".join(f"{n_rows:,}" for n_rows in sorted(counts)) or "no"
            raise self._broken(f"it has {seen} rows, the catalog says {self._n_rows:,}")

    def _stored(self, geometry: str) -> StoredRows:
        """All rows, mapped."""
        return StoredRows(self._file.get_tensor(geometry), self._scales.get(geometry))

    def _check(self, geometry: str, rows: StoredRows, positions: NDArray[np.int64] | slice) -> None:
        checksums = self._checksums.get(geometry)
        if checksums is None:
            return
        wrong = rows.checksums(self._offsets[positions]) != checksums[positions]
        if wrong.any():
            id_ = self.ids[positions][np.flatnonzero(wrong)[0]]
            raise self._broken(f"the row of sample {id_} is not what was stored")

    def _broken(self, reason: str) -> BrokenIndexError:
        return BrokenIndexError(f"{self.path} is damaged: {reason}; {CURE}")

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn whatever a damaged file raises into one line that names it."""
        try:
            yield
        except (OSError, SafetensorError, RuntimeError, ValueError, IndexError) as error:
            if is_unreadable(self.path):
                raise UnreadableSegmentError(
                    f"{self.path} cannot be read for lack of permission. Have its owner give you "
                    "the right to read it"
                ) from error
            raise self._broken(str(error)) from error


def checksum_of(geometry: str) -> str:
    """The name of the checksums of a geometry; the first versions had the raw one alone."""
    return CHECKSUM if geometry == RAW else f"{CHECKSUM}.{geometry}"


def scale_of(geometry: str) -> str:
    """The name of the scales of a geometry."""
    return f"{SCALE}.{geometry}"


def is_own_file(name: str) -> bool:
    """Whether this module writes files of a name, whole or in part."""
    return OWN_FILE.fullmatch(whole_name(name) or name) is not None


def file_digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_strange(path: Path) -> bool:
    """Whether something else than a file lies there: to open a pipe may take for ever."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _holds_rows(name: str) -> bool:
    """Whether a tensor of this name holds the rows of a geometry, and not what goes with them."""
    return name != OFFSET and not name.startswith((CHECKSUM, SCALE))
