"""`ValuationIndex`: the whole product from Python."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import BadSampleError, BrokenIndexError, SourceError, UsageError
from forvalue_index.gradients.calibrating import CalibrationSample, calibrate
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.index_queries import IndexQueries
from forvalue_index.ingest import add as ingest
from forvalue_index.ingest.calibration import calibration_from, summary_of
from forvalue_index.ingest.tally import AddReport
from forvalue_index.model.label_tokens import rows_of
from forvalue_index.progress import OnProgress, ignore_progress
from forvalue_index.search.building import RowKind, update_codes
from forvalue_index.search.contract import TuneReport
from forvalue_index.search.kinds import FLAT, search_kind
from forvalue_index.search.tuning import tune
from forvalue_index.settings import DEFAULT_CATALOG, refuse_on_bad
from forvalue_index.sources.data import Data
from forvalue_index.sources.sample import BadRow
from forvalue_index.store import checkup, compaction
from forvalue_index.store import repair as repairing
from forvalue_index.store.catalog.addresses import refuse_strange_catalog
from forvalue_index.store.create import create_storage, wanted_settings
from forvalue_index.store.manifest import (
    SEARCH,
    is_index,
    refuse_other_catalog,
    refuse_other_settings,
)
from forvalue_index.store.model import ModelAccess
from forvalue_index.store.results import CalibrationSummary, CheckReport, CompactReport
from forvalue_index.store.store import Storage


class ValuationIndex(IndexQueries):
    """An index of training samples that answers validation sets.

    The model is loaded when it is first needed: adding and querying need it, reading does not.
    Use as a context manager, or call `close`.
    """

    @classmethod
    def create(
        cls,
        path: str | PathLike[str],
        model: str,
        *,
        catalog: str = DEFAULT_CATALOG,
        on_progress: OnProgress = ignore_progress,
        **settings: Any,
    ) -> ValuationIndex:
        """Make an empty index, or open the one that is there if it has these settings.

        Args:
            path: directory of the index.
            model: hub id, local directory or GGUF file of a causal or vision-language model.
            catalog: `sqlite` for a file in the index, or `postgresql+psycopg://USER@HOST/NAME`.
            on_progress: called with each step of long tasks.
            settings: the other fields of `Settings`: adapter, revision, dim (floats a row), seed,
                labels, template, max_length (tokens), row_dtype, dtype, trust_remote_code, payload,
                media, geometry (one or several, with commas), damping, max_label_tokens, hardest.
                Frozen.

        Raises:
            UsageError: a setting has a value that cannot work.
            ModelError: the model cannot be loaded or is of an unknown kind.
            SettingsMismatchError: there is an index with other settings.
            BrokenIndexError: the directory holds something else.
        """
        where, wanted = Path(path), wanted_settings(model, settings)
        refuse_strange_catalog(catalog)
        access = ModelAccess(trust_remote_code=wanted.trust_remote_code)
        if is_index(where):
            opened = cls(Storage.open(where), access, on_progress=on_progress)
            try:
                refuse_other_settings(where, opened.manifest.settings, wanted)
                refuse_other_catalog(where, opened.manifest, catalog)
            except BaseException:
                opened.close()
                raise
            return opened
        storage, backbone = create_storage(where, wanted, catalog, on_progress)
        index = cls(storage, access, on_progress=on_progress)
        index._backbone = backbone
        return index

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        model: str | None = None,
        trust_remote_code: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> ValuationIndex:
        """Open an index. `model` says where the model lies now, if it has moved.

        An index made with `trust_remote_code` loads its model only if that is said here again.

        Raises:
            BrokenIndexError: there is no index, or a damaged one, or one of a newer version.
        """
        access = ModelAccess(model, trust_remote_code)
        return cls(Storage.open(Path(path)), access, on_progress=on_progress)

    def __enter__(self) -> ValuationIndex:
        return self

    def add(
        self,
        data: Data,
        *,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
        media_root: str | PathLike[str] | None = None,
        wait: bool = False,
    ) -> AddReport:
        """Embed and store the samples that the index does not hold yet.

        Removed samples are restored, and known ones get the new metadata of their rows, without a
        forward pass. What stops an `add` costs no more than its last 30 s: add the same again.

        Args:
            data: see `Data`.
            columns: canonical field (prompt, response, messages, text, images, id) to column name.
            on_bad: `fail` raises on the first row that is not usable, before anything is embedded
                where the data can be read twice; `skip` writes such rows to a file in the index.
            media_root: the directory that paths of images count from, and must stay in; by default
                that of the data file, or the working directory for rows that come from none.
            wait: where another process writes to the index, wait for it instead of failing.

        Raises:
            BusyIndexError: another process writes to the index and `wait` is false.
            BadSampleError: a row is not usable, with file, line and reason.
            SourceError: the data cannot be read, or holds no row.
            SettingsMismatchError: the model is not the one that the index was built with.
        """
        refuse_on_bad(on_bad)
        self._refuse_media_root(media_root)
        sources = self.sources(data, columns, media_root)
        with self._writing(wait):
            started = time.perf_counter()
            self._valuers.clear()  # which may hold the memory that the model needs
            self._refuse_swapped_calibration()
            reader = self.reader
            load_s = time.perf_counter() - started
            report = ingest.add(
                self._storage,
                reader,
                sources=sources,
                others=self._readers_on_other_gpus,
                on_bad=on_bad,
                on_progress=self._on_progress,
            )
            if report.added:
                self._update_codes()
        return replace(report, seconds=_with_load(load_s, report.seconds))

    def _refuse_swapped_calibration(self) -> None:
        """Raise BrokenIndexError where new rows would not fit those of the last segment."""
        with self._catalog.snapshot() as snapshot:
            last = snapshot.segments()[-1:]
        if last and self._storage.calibration() is None:
            self._storage.embedder(self.reader)  # which says what cannot be without it
        files = []
        with suppress(BrokenIndexError):  # what is lost or damaged is a matter of `check`
            files = [self._storage.segments.open(segment) for segment in last]
        self._storage.refuse_other_calibration(files)

    def calibrate(
        self,
        data: Data,
        *,
        columns: Mapping[str, str] | None = None,
        media_root: str | PathLike[str] | None = None,
        wait: bool = False,
    ) -> CalibrationSummary:
        """Calibrate an index without samples on data, or take over the calibration of an index.

        Otherwise the first `add` calibrates on a sample of its data. Data of another index, by its
        directory, makes rows of both comparable, where settings are equal.

        Raises:
            UsageError: the index holds samples, whose rows depend on its calibration.
            SettingsMismatchError: the calibration taken over is that of another model.
            BadSampleError, SourceError, BusyIndexError: as for `add`.
        """
        with self._writing(wait):
            with self._catalog.snapshot() as snapshot:
                if snapshot.segments():
                    raise UsageError(
                        f"{self.path} holds samples, and their rows depend on its calibration; "
                        "calibrate an index before anything is added to it"
                    )
            found = self._calibration_of(data, columns, media_root)
            self._storage.freeze(found)
            return summary_of(found, self.manifest.settings.damping)

    def calibration(self) -> CalibrationSummary | None:
        """What rows are calibrated with, or None where nothing was added yet."""
        found = self._storage.calibration()
        return None if found is None else summary_of(found, self.manifest.settings.damping)

    def _refuse_media_root(self, media_root: str | PathLike[str] | None) -> None:
        """Data files that an index refers to are read again as they lie."""
        if media_root is not None and self.manifest.settings.payload == "reference":
            raise UsageError(
                f"--media-root {media_root}: {self.path} refers to its data (--payload reference) "
                "and reads images beside it alone; move them there, or build an index with "
                "--payload catalog"
            )

    def _calibration_of(
        self,
        data: Data,
        columns: Mapping[str, str] | None,
        media_root: str | PathLike[str] | None,
    ) -> Calibration:
        if isinstance(data, str | PathLike) and is_index(Path(data)):
            return calibration_from(self._storage, Path(data))
        choice = CalibrationSample(self.manifest.settings.seed)
        sources = self.sources(data, columns, media_root)
        for row in rows_of(self.reader, sources):
            if isinstance(row, BadRow):
                raise BadSampleError(f"{row}. Mend the row")
            choice.offer(row)
        if not choice.samples():
            names = ", ".join(source.name for source in sources)
            raise SourceError(f"{names} has no row to calibrate on")
        return calibrate(
            self.reader,
            self._storage.tables(),
            self.manifest.settings,
            choice.samples(),
            on_progress=self._on_progress,
        )

    def compact(self, *, wait: bool = False) -> CompactReport:
        """Merge small segments and forget removed samples. Readers are not disturbed.

        Raises:
            BusyIndexError: another process writes to the index and `wait` is false.
            BrokenIndexError: a segment is damaged; what was merged before stays merged.
        """
        with self._writing(wait):
            report = compaction.compact(self._storage, on_progress=self._on_progress)
            self._update_codes()
        return report

    def _update_codes(self) -> None:
        """Encode for search what has come, where the index is large enough to be searched so."""
        if search_kind(len(self)) != FLAT or (self.path / SEARCH).is_dir():
            with self._storage.view() as view:
                update_codes(view, self._on_progress)

    def tune(
        self,
        *,
        recall: float = 0.999,
        geometry: str | None = None,
        normalize: bool = False,
        search: str | None = None,
    ) -> TuneReport:
        """Find the cheapest search that reaches a recall at both ends; queries use it from then on.

        `search` is `rabitq` or `ivf-rabitq`, by default what an index of this size is searched
        with. The queries are rows of the index. Nothing is kept where no choice reaches the recall.

        Raises UsageError where there is nothing to tune, or the index has no such rows.
        """
        chosen = self._scoring({"geometry": geometry}, exact=False, rows=True)
        kind = search_kind(len(self), search)
        with self._storage.view() as view:
            rows = RowKind(chosen.geometry, normalize)
            report = tune(view, rows, kind, recall=recall, on_progress=self._on_progress)
        self._valuers.clear()  # it searches as it did before
        return report

    def check(self, *, repair: bool = False, wait: bool = False) -> CheckReport:
        """Compare catalog, segments and checksums; what is wrong is named with its cure.

        With `repair`, lost rows are embedded again from the texts in the catalog, which needs the
        model, and files that the catalog does not know are deleted.

        Raises:
            BusyIndexError: `repair`, another process writes to the index and `wait` is false.
        """
        if not repair:
            return checkup.check(self._storage, on_progress=self._on_progress)
        with self._writing(wait):
            self._valuers.clear()
            return repairing.repair(
                self._storage, lambda: self.embedder, on_progress=self._on_progress
            )


def _with_load(load_s: float, seconds: Mapping[str, float]) -> dict[str, float]:
    return {"load": load_s, **seconds, "total": load_s + seconds["total"]}
