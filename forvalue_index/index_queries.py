"""Asking an index: everything that reads its rows, and what needs its model for that."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

from forvalue_index.devices import gpus
from forvalue_index.gradients.exact_values import validation_gradient
from forvalue_index.gradients.sketch_error import SketchError
from forvalue_index.index_model import IndexModel
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.settings import refuse_on_bad
from forvalue_index.sources.data import Data
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.valuation import explain, query, scoring, values
from forvalue_index.valuation import rerank as reranking
from forvalue_index.valuation.exports import write_values, writer_for
from forvalue_index.valuation.results import Explanation, QueryResult, Values
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import (
    ValidationRows,
    ValidationSet,
    embed_validation,
    read_validation,
)


class IndexQueries(IndexModel):
    """An index whose rows can be asked. The model is loaded when it is first needed."""

    def query(  # noqa: PLR0913 - what a user may ask for
        self,
        data: Data,
        *,
        top: int = 10,
        bottom: int | None = None,
        per_sample: bool = False,
        rerank: int | None = None,
        where: str | None = None,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
        media_root: str | PathLike[str] | None = None,
        **how: Any,
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
            rerank: so many candidates from either end are scored again, exactly, with the model.
            where: only samples that meet this condition, as in `samples`.
            columns: see `add`.
            on_bad: `fail` raises on a row that is not usable, `skip` leaves it out with a warning.
            media_root: see `add`.
            how: fields of `Scoring`: `geometry` (the index's first), `normalize` for cosines,
                `whiten` to multiply the query by (R + L I)^-1 in the space of rows, `search`.

        Raises:
            UsageError: `top` or `bottom` is below 1, `rerank` below either; the index has no rows
                of the geometry; `whiten` with `rerank`, as exact scores have no such space.
            BadSampleError: a row is not usable, or the validation set has no gradient.
            SourceError, SettingsMismatchError: as for `add`.
        """
        counts = query.Counts(top, top if bottom is None else bottom, per_sample, rerank)
        query.refuse_counts(counts)
        chosen = self._scoring(how, exact=rerank is not None, rows=True)
        started = time.perf_counter()
        validation, load_s = self._validation(data, columns, on_bad, media_root)
        embedded = self._embedded(validation, chosen)
        seconds = {"load": load_s, "embed": time.perf_counter() - started - load_s}
        rescore = None
        if rerank is not None and embedded is not None:
            rescore = reranking.rescorer(
                self.reader,
                self.geometry(chosen.geometry),
                validation,
                normalize=chosen.normalize,
                per_sample=per_sample,
                on_progress=self._on_progress,
            )
        started = time.perf_counter()

        def asked(valuer: query.Valuer, snapshot: Snapshot) -> QueryResult:
            seconds["open"] = time.perf_counter() - started
            return valuer.query(validation, embedded, snapshot, counts, rescore, where=where)

        result = self._valuers.ask(chosen, asked)
        return replace(result, seconds={**seconds, **result.seconds})

    def values(  # noqa: PLR0913 - as for `query`
        self,
        data: Data,
        *,
        output: str | PathLike[str] | None = None,
        exact: bool = False,
        where: str | None = None,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
        media_root: str | PathLike[str] | None = None,
        **how: Any,
    ) -> Values:
        """A score for every sample, or those that meet `where`: `ids`, `scores`, `stderrs`.

        With `output`, columns id, key, source, score and stderr are also written to a Parquet, CSV
        or JSONL file, by suffix. With `exact`, all samples run through the model again. `how` as
        for `query`; exact scores can have any geometry that the index is calibrated for.

        Raises:
            UsageError: the suffix of `output` is unknown or its directory missing.
            BadSampleError, SourceError, SettingsMismatchError: as for `query`.
        """
        path = None if output is None else Path(output)
        if path is not None:
            writer_for(path)
        chosen = self._scoring(how, exact=exact, rows=not exact)
        validation, _ = self._validation(data, columns, on_bad, media_root)
        if exact and not self._storage.uncalibrated:
            target = validation_gradient(
                self.reader,
                self.geometry(chosen.geometry),
                validation.prepared,
                normalize=chosen.normalize,
                on_progress=self._on_progress,
            )
            with self._catalog.snapshot() as snapshot:
                scored = values.streamed_values(
                    snapshot, self.reader, target, where=where, on_progress=self._on_progress
                )
                _write(path, snapshot, scored, where)
            return scored
        embedded = self._embedded(validation, chosen)
        if embedded is not None and gpus():
            on_gpus = self._values_on_gpus(chosen, embedded, path, where)
            if on_gpus is not None:
                return on_gpus
        sketched = embedded is not None
        errors = self._storage.sketch_error(chosen.geometry) if sketched else SketchError(())
        with self._storage.view() as view:
            scored = values.sketched_values(
                view,
                embedded,
                chosen,
                errors=errors,
                damping=self.manifest.settings.damping,
                where=where,
                on_progress=self._on_progress,
            )
            _write(path, view.catalog, scored, where)
        return scored

    def explain(
        self,
        sample: str | int,
        data: Data,
        *,
        validation_tokens: bool = False,
        columns: Mapping[str, str] | None = None,
        on_bad: str = "fail",
        media_root: str | PathLike[str] | None = None,
        **how: Any,
    ) -> Explanation:
        """What each label token adds to the exact value of a sample for a validation set.

        The terms sum to the score. With `validation_tokens`, the same score is also split over the
        tokens of the validation samples. `how` as for `query`, but for `whiten`.

        Raises:
            CatalogError: there is no such sample.
            BadSampleError: its text is lost, or as for `query`.
        """
        chosen = self._scoring(how, exact=True, rows=False)
        with self._catalog.snapshot() as snapshot:
            stored = snapshot.sample(str(sample))
        validation, _ = self._validation(data, columns, on_bad, media_root)
        return explain.explain(
            self.reader,
            self.geometry(chosen.geometry),
            stored,
            validation,
            normalize=chosen.normalize,
            validation_tokens=validation_tokens,
        )

    def _scoring(self, how: Mapping[str, Any], *, exact: bool, rows: bool) -> Scoring:
        """What is asked for. Raises as `scoring.wanted_scoring`."""
        held = self.manifest.settings.geometries
        return scoring.wanted_scoring(self.path, held, how, exact=exact, rows=rows)

    def _validation(
        self,
        data: Data,
        columns: Mapping[str, str] | None,
        on_bad: str,
        media_root: str | PathLike[str] | None,
    ) -> tuple[ValidationSet, float]:
        """A validation set, and the seconds that loading the model took."""
        refuse_on_bad(on_bad)
        sources = self.sources(data, columns, media_root)
        started = time.perf_counter()
        reader = self.reader
        load_s = time.perf_counter() - started
        return read_validation(reader, sources=sources, on_bad=on_bad), load_s

    def _embedded(self, validation: ValidationSet, chosen: Scoring) -> ValidationRows | None:
        """The rows of a validation set; none where the index waits for its first samples."""
        if self._storage.uncalibrated:
            return None
        return embed_validation(
            self._storage.embedder(self.reader, [chosen.geometry]),
            chosen.geometry,
            validation,
            normalize=chosen.normalize,
            on_progress=self._on_progress,
        )

    def _values_on_gpus(
        self, chosen: Scoring, embedded: ValidationRows, path: Path | None, where: str | None
    ) -> Values | None:
        """The values of rows that lie in the memory of GPUs; None where they do not."""

        def asked(valuer: query.Valuer, search: GpuIndex, snapshot: Snapshot) -> Values:
            scored = values.resident_values(valuer, search, embedded, snapshot, where)
            _write(path, snapshot, scored, where)
            return scored

        return self._valuers.ask_gpus(chosen, asked)


def _write(path: Path | None, catalog: Snapshot, scored: Values, where: str | None) -> None:
    if path is not None:
        write_values(path, values.named_values(catalog, scored, where))
