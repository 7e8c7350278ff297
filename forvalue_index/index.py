"""`ValuationIndex`: the whole product from Python."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from forvalue_index import checkup, compaction, ingest, valuation
from forvalue_index.contracts import OnProgress, ignore_progress
from forvalue_index.exceptions import UsageError
from forvalue_index.exports import write_values, writer_for
from forvalue_index.features import Embedder
from forvalue_index.index_samples import IndexSamples
from forvalue_index.loading import ModelAccess, create_storage, load_embedder, wanted_settings
from forvalue_index.manifest import (
    is_index,
    refuse_other_catalog,
    refuse_other_settings,
    refuse_strange_catalog,
)
from forvalue_index.records import Progress
from forvalue_index.results import AddReport, CheckReport, CompactReport, QueryResult, Values
from forvalue_index.settings import DEFAULT_CATALOG, ON_BAD
from forvalue_index.snapshot import Snapshot
from forvalue_index.sources import open_sources
from forvalue_index.storage import Storage

Data = Any
"""A path, a glob, `-` for standard input, a list of paths, a `datasets.Dataset`, or dicts."""


class ValuationIndex(IndexSamples):
    """An index of training samples that answers validation sets.

    The model is loaded when it is first needed: adding and querying need it, reading does not.
    Use as a context manager, or call `close`.
    """

    def __init__(
        self,
        storage: Storage,
        access: ModelAccess,
        *,
        on_progress: OnProgress = ignore_progress,
    ) -> None:
        super().__init__(storage.path, storage.manifest, storage.catalog, on_progress=on_progress)
        self._storage = storage
        self._access = access
        self._embedder: Embedder | None = None
        self._valuer: valuation.Valuer | None = None

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
            model: hub id, local directory or GGUF file of a causal language model.
            catalog: `sqlite` for a file in the index, or `postgresql+psycopg://USER@HOST/NAME`.
            on_progress: called with each step of long tasks.
            settings: the other fields of `Settings`: adapter, revision, dim (floats a row), seed,
                labels, template, max_length (tokens), row_dtype, dtype, trust_remote_code. Frozen.

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
        storage, embedder = create_storage(where, wanted, catalog, on_progress)
        index = cls(storage, access, on_progress=on_progress)
        index._embedder = embedder
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

    def close(self) -> None:
        """Let go of the model and of the catalog."""
        self._embedder = self._valuer = None
        super().close()

    def __enter__(self) -> ValuationIndex:
        return self

    def add(
        self,
        data: Data,
        *,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
        wait: bool = False,
    ) -> AddReport:
        """Embed and store the samples that the index does not hold yet.

        Removed samples are restored, and known ones get the new metadata of their rows, without a
        forward pass. What stops an `add` costs no more than its last 30 s: add the same again.

        Args:
            data: see `Data`.
            columns: canonical field (prompt, response, messages, text, id) to column name.
            on_bad: `fail` raises on the first row that is not usable, before anything is embedded
                where the data can be read twice; `skip` writes such rows to a file in the index.
            wait: where another process writes to the index, wait for it instead of failing.

        Raises:
            BusyIndexError: another process writes to the index and `wait` is false.
            BadSampleError: a row is not usable, with file, line and reason.
            SourceError: the data cannot be read, or holds no row.
            SettingsMismatchError: the model is not the one that the index was built with.
        """
        _refuse_on_bad(on_bad)
        sources = open_sources(data, columns)
        with self._writing(wait):
            started = time.perf_counter()
            embedder = self.embedder
            load_s = time.perf_counter() - started
            report = ingest.add(
                self._storage,
                embedder,
                sources=sources,
                on_bad=on_bad,
                on_progress=self._on_progress,
            )
        return replace(report, seconds=_with_load(load_s, report.seconds))

    def compact(self, *, wait: bool = False) -> CompactReport:
        """Merge small segments and forget removed samples. Readers are not disturbed.

        Raises:
            BusyIndexError: another process writes to the index and `wait` is false.
            BrokenIndexError: a segment is damaged; what was merged before stays merged.
        """
        with self._writing(wait):
            return compaction.compact(self._storage, on_progress=self._on_progress)

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
            return checkup.repair(
                self._storage, lambda: self.embedder, on_progress=self._on_progress
            )

    def query(
        self,
        data: Data,
        *,
        top: int = 10,
        bottom: int | None = None,
        per_sample: bool = False,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
    ) -> QueryResult:
        """The most helpful and the most harmful samples for a validation set.

        The score of a sample is its mean value over the validation set: the inner product of the
        head gradients of both (arXiv 2508.10180, Eq. 1). Positive helps, negative hurts. Sketched
        scores carry their standard error.

        Args:
            data: the validation set, see `Data`.
            top: how many of the most helpful samples.
            bottom: how many of the most harmful ones; as many as `top` where it is None.
            per_sample: also answer each validation sample alone.
            columns: see `add`.
            on_bad: `fail` raises on a row that is not usable, `skip` leaves it out with a warning.

        Raises:
            UsageError: `top` or `bottom` is below 1.
            BadSampleError, SourceError, SettingsMismatchError: as for `add`.
        """
        bottom = top if bottom is None else bottom
        valuation.refuse_counts(top=top, bottom=bottom)
        validation, seconds = self._validation(data, columns, on_bad)
        started = time.perf_counter()
        with self._current_valuer() as (valuer, snapshot):
            seconds["open"] = time.perf_counter() - started
            result = valuer.query(
                validation, snapshot, top=top, bottom=bottom, per_sample=per_sample
            )
        return replace(result, seconds={**seconds, **result.seconds})

    def values(
        self,
        data: Data,
        *,
        output: str | PathLike[str] | None = None,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
    ) -> Values:
        """A score for every sample: arrays `ids`, `scores`, `stderrs`, each [sample].

        With `output`, columns id, key, source, score and stderr are also written to a Parquet, CSV
        or JSONL file, by suffix.

        Raises:
            UsageError: the suffix of `output` is unknown or its directory missing.
            BadSampleError, SourceError, SettingsMismatchError: as for `add`.
        """
        path = None if output is None else Path(output)
        if path is not None:
            writer_for(path)
        validation, _ = self._validation(data, columns, on_bad)
        widths = self._storage.part_widths()
        with self._storage.view() as view:
            scored = valuation.values(
                view, validation, widths=widths, on_progress=self._on_progress
            )
            if path is not None:
                write_values(path, valuation.named_values(view.catalog, scored))
        return scored

    def _validation(
        self, data: Data, columns: Mapping[str, str] | None, on_bad: str
    ) -> tuple[valuation.ValidationSet, dict[str, float]]:
        _refuse_on_bad(on_bad)
        sources = open_sources(data, columns)
        started = time.perf_counter()
        embedder = self.embedder
        loaded = time.perf_counter()
        validation = valuation.embed_validation(
            embedder, sources=sources, on_bad=on_bad, on_progress=self._on_progress
        )
        return validation, {"load": loaded - started, "embed": time.perf_counter() - loaded}

    @contextmanager
    def _current_valuer(self) -> Iterator[tuple[valuation.Valuer, Snapshot]]:
        """A valuer over the index as it is now, kept until the index changes, and a snapshot."""
        with self._catalog.snapshot() as snapshot:
            if self._valuer is not None and self._valuer.version == snapshot.version():
                yield self._valuer, snapshot
                return
        with self._storage.view() as view:
            self._on_progress(Progress("opening", 0, 1))
            search = view.search_index()
            self._valuer = valuation.Valuer(self._storage, search, version=view.version)
            self._on_progress(Progress("opening", 1, 1))
            yield self._valuer, view.catalog

    @property
    def storage(self) -> Storage:
        """The index on disk, for what reads its rows."""
        return self._storage

    @property
    def on_progress(self) -> OnProgress:
        """What is called with each step of long tasks."""
        return self._on_progress

    @property
    def embedder(self) -> Embedder:
        """What turns samples into rows. Loads the model when it is first asked for."""
        if self._embedder is None:
            self._embedder = load_embedder(self._storage, self._access, self._on_progress)
        return self._embedder


def _refuse_on_bad(on_bad: str) -> None:
    if on_bad not in ON_BAD:
        raise UsageError(f"--on-bad cannot be {on_bad!r}; use one of {', '.join(ON_BAD)}")


def _with_load(load_s: float, seconds: Mapping[str, float]) -> dict[str, float]:
    return {"load": load_s, **seconds, "total": load_s + seconds["total"]}
