"""`ValuationIndex`: the whole product from Python."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from forvalue_index.ingest.add import add, refuse_media_root
from forvalue_index.ingest.calibration import calibrate, calibration_of
from forvalue_index.ingest.relabelling import with_relabelled
from forvalue_index.ingest.tally import AddReport
from forvalue_index.progress import OnProgress, ignore_progress
from forvalue_index.search.building import RowKind, keep_codes_current
from forvalue_index.search.contract import TuneReport
from forvalue_index.search.kinds import search_kind
from forvalue_index.settings import DEFAULT_CATALOG
from forvalue_index.sources.data import Data, DataOptions
from forvalue_index.store.checkup import check
from forvalue_index.store.compaction import compact
from forvalue_index.store.create import open_or_create, wanted_settings
from forvalue_index.store.model import IndexModel, ModelAccess
from forvalue_index.store.records import StoredSample
from forvalue_index.store.repair import repair as repair_index
from forvalue_index.store.results import (
    CalibrationSummary,
    CatalogSummary,
    CheckReport,
    CompactReport,
)
from forvalue_index.store.samples import Chosen, IndexSamples
from forvalue_index.store.store import Storage
from forvalue_index.store.writer_lock import writer_lock
from forvalue_index.valuation.explain import explain
from forvalue_index.valuation.held_search import HeldSearch
from forvalue_index.valuation.options import QueryOptions, asked, wanted_scoring
from forvalue_index.valuation.query import AnswerCounts, query
from forvalue_index.valuation.results import Explanation, QueryResult, Values
from forvalue_index.valuation.values import Selection, refuse_selection, values


class ValuationIndex:
    """An index of training samples that answers validation sets. A context manager, or `close` it.

    The model is loaded when it is first needed: adding and querying need it, reading does not.

    Wherever `data` is asked for, it may be `Data`, or what that takes as `rows` with its other
    fields as keyword arguments: `columns`, `on_bad`, `media_root`, `ignore`.

    Attributes:
        path: the directory of the index.
        manifest: what the index was made with.
        storage: the index on disk, for what reads its rows.
        model: its model, and what reads samples and makes rows with it.
    """

    def __init__(self, model: IndexModel) -> None:
        self.model = model
        self.storage = model.storage
        self.path = self.storage.path
        self.manifest = self.storage.manifest
        catalog, report = self.storage.catalog, model.report
        self._samples = IndexSamples(self.path, self.manifest, catalog, on_progress=report)
        self._search = HeldSearch(self.storage, model.on_progress)

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
            settings: the other fields of `Settings`, which are frozen.

        Raises:
            UsageError, ModelError: a setting, or the model, cannot work.
            SettingsMismatchError, BrokenIndexError: there is another index, or something else.
        """
        wanted = wanted_settings(model, settings)
        return cls(open_or_create(Path(path), wanted, catalog, on_progress))

    @classmethod
    def open(
        cls,
        path: str | PathLike[str],
        *,
        model: str | None = None,
        trust_remote_code: bool = False,
        on_progress: OnProgress = ignore_progress,
    ) -> ValuationIndex:
        """Open an index. `model` says where its model lies now, if that has moved.

        One made with `trust_remote_code` loads its model only if that is said again. Raises
        BrokenIndexError where there is none, or a damaged one, or one of a newer version.
        """
        access = ModelAccess(model, trust_remote_code)
        return cls(IndexModel(Storage.open(Path(path)), access, on_progress=on_progress))

    def close(self) -> None:
        """Let go of the model and of the catalog."""
        self.model.close()
        self._search.clear()
        self._samples.close()

    def __enter__(self) -> ValuationIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(
        self,
        data: Any,
        *,
        wait: bool = False,
        relabel: bool = False,
        **options: Unpack[DataOptions],
    ) -> AddReport:
        """Embed and store the samples that the index does not hold yet.

        Removed samples are restored, and known ones get the new metadata of their rows, without a
        forward pass. What stops an `add` costs no more than its last 30 s: add the same again.

        Args:
            data: see `Data`. With `on_bad="fail"`, data that can be read twice are checked before
                anything is embedded; with "skip", bad rows go to a file in the index.
            wait: where another process writes to the index, wait for it instead of failing.
            relabel: embed samples anew that are read or labelled otherwise now (see `check`).
            options: how rows are read, see `Data`.

        Raises:
            BusyIndexError: another process writes to the index and `wait` is false.
            BadSampleError, SourceError: a row is not usable, or the data cannot be read.
            SettingsMismatchError: the model is not the one that the index was built with.
        """
        wanted = Data.of(data, options)
        refuse_media_root(self.storage, wanted.media_root)
        sources = self.model.sources(wanted)
        with self._writing(wait):
            self._search.clear()  # which may hold the memory that the model needs
            report = add(self.model, sources, on_bad=wanted.on_bad, relabel=relabel)
            if report.added:
                keep_codes_current(self.storage, self.model.on_progress)
        return report

    def calibrate(
        self, data: Any, *, wait: bool = False, **options: Unpack[DataOptions]
    ) -> CalibrationSummary:
        """Calibrate an index without samples on data, or take over the calibration of an index.

        Otherwise the first `add` calibrates on a sample of its data. Data may be the directory of
        another index. Raises UsageError where the index holds samples: rows depend on it.
        """
        with self._writing(wait):
            return calibrate(self.model, Data.of(data, options))

    def calibration(self) -> CalibrationSummary | None:
        """What rows are calibrated with, or None where nothing was added yet."""
        return calibration_of(self.storage)

    def compact(self, *, wait: bool = False) -> CompactReport:
        """Merge small segments and forget removed samples. Readers are not disturbed."""
        with self._writing(wait):
            report = compact(self.storage, on_progress=self.model.on_progress)
            keep_codes_current(self.storage, self.model.on_progress)
        return report

    def tune(
        self,
        *,
        recall: float = 0.999,
        geometry: str | None = None,
        normalize: bool = False,
        search: str | None = None,
    ) -> TuneReport:
        """Find the cheapest search that reaches a recall at both ends; queries use it from then on.

        `search` is `rabitq` or `ivf-rabitq`, by default as the size of the index has it. Queries
        are rows of the index. Raises UsageError where it has no such rows, or nothing to tune.
        """
        scoring = wanted_scoring(self.storage, {"geometry": geometry}, exact=False, rows=True)
        kind, rows = search_kind(len(self), search), RowKind(scoring.geometry, normalize)
        return self._search.tune(rows, kind, recall=recall)

    def check(
        self, *, repair: bool = False, labels: bool = False, wait: bool = False
    ) -> CheckReport:
        """Compare catalog, segments and checksums; what is wrong is named with its cure.

        With `repair`, lost rows are embedded again from the texts in the catalog, and files that it
        does not know are deleted. With `labels`, samples are named, too, that earlier versions read
        or labelled otherwise. Both need the model.
        """
        if repair:
            with self._writing(wait):
                self._search.clear()
                report = repair_index(self.model)
        else:
            report = check(self.storage, on_progress=self.model.on_progress)
        return with_relabelled(self.model, report) if labels else report

    def query(
        self,
        data: Any,
        *,
        top: int = 10,
        bottom: int | None = None,
        per_sample: bool = False,
        rerank: int | None = None,
        where: str | None = None,
        **options: Unpack[QueryOptions],
    ) -> QueryResult:
        """The most helpful and the most harmful samples for a validation set.

        The score of a sample is its mean value over the validation set: the inner product of head
        gradients (arXiv 2508.10180, Eq. 1). Positive helps. Sketched ones have standard errors.

        Args:
            data: the validation set, see `Data`.
            top: how many of the most helpful samples.
            bottom: how many of the most harmful ones, by default as many.
            per_sample: also answer each validation sample alone.
            rerank: so many candidates from either end are scored again, exactly, with the model.
            where: only samples that meet this condition, as in `list_samples`.
            options: how the set is read, see `Data`, and what a score is, see `Scoring`.

        Raises:
            UsageError: a count is below 1, `rerank` below the others; there are no such rows.
            BadSampleError, SourceError, SettingsMismatchError: as `add`; there is no gradient.
        """
        counts = AnswerCounts(top, top if bottom is None else bottom, per_sample, rerank)
        wanted, scoring = asked(self.storage, data, options, exact=rerank is not None, rows=True)
        return query(self.model, self._search, wanted, counts=counts, scoring=scoring, where=where)

    def values(
        self,
        data: Any,
        *,
        output: str | PathLike[str] | None = None,
        exact: bool = False,
        where: str | None = None,
        **options: Unpack[QueryOptions],
    ) -> Values:
        """A score for every sample, or those that meet `where`: `ids`, `scores`, `stderrs`.

        With `output`, columns id, key, source, score and stderr are also written to a Parquet, CSV
        or JSONL file, by suffix. With `exact`, all samples run through the model again, in any
        geometry that the index is calibrated for. `options` and errors as for `query`.
        """
        selection = Selection(where, None if output is None else Path(output))
        refuse_selection(selection)
        wanted, scoring = asked(self.storage, data, options, exact=exact, rows=not exact)
        return values(
            self.model, self._search, wanted, scoring=scoring, exact=exact, selection=selection
        )

    def explain(
        self,
        sample: str | int,
        data: Any,
        *,
        validation_tokens: bool = False,
        **options: Unpack[QueryOptions],
    ) -> Explanation:
        """What each label token adds to the exact value of a sample for a validation set.

        The terms sum to the score; with `validation_tokens` it is split over those of the set, too.
        `options` as for `query`, but for `whiten`. Raises CatalogError for no such sample.
        """
        wanted, scoring = asked(self.storage, data, options, exact=True, rows=False)
        return explain(
            self.model, str(sample), wanted, scoring=scoring, validation_tokens=validation_tokens
        )

    def __len__(self) -> int:
        return self._samples.count()

    def count(self, where: str | None = None) -> int:
        """How many samples meet a filter. Raises FilterError as `list_samples` does."""
        return self._samples.count(where)

    def info(self) -> CatalogSummary:
        """Counts, bytes, sources and median loss."""
        return self._samples.info()

    @property
    def version(self) -> int:
        """How many changes have been committed to the index."""
        return self._samples.version

    def sample(self, name: str | int) -> StoredSample:
        """The sample with this key, or `@3` for the number 3. Raises CatalogError for none."""
        return self._samples.sample(name)

    def list_samples(
        self, where: str | None = None, *, limit: int = 100, offset: int = 0
    ) -> list[StoredSample]:
        """Samples in order of id that meet a filter such as `source = 'a' AND n_tokens > 50`."""
        return self._samples.list_samples(where, limit=limit, offset=offset)

    def remove(
        self, names: Sequence[str | int] = (), *, wait: bool = False, **chosen: Unpack[Chosen]
    ) -> int:
        """Remove samples by key or number, of a `source` or a filter, as `IndexSamples.remove`."""
        return self._samples.remove(names, wait=wait, **chosen)

    def _writing(self, wait: bool) -> AbstractContextManager[None]:
        return writer_lock(self.path, wait=wait, on_progress=self.model.on_progress)
