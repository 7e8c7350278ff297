"""Calibrating an index: on its first data, or with the calibration of another one."""

from __future__ import annotations

from pathlib import Path

from forvalue_index.exceptions import SettingsMismatchError, UsageError
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.store.manifest import CALIBRATION, read_manifest, refuse_other_model
from forvalue_index.store.results import CalibrationSummary
from forvalue_index.store.store import Storage


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
    calibration = Calibration.load(other / CALIBRATION, theirs.model.weights_digest)
    if calibration is None:
        raise UsageError(f"{other} is not calibrated yet; add samples to it first")
    return calibration


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
