"""Calibrating an index: on its first data, or with the calibration of another one."""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from forvalue_index.exceptions import (
    BadSampleError,
    SettingsMismatchError,
    SourceError,
    UsageError,
)
from forvalue_index.gradients.calibrating import CalibrationSample
from forvalue_index.gradients.calibrating import calibrate as measured_calibration
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.model.label_tokens import Prepared, rows_of
from forvalue_index.sources.data import Data
from forvalue_index.store.agreement import refuse_other_model
from forvalue_index.store.frozen import FrozenParts
from forvalue_index.store.manifest import is_index, read_manifest
from forvalue_index.store.model import IndexModel
from forvalue_index.store.results import CalibrationSummary
from forvalue_index.store.store import Storage


def calibrate(model: IndexModel, data: Data) -> CalibrationSummary:
    """Calibrate an index without samples on data, or as another index is. The lock is held.

    Raises:
        UsageError: the index holds samples, whose rows depend on its calibration.
        BadSampleError: a row is not usable, whatever `on_bad` says.
        SourceError: there is no row to calibrate on.
        SettingsMismatchError: the other index is of another model, sketch or geometry.
    """
    storage = model.storage
    with storage.catalog.snapshot() as snapshot:
        if snapshot.segments():
            raise UsageError(
                f"{storage.path} holds samples, and their rows depend on its calibration; "
                "calibrate an index before anything is added to it"
            )
    rows = data.rows
    if isinstance(rows, str | PathLike) and is_index(Path(rows)):
        calibration = calibration_from(storage, Path(rows))
    else:
        calibration = _measured(model, data)
    storage.frozen.freeze(calibration)
    return summary_of(calibration, storage.manifest.settings.damping)


def _measured(model: IndexModel, data: Data) -> Calibration:
    settings = model.storage.manifest.settings
    choice = CalibrationSample(settings.seed)
    sources = model.sources(data)
    for row in rows_of(model.reader, sources):
        if not isinstance(row, Prepared):
            raise BadSampleError(f"{row}. Mend the row")
        choice.offer(row)
    if not choice.samples():
        names = ", ".join(source.name for source in sources)
        raise SourceError(f"{names} has no row to calibrate on")
    tables = model.storage.frozen.hash_tables()
    return measured_calibration(
        model.reader, tables, settings, choice.samples(), on_progress=model.on_progress
    )


def calibration_from(storage: Storage, other: Path) -> Calibration:
    """The calibration of another index, which has to be made alike.

    Raises:
        SettingsMismatchError: it is of another model, or has another sketch or geometry.
        UsageError: it is not calibrated yet.
    """
    own, theirs = storage.manifest, read_manifest(other)
    refuse_other_model(other, theirs.model, own.model)
    for name, value, wanted in (
        ("sketch (--dim, --seed)", theirs.sketch_digest, own.sketch_digest),
        ("--geometry", theirs.settings.geometry, own.settings.geometry),
        ("--damping", theirs.settings.damping, own.settings.damping),
    ):
        if value != wanted:
            raise SettingsMismatchError(
                f"{other} has another {name}: {value}, and {storage.path} has {wanted}; make both "
                "with the same options, or calibrate on data"
            )
    calibration = FrozenParts(other, theirs).calibration()
    if calibration is None:
        raise UsageError(f"{other} is not calibrated yet; add samples to it first")
    return calibration


def calibration_of(storage: Storage) -> CalibrationSummary | None:
    """What the rows of an index are calibrated with, or None where nothing was added yet."""
    calibration = storage.frozen.calibration()
    damping = storage.manifest.settings.damping
    return None if calibration is None else summary_of(calibration, damping)


def summary_of(calibration: Calibration, damping: float) -> CalibrationSummary:
    """What there is to tell of a calibration, with the damping of the index."""
    error_size = calibration.moments.error_size
    relative = error_size / error_size.mean()
    return CalibrationSummary(
        digest=calibration.digest,
        samples=calibration.samples,
        label_tokens=calibration.label_tokens,
        damping=damping,
        vocab_size=len(relative),
        damped_tokens=int((relative < damping).sum()),
        error_scale={name: s._asdict() for name, s in calibration.error_scale.items()},
    )
