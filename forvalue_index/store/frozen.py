"""The frozen parts of an index: hash tables and calibration, read once while an index is open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.hash_tables import (
    HashTables,
    geometry_tables,
    part_widths,
    tables_digest,
)
from forvalue_index.gradients.sketch_error import ErrorScale, SketchError
from forvalue_index.store.durable import write_durably
from forvalue_index.store.manifest import CALIBRATION, TABLES, Manifest

Content = TypeVar("Content", HashTables, Calibration)
# What tells one state of a file from another without reading it: inode, time of change, size.
Stamp = tuple[int, int, int]
CURE = "restore it from a backup, or build the index anew"


class FrozenParts:
    """What is written once for all rows of an index; a file is read anew only where it changed."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self._path = path
        self._manifest = manifest
        self._read: dict[str, tuple[Stamp, HashTables | Calibration]] = {}

    def forget(self) -> None:
        """Read all files anew when they are needed next."""
        self._read = {}

    def hash_tables(self) -> HashTables:
        """The sketch's hash tables. Raises BrokenIndexError where they are not the index's own."""
        digest = self._manifest.sketch_digest
        tables = self._once(TABLES, lambda path: read_hash_tables(path, digest))
        return read_hash_tables(self._path / TABLES, digest) if tables is None else tables

    def calibration(self) -> Calibration | None:
        """What rows are calibrated with, or None where nothing was added yet.

        Raises:
            BrokenIndexError: the file is damaged.
            SettingsMismatchError: it was made with another model.
        """
        model_digest = self._manifest.model.weights_digest
        return self._once(CALIBRATION, lambda path: read_calibration(path, model_digest))

    def calibration_digest(self) -> str | None:
        """What segments are marked with."""
        calibration = self.calibration()
        return None if calibration is None else calibration.digest

    def freeze(self, calibration: Calibration) -> None:
        """Keep a calibration for good. The writer's lock is held, and no row is stored yet."""
        content = calibration_file(calibration, self._manifest.model.weights_digest)
        write_durably(self._path / CALIBRATION, content)

    def sketch_error(self, geometry: str) -> SketchError:
        """How far scores of rows of a geometry are from exact ones."""
        calibration = self.calibration()
        directions = None if calibration is None else calibration.directions.get(geometry)
        tables = geometry_tables(self.hash_tables(), geometry, directions)
        measured = {} if calibration is None else calibration.error_scale
        widths = part_widths(tables, self._manifest.settings.dim)
        return SketchError(widths, measured.get(geometry, ErrorScale()))

    def _once(self, name: str, read: Callable[[Path], Content]) -> Content | None:
        """What a file holds, or None where there is none."""
        path = self._path / name
        try:
            stat = path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BrokenIndexError(f"{path} cannot be read ({error}); {CURE}") from error
        stamp = (stat.st_ino, stat.st_mtime_ns, stat.st_size)
        known = self._read.get(name)
        if known is not None and known[0] == stamp:
            return known[1]  # type: ignore[return-value]  # each name has one kind of content
        content = read(path)
        self._read[name] = (stamp, content)
        return content


def hash_tables_file(tables: HashTables) -> bytes:
    """The contents of a file of hash tables."""
    return save({name: np.asarray(table) for name, table in tables.items()})


def read_hash_tables(path: Path, digest: str) -> HashTables:
    """The hash tables in a file. Raises BrokenIndexError where it has another digest."""
    try:
        tables = load_file(path)
        found = tables_digest(tables)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise BrokenIndexError(f"{path} cannot be read ({error!r}); {CURE}") from error
    if found != digest:
        raise BrokenIndexError(f"{path} is not the file that this index was created with; {CURE}")
    return tables


def calibration_file(calibration: Calibration, model_digest: str) -> bytes:
    """The contents of a file, which says what model it was made with."""
    return save(calibration.tensors(), {"digest": calibration.digest, "model": model_digest})


def read_calibration(path: Path, model_digest: str) -> Calibration:
    """What `calibration_file` gave.

    Raises:
        BrokenIndexError: the file is damaged.
        SettingsMismatchError: it was made with another model.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in list(file.keys())}
        calibration = Calibration.from_tensors(tensors)
    except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
        raise BrokenIndexError(f"{path} cannot be read ({error}); {CURE}") from error
    if calibration.digest != said.get("digest"):
        raise BrokenIndexError(f"{path} is damaged: its numbers are not its own; {CURE}")
    if said.get("model") != model_digest:
        raise SettingsMismatchError(
            f"{path} is the calibration of another model ({said.get('model')}, the index has "
            f"{model_digest}); use one that was made with this model"
        )
    return calibration
