"""Which search index answers, and making it from segments, or from codes that were kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.search.code_files import CodeFiles
from forvalue_index.search.coded import CodedIndex
from forvalue_index.search.contract import SearchIndex
from forvalue_index.search.flat import FlatIndex
from forvalue_index.search.gpu import rows_on_gpus
from forvalue_index.search.kinds import FLAT, IVF_RABITQ, search_kind
from forvalue_index.search.quantizer import CODED_KINDS, LEAST_PER_LIST, Codes, Quantizer, lists_for
from forvalue_index.store.rows import float_rows
from forvalue_index.store.segments import SegmentFile
from forvalue_index.store.store import Storage
from forvalue_index.store.view import View

TRAINING_ROWS = 20_000
ENCODED_ROWS = 4096


class RowKind(NamedTuple):
    """Rows of one geometry, as they are or divided by their norms."""

    geometry: str
    normalize: bool = False

    @property
    def name(self) -> str:
        """What their folder is called."""
        return f"{self.geometry}.cosine" if self.normalize else self.geometry


def search_index(
    view: View,
    rows: RowKind,
    *,
    kind: str | None = None,
    on_gpus: bool = True,
    on_progress: OnProgress = ignore_progress,
) -> SearchIndex:
    """A search index over all live rows of one state of an index, on GPUs where they have the room.

    Raises UsageError as `coded_index` does.
    """
    total = view.catalog.count()
    if on_gpus and kind in (None, FLAT) and total:
        resident = rows_on_gpus(
            view, rows.geometry, normalize=rows.normalize, on_progress=on_progress
        )
        if resident is not None:
            return resident
    kind = search_kind(total, kind)
    if kind == FLAT or not total:
        return _flat(view, rows, total, on_progress)
    return coded_index(view, rows, kind, on_progress=on_progress)


def coded_index(
    view: View, rows: RowKind, kind: str, *, on_progress: OnProgress = ignore_progress
) -> CodedIndex:
    """A search index over codes of all live rows, which are read or made, with what was tuned.

    Raises UsageError where there are too few rows for the lists of `ivf-rabitq`.
    """
    files = CodeFiles(view.search_path, rows.name, kind)
    total = view.catalog.count()
    quantizer = _quantizer(view, rows, kind, files, total)
    chosen = files.tuned(total)

    def fetch(ids: NDArray[np.int64]) -> NDArray[np.float32]:
        return view.rows(rows.geometry, ids, normalize=rows.normalize)

    width = view.manifest.row_width
    index = CodedIndex(
        quantizer, width, fetch, refine=chosen.refine, probes=chosen.probes, expected=total
    )
    for ids, codes in _codes(view, rows, files, quantizer, on_progress):
        index.add(ids, codes)
    return index


def update_codes(view: View, on_progress: OnProgress = ignore_progress) -> None:
    """Encode what is new in all kinds of codes that the index has, and forget what is gone.

    The first geometry gets codes when it has grown to need them.
    """
    total = view.catalog.count()
    wanted = {(view.manifest.settings.geometries[0], search_kind(total))} if total else set()
    with suppress(OSError):
        wanted |= {
            (path.parent.parent.name, path.parent.name)
            for path in view.search_path.glob("*/*/quantizer.safetensors")
        }
    for name, kind in sorted(wanted):
        geometry, _, cosine = name.partition(".")
        if kind in CODED_KINDS and geometry in view.manifest.settings.geometries:
            _update(view, RowKind(geometry, bool(cosine)), kind, total, on_progress)


def keep_codes_current(storage: Storage, on_progress: OnProgress = ignore_progress) -> None:
    """Encode what has come, where an index is large enough to be searched so, or was."""
    with storage.view() as view:
        if search_kind(view.catalog.count()) != FLAT or view.search_path.is_dir():
            update_codes(view, on_progress)


def _update(view: View, rows: RowKind, kind: str, total: int, on_progress: OnProgress) -> None:
    files = CodeFiles(view.search_path, rows.name, kind)
    quantizer = _quantizer(view, rows, kind, files, total)
    for done, file in enumerate(view.files, 1):
        if not files.has_codes(file.uid, quantizer):
            files.keep_codes(file.uid, _encoded(file, rows, quantizer), quantizer)
        on_progress(Progress("coding", done, len(view.files)))
    files.sweep(file.uid for file in view.files)


def _flat(view: View, rows: RowKind, total: int, on_progress: OnProgress) -> FlatIndex:
    # FAISS has no rows with a scale each, and normalised ones are none that fit into fewer bits.
    halved = view.manifest.settings.row_dtype == "bfloat16" and not rows.normalize
    index = FlatIndex(view.manifest.row_width, row_dtype="bfloat16" if halved else "float32")
    for block in view.blocks(rows.geometry, normalize=rows.normalize):
        index.add(block.ids, block.rows.numpy())
        on_progress(Progress("opening", len(index), total))
    return index


def _quantizer(view: View, rows: RowKind, kind: str, files: CodeFiles, total: int) -> Quantizer:
    known = files.quantizer()
    if known is not None and len(known.rotation.signs) == view.manifest.row_width:
        return known
    n_lists = lists_for(total)
    if kind == IVF_RABITQ and total < 2 * LEAST_PER_LIST:
        raise UsageError(
            f"--search {IVF_RABITQ} learns lists from at least {2 * LEAST_PER_LIST} rows, and the "
            f"index has {total:,}; use {FLAT}"
        )
    count = max(TRAINING_ROWS, n_lists * LEAST_PER_LIST)
    some = view.some_rows(rows.geometry, count, normalize=rows.normalize).numpy()
    trained = Quantizer.train(kind, some, n_lists=n_lists, seed=0)
    files.keep_quantizer(trained)
    return trained


def _codes(
    view: View, rows: RowKind, files: CodeFiles, quantizer: Quantizer, on_progress: OnProgress
) -> Iterator[tuple[NDArray[np.int64], Codes]]:
    """Ids and codes of the live rows of each segment, in order of id."""
    removed = view.catalog.removed_ids()
    done, total = 0, sum(len(file.ids) for file in view.files)
    for file in view.files:
        codes = files.codes(file.uid, len(file.ids), quantizer)
        if codes is None:
            codes = _encoded(file, rows, quantizer)
            files.keep_codes(file.uid, codes, quantizer)
        live = ~np.isin(file.ids, removed, assume_unique=True)
        yield file.ids[live], codes[live]
        done += len(file.ids)
        on_progress(Progress("opening", done, total))


def _encoded(file: SegmentFile, rows: RowKind, quantizer: Quantizer) -> Codes:
    """Codes of all rows of a segment, removed ones too: they may come back."""
    codes = np.empty((len(file.ids), quantizer.code_size), dtype=np.uint8)
    # Many rows at a time: torch, which rotates, and FAISS wait for each other's threads in between.
    for start in range(0, len(codes), ENCODED_ROWS):
        blocks = file.blocks(rows.geometry, start, start + ENCODED_ROWS)
        some = torch.cat([float_rows(b.rows, normalize=rows.normalize) for b in blocks])
        codes[start : start + len(some)] = quantizer.encode(some.numpy())
    return codes
