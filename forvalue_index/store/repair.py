"""Mending what `check` finds: lost rows are embedded again, strange files deleted.

Rows are a function of what the catalog holds, so a lost segment is embedded again from there.
Nothing that the catalog refers to is ever deleted.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError, BrokenIndexError
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.progress import Progress
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.checkup import CATALOG, UNREADABLE, examine, own_files, segment_finding
from forvalue_index.store.model import IndexModel
from forvalue_index.store.records import StoredSample, StoredSegment
from forvalue_index.store.results import CheckReport, Finding
from forvalue_index.store.store import Storage

HINDRANCE = "mend what is named, or remove the sample, then repair again"


def repair(model: IndexModel) -> CheckReport:
    """Check, and mend what can be. The writer's lock is held.

    Index trees of SQLite are built anew, lost or damaged segments are embedded anew from the
    catalog's texts (which needs the model), files that the catalog does not know are deleted.
    """
    storage, on_progress = model.storage, model.on_progress
    before = examine(storage, on_progress)
    if any(finding.kind == CATALOG for finding in before.findings):
        storage.catalog.reindex()
    hindrances = _mend_segments(model)
    _delete_orphans(storage)
    left = {(f.kind, f.what) for f in examine(storage, on_progress).findings}
    findings = [
        dataclasses.replace(f, repaired=(f.kind, f.what) not in left) for f in before.findings
    ]
    return dataclasses.replace(before, findings=(*findings, *hindrances))


def _mend_segments(model: IndexModel) -> list[Finding]:
    """Embed lost and damaged segments anew; returns those where that is not possible."""
    storage, on_progress = model.storage, model.on_progress
    with storage.catalog.snapshot() as snapshot:
        findings = [(s, segment_finding(storage, snapshot, s)) for s in snapshot.segments()]
    # What others may read is not made anew by one who may not.
    lost = [s for s, finding in findings if finding and finding.kind != UNREADABLE]
    hindrances = []
    for done, segment in enumerate(lost):
        on_progress(Progress("repairing", done, len(lost)))
        try:
            _embed_anew(storage, segment, model.embedder())
        except (BrokenIndexError, BadSampleError) as error:
            what = f"{segment.file.uid} cannot be made anew: {error}"
            hindrances.append(Finding("lost segment", what, HINDRANCE))
    if lost:
        on_progress(Progress("repairing", len(lost), len(lost)))
    return hindrances


def _delete_orphans(storage: Storage) -> None:
    """Delete own files that the catalog does not know."""
    with storage.catalog.snapshot() as snapshot:
        recorded = {segment.file.uid for segment in snapshot.segments()}
    # Where the catalog is damaged still, a file may be lost to it that it once referred to.
    for path in [] if storage.catalog.complaints() else own_files(storage):
        if path.stem not in recorded:
            path.unlink()


def _embed_anew(storage: Storage, segment: StoredSegment, embedder: Embedder) -> None:
    """Write a segment anew from the texts in the catalog, rows of removed samples too.

    A removed sample without a usable text is forgotten: nothing else would mend its segment.
    """
    with storage.catalog.snapshot() as snapshot:
        ids = snapshot.segment_ids(segment.file.uid)
        removed = np.intersect1d(ids, snapshot.removed_ids())
        stored = snapshot.samples(np.setdiff1d(ids, removed)) | _readable(snapshot, removed)
    usable: dict[int, Prepared] = {}
    for id_, sample in sorted(stored.items()):
        prepared = embedder.prepare(sample.sample)
        if not sample.text_error and isinstance(prepared, Prepared):
            usable[id_] = prepared
        elif id_ not in removed:
            raise BadSampleError(sample.text_error or str(prepared))
    forget = [id_ for id_ in removed.tolist() if id_ not in usable]
    rows = storage.quantized(embedder.embed(list(usable.values())).rows)
    kept = np.array(list(usable), dtype=np.int64)
    storage.replace([segment.file.uid], kept, rows, forget=forget)


def _readable(snapshot: Snapshot, ids: NDArray[np.int64]) -> dict[int, StoredSample]:
    """The samples among some that are what was stored."""
    try:
        return snapshot.samples(ids)
    except BrokenIndexError:
        readable: dict[int, StoredSample] = {}
        for id_ in ids.tolist():
            with suppress(BrokenIndexError):
                readable |= snapshot.samples([id_])
        return readable
