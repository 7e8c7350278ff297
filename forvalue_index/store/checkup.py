"""Checking an index: SQL against segments against what was written. Nothing is changed here."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from forvalue_index.exceptions import (
    BadSampleError,
    BrokenIndexError,
    BusyIndexError,
    ReadOnlyIndexError,
    SettingsMismatchError,
)
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.catalog.witness import WITNESS
from forvalue_index.store.durable import whole_name
from forvalue_index.store.manifest import CALIBRATION, MANIFEST, TABLES
from forvalue_index.store.records import StoredSample, StoredSegment
from forvalue_index.store.results import CheckReport, Finding
from forvalue_index.store.segments import (
    CURE,
    MissingSegmentError,
    StoredBlock,
    UnreadableSegmentError,
    file_digest,
    is_own_file,
)
from forvalue_index.store.store import Storage
from forvalue_index.store.writer_lock import writer_lock

# Rows are stored with 8 bits of mantissa; norms were taken before.
NORM_TOLERANCE = 2e-2
# The last in which samples may have no checksums.
UNCHECKED_FORMAT = 2
ORPHAN = "orphan file"
CATALOG = "damaged catalog"
UNREADABLE = "unreadable segment"


def check(storage: Storage, *, on_progress: OnProgress = ignore_progress) -> CheckReport:
    """Look at everything that an index holds; changes nothing."""
    report = examine(storage, on_progress)
    if not any(finding.kind == ORPHAN for finding in report.findings):
        return report
    # Files may have been recorded or deleted since they were listed.
    others = [finding for finding in report.findings if finding.kind != ORPHAN]
    return dataclasses.replace(report, findings=(*others, *_orphans_at_rest(storage)))


def examine(storage: Storage, on_progress: OnProgress) -> CheckReport:
    """Look at everything once, whatever is written meanwhile."""
    storage.frozen.forget()  # what is looked at is what lies there now
    findings = [*_tables(storage), *_calibration(storage), *_catalog(storage)]
    # Files before the catalog: what is recorded in between is no orphan.
    files, segments, total = own_files(storage), [], 0
    try:
        with storage.catalog.snapshot() as snapshot:
            segments, total = snapshot.segments(), snapshot.total()
            findings += _segments(storage, snapshot, segments, on_progress)
            findings += _samples(storage, snapshot)
    except BrokenIndexError as error:
        findings.append(_catalog_finding(str(error)))
    else:
        recorded = {segment.file.uid for segment in segments}
        findings += [_orphan(path) for path in files if path.stem not in recorded]
    return CheckReport(len(segments), total, tuple(findings))


def segment_finding(storage: Storage, snapshot: Snapshot, segment: StoredSegment) -> Finding | None:
    """What is wrong with a segment: its file, or how it fits the catalog."""
    cure = f"restore it from a backup, or {CURE}"
    try:
        path = storage.segments.path(segment.file.uid)
        file = storage.segments.open(segment)
        storage.refuse_other_widths([file])
        if not any(_calibration(storage)):  # else that is what is wrong
            storage.refuse_other_calibration([file])
        first, *others = storage.manifest.settings.geometries
        _compare(segment, file.blocks(first), snapshot.norms(segment.file.uid))
        for geometry in others:
            for _ in file.blocks(geometry):
                pass  # every row is checked as it is read
        if file_digest(path) != segment.file.sha256:
            raise BrokenIndexError(f"{path} has another checksum than the catalog says")
    except OSError as error:  # deleted since, or unreadable
        return Finding("missing segment", f"{path} cannot be read ({error.strerror})", cure)
    except UnreadableSegmentError as error:
        what, _, remedy = str(error).partition(". ")
        return Finding(UNREADABLE, what, remedy[0].lower() + remedy[1:])
    except BrokenIndexError as error:
        missing = isinstance(error, MissingSegmentError)
        kind = "missing segment" if missing else "damaged segment"
        return Finding(kind, str(error).removesuffix(f"; {CURE}"), cure)
    return None


def own_files(storage: Storage) -> list[Path]:
    """Whatever an index writes under a name of its own choosing."""
    names = (MANIFEST, TABLES, CALIBRATION, WITNESS)
    partial = sorted(p for p in storage.path.iterdir() if whole_name(p.name) in names)
    segments = [p for p in storage.segments.files() if is_own_file(p.name)]
    # It writes regular files alone; a directory or link of such a name is somebody else's.
    return [path for path in segments + partial if path.is_file() and not path.is_symlink()]


def _segments(
    storage: Storage,
    snapshot: Snapshot,
    segments: Sequence[StoredSegment],
    on_progress: OnProgress,
) -> Iterator[Finding]:
    done, total = 0, sum(segment.file.n_rows for segment in segments)
    for segment in segments:
        finding = segment_finding(storage, snapshot, segment)
        if finding is not None and _is_recorded(storage, segment):
            yield finding
        done += segment.file.n_rows
        on_progress(Progress("checking", done, total))


def _samples(storage: Storage, snapshot: Snapshot) -> Iterator[Finding]:
    """Samples that are damaged, and for each source the texts and images that are lost."""
    changed: dict[str, list[str]] = {}
    lost: dict[str, list[str]] = {}
    unchecked = snapshot.unchecked() if storage.manifest.format_version > UNCHECKED_FORMAT else 0
    if unchecked:
        yield _catalog_finding(f"{unchecked:,} samples have lost their checksum")
    for id_, stored in snapshot.every_sample():
        if isinstance(stored, str):
            yield _damaged_sample(id_, stored)
        elif stored.removed:
            continue
        elif stored.text_error:
            changed.setdefault(stored.sample.source, []).append(stored.text_error)
        elif reason := _lost_image(storage, stored):
            lost.setdefault(stored.sample.source, []).append(reason)
    yield from (_changed_data(source, reasons) for source, reasons in changed.items())
    yield from (_lost_images(source, reasons) for source, reasons in lost.items())


def _damaged_sample(id_: int, complaint: str) -> Finding:
    cure = (
        f'run: forvalue remove INDEX --where "id = {id_}"; forvalue compact INDEX; then '
        "add the sample again"
    )
    return Finding("damaged sample", complaint, cure)


def _changed_data(source: str, reasons: Sequence[str]) -> Finding:
    what = f"{len(reasons):,} texts of {source} are not where they were, first {reasons[0]}"
    return Finding("changed data", what, f"restore the file, or run: forvalue add INDEX {source}")


def _lost_images(source: str, reasons: Sequence[str]) -> Finding:
    what = f"images of {len(reasons):,} samples of {source} are lost, first {reasons[0]}"
    cure = (
        f"restore their files, or add {source} again; queries need none, explanations and "
        "exact scores do"
    )
    return Finding("lost image", what, cure)


def _lost_image(storage: Storage, stored: StoredSample) -> str | None:
    """Why an image of a sample cannot be opened, if that is so."""
    try:
        for image in stored.sample.images:
            storage.media.open(image)
    except BadSampleError as error:
        return f"{stored.sample.key}: {error}"
    return None


def _tables(storage: Storage) -> Iterator[Finding]:
    try:
        storage.frozen.hash_tables()
    except BrokenIndexError as error:
        yield Finding("damaged hash tables", str(error), "restore the file from a backup")


def _calibration(storage: Storage) -> Iterator[Finding]:
    try:
        storage.frozen.calibration()
    except (BrokenIndexError, SettingsMismatchError) as error:
        yield Finding("damaged calibration", str(error), "restore the file from a backup")


def _catalog(storage: Storage) -> Iterator[Finding]:
    yield from map(_catalog_finding, storage.catalog.complaints())


def _catalog_finding(complaint: str) -> Finding:
    return Finding(
        CATALOG, complaint, f"{CURE}; where that does not help, restore it from a backup"
    )


def _compare(
    segment: StoredSegment, blocks: Iterator[StoredBlock], norms: dict[int, float]
) -> None:
    """Raise BrokenIndexError unless rows have the ids and norms that the catalog says."""
    seen = 0
    for block in blocks:
        seen += len(block.ids)
        norms_now = torch.linalg.vector_norm(block.rows.floats(), dim=1).numpy()
        expected = np.array([norms.get(id_, np.nan) for id_ in block.ids.tolist()])
        wrong = ~(np.abs(norms_now - expected) <= NORM_TOLERANCE * expected)
        if wrong.any():
            id_ = int(block.ids[int(wrong.argmax())])
            raise BrokenIndexError(
                f"segment {segment.file.uid} has another row for sample {id_} than the catalog says"
            )
    if seen != len(norms):
        raise BrokenIndexError(
            f"segment {segment.file.uid} has {seen:,} rows, the catalog {len(norms):,} samples"
        )


def _is_recorded(storage: Storage, segment: StoredSegment) -> bool:
    """Whether the catalog still has a segment; it may have been compacted meanwhile."""
    with storage.catalog.snapshot() as now:
        return segment in now.segments()


def _orphan(path: Path) -> Finding:
    what = f"{path} is not in the catalog: whatever wrote it was stopped before it was recorded"
    return Finding(ORPHAN, what, f"{CURE}, which deletes it")


def _orphans_at_rest(storage: Storage) -> list[Finding]:
    """Files that the catalog lacks while nobody writes; none where somebody may be about to."""
    with ExitStack() as stack:
        try:
            stack.enter_context(writer_lock(storage.path))
        except BusyIndexError:
            return []
        except ReadOnlyIndexError:
            pass  # nobody writes there
        files = own_files(storage)
        with storage.catalog.snapshot() as snapshot:
            recorded = {segment.file.uid for segment in snapshot.segments()}
    return [_orphan(path) for path in files if path.stem not in recorded]
