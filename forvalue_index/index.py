"""`ValuationIndex`: the whole product from Python."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from forvalue_index import ingest, valuation
from forvalue_index.backbone import Backbone, default_device
from forvalue_index.contracts import OnProgress, ignore_progress
from forvalue_index.exceptions import UsageError
from forvalue_index.exports import write_values, writer_for
from forvalue_index.features import Embedder
from forvalue_index.loading import (
    ModelAccess,
    located_catalog,
    make_embedder,
    resolve,
    wanted_settings,
)
from forvalue_index.manifest import is_index, refuse_occupied, refuse_other_settings
from forvalue_index.model_profile import profile_model
from forvalue_index.records import (
    AddReport,
    CatalogSummary,
    Progress,
    QueryResult,
    StoredSample,
    Values,
)
from forvalue_index.settings import DEFAULT_CATALOG, ON_BAD, Manifest, Settings
from forvalue_index.sources import open_sources
from forvalue_index.storage import Storage

Data = Any
"""A path, a glob, `-` for standard input, a list of paths, a `datasets.Dataset`, or dicts."""


class ValuationIndex:
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
        self._storage = storage
        self._access = access
        self._on_progress = on_progress
        self._embedder: Embedder | None = None
        self._valuer: tuple[int, valuation.Valuer] | None = None

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
            catalog: `sqlite` for a file in the index, or an SQLAlchemy URL.
            on_progress: called with each step of long tasks.
            settings: the other fields of `Settings`: adapter, revision, dim (floats a row), seed,
                labels, template, max_length (tokens), row_dtype, dtype, trust_remote_code. Frozen.

        Raises:
            UsageError: a setting has a value that cannot work.
            ModelError: the model cannot be loaded or is of an unknown kind.
            SettingsMismatchError: there is an index with other settings.
            BrokenIndexError: the directory holds something else.
        """
        where = Path(path)
        wanted, catalog = wanted_settings(model, settings), located_catalog(catalog)
        access = ModelAccess(trust_remote_code=wanted.trust_remote_code)
        if is_index(where):
            opened = cls(Storage.open(where), access, on_progress=on_progress)
            try:
                opened._refuse_other(wanted, catalog)
            except BaseException:
                opened.close()
                raise
            return opened
        refuse_occupied(where)
        on_progress(Progress("loading", 0, 1))
        backbone = Backbone.load(wanted, device=default_device())
        on_progress(Progress("loading", 1, 1))
        storage = Storage.create(
            where,
            resolve(wanted, backbone),
            model=backbone.identity(),
            catalog=catalog,
            profile=profile_model(backbone, backbone.head, context=backbone.context),
        )
        index = cls(storage, access, on_progress=on_progress)
        index._embedder = index._make_embedder(backbone)
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
        self._storage.close()

    def __enter__(self) -> ValuationIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return self._storage.catalog.count(None)

    @property
    def manifest(self) -> Manifest:
        """Settings, model digests and fingerprint."""
        return self._storage.manifest

    def add(
        self, data: Data, *, columns: Mapping[str, str] | None = None, on_bad: str = "fail"
    ) -> AddReport:
        """Embed and store the samples that the index does not hold yet.

        Args:
            data: see `Data`.
            columns: canonical field (prompt, response, messages, text, id) to column name.
            on_bad: `fail` raises on the first row that is not usable, before anything is embedded
                where the data can be read twice; `skip` writes such rows to a file in the index.

        Raises:
            BadSampleError: a row is not usable, with file, line and reason.
            SourceError: the data cannot be read, or holds no row.
            SettingsMismatchError: the model is not the one that the index was built with.
        """
        _refuse_on_bad(on_bad)
        sources = open_sources(data, columns)
        started = time.perf_counter()
        embedder = self.embedder
        load_s = time.perf_counter() - started
        report = ingest.add(
            self._storage, embedder, sources=sources, on_bad=on_bad, on_progress=self._on_progress
        )
        return replace(report, seconds=_with_load(load_s, report.seconds))

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
        valuer = self._current_valuer()
        seconds["open"] = time.perf_counter() - started
        result = valuer.query(validation, top=top, bottom=bottom, per_sample=per_sample)
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
        scored = valuation.values(self._storage, validation, on_progress=self._on_progress)
        if path is not None:
            write_values(path, valuation.named_values(self._storage, scored))
        return scored

    def info(self) -> CatalogSummary:
        """Counts, bytes, sources and median loss."""
        return self._storage.catalog.summary()

    @property
    def version(self) -> int:
        """How many changes have been committed to the index."""
        return self._storage.catalog.version()

    def sample(self, name: str | int) -> StoredSample:
        """The sample with this key or id. Raises ForValueError where there is none."""
        return self._storage.catalog.sample(str(name))

    def list_samples(
        self, where: str | None = None, *, limit: int = 100, offset: int = 0
    ) -> list[StoredSample]:
        """Samples in order of id that meet a filter such as `source = 'a' AND n_tokens > 50`.

        Raises:
            FilterError: the filter is malformed or names an unknown column.
        """
        return self._storage.catalog.list_samples(where, limit=limit, offset=offset)

    def count(self, where: str | None = None) -> int:
        """How many samples meet a filter. Raises FilterError as `list_samples` does."""
        return self._storage.catalog.count(where)

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

    def _current_valuer(self) -> valuation.Valuer:
        """A valuer over the index as it is now; kept until the index changes."""
        version = self.version
        if self._valuer is None or self._valuer[0] != version:
            self._on_progress(Progress("opening", 0, 1))
            search = self._storage.search_index()
            self._valuer = version, valuation.Valuer(self._storage, search, version=version)
            self._on_progress(Progress("opening", 1, 1))
        return self._valuer[1]

    @property
    def embedder(self) -> Embedder:
        """What turns samples into rows. Loads the model when it is first asked for."""
        if self._embedder is None:
            self._on_progress(Progress("loading", 0, 1))
            backbone = self._access.load(self._storage.path, self.manifest)
            self._embedder = self._make_embedder(backbone)
            self._on_progress(Progress("loading", 1, 1))
        return self._embedder

    def _make_embedder(self, backbone: Backbone) -> Embedder:
        return make_embedder(backbone, self.manifest.settings, self._storage.tables())

    def _refuse_other(self, wanted: Settings, catalog: str) -> None:
        refuse_other_settings(self._storage.path, self.manifest.settings, wanted)
        if catalog not in (DEFAULT_CATALOG, self.manifest.catalog):
            raise UsageError(
                f"{self._storage.path} has its catalog at {self.manifest.shown_catalog}, and this "
                "asks for another; leave --catalog out"
            )


def _refuse_on_bad(on_bad: str) -> None:
    if on_bad not in ON_BAD:
        raise UsageError(f"--on-bad cannot be {on_bad!r}; use one of {', '.join(ON_BAD)}")


def _with_load(load_s: float, seconds: Mapping[str, float]) -> dict[str, float]:
    return {"load": load_s, **seconds, "total": load_s + seconds["total"]}
