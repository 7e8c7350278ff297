"""Answering a validation set: which stored samples helped it, which hurt, and by how much.

The score is linear in the query, so a validation set is answered by one search with the mean of
its rows. The most harmful samples are the best ones for the negated query. What the search finds
can be scored again exactly, with the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BrokenIndexError, BusyIndexError, UsageError
from forvalue_index.gradients.sketch_error import SketchError
from forvalue_index.search.contract import Ids, Rows, Scores, SearchIndex
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.records import StoredSample
from forvalue_index.store.segments import CURE
from forvalue_index.store.store import Storage
from forvalue_index.store.view import View
from forvalue_index.valuation.rerank import NOTHING, Exact, Rescore
from forvalue_index.valuation.results import (
    QueryResult,
    ScoredSample,
    ValidationResult,
    saturation_warnings,
)
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import ValidationRows, ValidationSet
from forvalue_index.valuation.whitening import WHITENING_ROWS, Whitening


class Counts(NamedTuple):
    """How many answers: the `top` most helpful, the `bottom` most harmful.

    With `rerank`, as many candidates from either end are scored exactly. `per_sample` asks for
    answers to each validation sample, too.
    """

    top: int
    bottom: int
    per_sample: bool = False
    rerank: int | None = None


class _Ranking(NamedTuple):
    """Answers to one query from one end, best first."""

    ids: Ids
    scores: Scores
    exact: NDArray[np.bool_]

    def first(self, count: int) -> _Ranking:
        return _Ranking(self.ids[:count], self.scores[:count], self.exact[:count])


class Valuer:
    """Scores one state of an index in one way, with a search index over its rows."""

    def __init__(
        self,
        storage: Storage,
        view: View,
        scoring: Scoring,
        search: SearchIndex,
    ) -> None:
        self._storage = storage
        self._scoring = scoring
        self.search = search
        self._errors = storage.sketch_error(scoring.geometry)
        self._whitening: Whitening | None = None
        if scoring.whiten and len(search):
            ridge = storage.manifest.settings.damping
            self._whitening = whitening_of(view, scoring, ridge)
        self.version = view.version

    def query(
        self,
        validation: ValidationSet,
        embedded: ValidationRows | None,
        catalog: Snapshot,
        counts: Counts,
        rescore: Rescore | None = None,
        *,
        where: str | None = None,
    ) -> QueryResult:
        """The most helpful and most harmful samples for a validation set.

        `catalog` is a snapshot of the same state of the index; `embedded` may be None where the
        index holds no samples. `rescore` scores the candidates of `counts.rerank` exactly. Only
        samples that meet `where` are searched.
        """
        if embedded is None:
            refuse_filled(catalog)
        started = time.perf_counter()
        n_queries = 1 + len(validation.prepared) * counts.per_sample
        queries = self.queries(embedded, n_queries)
        wanted = [counts.rerank or count for count in (counts.top, counts.bottom)]
        allowed = None if where is None else catalog.live_ids(where)
        searched = len(self.search) if allowed is None else len(allowed)
        helpful = self.search.search(queries, wanted[0], allowed)
        harmful = [(i, -scores) for i, scores in self.search.search(-queries, wanted[1], allowed)]
        stored = self._stored(catalog, [ids for ids, _ in [*helpful, *harmful]])
        seconds = {"search": time.perf_counter() - started}
        exact = NOTHING
        if rescore is not None and stored:
            exact = rescore(stored)
            seconds["rerank"] = time.perf_counter() - started - seconds["search"]
        answers = []
        for i, query in enumerate(queries):
            best = self._merged(helpful[i], exact, i, sign=1).first(counts.top)
            worst = self._merged(harmful[i], exact, i, sign=-1).first(counts.bottom)
            answers.append((self._hits(query, best, stored), self._hits(query, worst, stored)))
        index_mass = catalog.label_error_mass()
        mass = None if embedded is None else embedded.label_error_mass
        remarks = (
            *validation.warnings,
            *_remarks(answers[0][1], counts, searched, where),
            *saturation_warnings({"validation samples": mass, "indexed samples": index_mass}),
            *_failed(exact.failures),
            *_lost_texts(stored),
        )
        return QueryResult(
            index=str(self._storage.path),
            fingerprint=self._storage.manifest.fingerprint,
            index_version=self.version,
            scoring=self._scoring,
            validation_samples=len(validation.prepared),
            validation_label_tokens=validation.label_tokens,
            searched=searched,
            search=self.search.kind,
            where=where,
            reranked=len(exact.ids),
            helpful=answers[0][0],
            harmful=answers[0][1],
            per_sample=tuple(ValidationResult(i, *ends) for i, ends in enumerate(answers[1:])),
            label_error_mass=mass,
            index_error_mass=index_mass,
            seconds=seconds,
            warnings=remarks,
        )

    @property
    def errors(self) -> SketchError | None:
        """How far sketched scores are off; None where they are whitened."""
        return self._errors if self._whitening is None else None

    def queries(self, embedded: ValidationRows | None, count: int) -> Rows:
        """The mean of a validation set and then its samples, the first `count` of them."""
        if embedded is None:
            return np.zeros((count, self._storage.manifest.row_width), np.float32)
        queries = np.concatenate([embedded.mean[None], embedded.rows])[:count]
        return queries if self._whitening is None else self._whitening(queries)

    def _stored(self, catalog: Snapshot, found: Sequence[Ids]) -> dict[int, StoredSample]:
        ids = np.unique(np.concatenate(found))
        stored = catalog.samples(ids.tolist())
        refuse_other_ids(np.array(sorted(stored), dtype=np.int64), ids)
        return stored

    def _merged(
        self, found: tuple[Ids, Scores], exact: Exact, query: int, *, sign: int
    ) -> _Ranking:
        """Exact scores where there are any, and sketched ones of candidates without, in order."""
        ids, scores = found
        is_exact = np.full(len(ids), not self._errors.widths and self._whitening is None)
        if len(exact.ids):
            left = ~np.isin(ids, exact.ids)
            ids = np.concatenate([exact.ids, ids[left]])
            scores = np.concatenate([exact.scores[query].astype(np.float32), scores[left]])
            is_exact = np.concatenate([np.full(len(exact.ids), True), is_exact[left]])
        order = np.lexsort((ids, -sign * scores))
        return _Ranking(ids[order], scores[order], is_exact[order])

    def _hits(
        self, query: Rows, ranking: _Ranking, stored: Mapping[int, StoredSample]
    ) -> tuple[ScoredSample, ...]:
        stderrs = self._standard_errors(query, ranking)
        return tuple(
            ScoredSample(
                rank=rank,
                id=id_,
                score=float(score),
                stderr=stderr,
                exact=bool(exact),
                sample=stored[id_].sample,
            )
            for rank, (id_, score, exact, stderr) in enumerate(
                zip(ranking.ids.tolist(), ranking.scores, ranking.exact, stderrs, strict=True), 1
            )
        )

    def _standard_errors(self, query: Rows, ranking: _Ranking) -> list[float | None]:
        if self._whitening is not None:
            return [None] * len(ranking.ids)
        sketched = self._errors.standard_errors(query, self.search.rows(ranking.ids))
        return [0.0 if e else float(s) for s, e in zip(sketched, ranking.exact, strict=True)]


def whitening_of(view: View, scoring: Scoring, ridge: float) -> Whitening:
    """The whitening by a sample of the rows of an index."""
    geometry, normalize = scoring.geometry, scoring.normalize
    rows = view.some_rows(geometry, WHITENING_ROWS, normalize=normalize)
    return Whitening(rows, ridge=ridge)


def refuse_filled(catalog: Snapshot) -> None:
    """Raise BusyIndexError where an index that was empty a moment ago has samples now."""
    if catalog.count():
        raise BusyIndexError(
            "The first samples came into the index while it was asked; run the same again"
        )


def refuse_other_ids(found: Ids, wanted: Ids) -> None:
    """Raise BrokenIndexError where the catalog has other samples than asked for."""
    if not np.array_equal(found, wanted):
        raise BrokenIndexError(f"The catalog does not find all samples by their ids; {CURE}")


def refuse_counts(counts: Counts) -> None:
    """Raise UsageError where fewer than one sample is asked for, or fewer re-scored than shown."""
    for name, count in (("top", counts.top), ("bottom", counts.bottom)):
        if count < 1:
            raise UsageError(f"--{name} is {count}; ask for at least 1 sample")
    most = max(counts.top, counts.bottom)
    if counts.rerank is not None and counts.rerank < most:
        raise UsageError(
            f"--rerank {counts.rerank} is less than the {most} samples asked for; use at least "
            f"{most}, better ten times as many"
        )


def _remarks(
    harmful: Sequence[ScoredSample], counts: Counts, searched: int, where: str | None
) -> Iterator[str]:
    if not searched:
        yield (
            "the index holds no samples yet; add some with: forvalue add INDEX DATA"
            if where is None
            else f"no sample meets --where {where!r}"
        )
    elif harmful and harmful[0].score >= 0:
        yield "no sample has a negative score: the most harmful ones are the least helpful"
    if searched and counts.rerank is not None and counts.rerank > searched:
        held = "the index holds" if where is None else "--where leaves"
        yield f"--rerank {counts.rerank:,}: {held} {searched:,} samples, so all were taken"


def _failed(failures: Sequence[str]) -> Iterator[str]:
    if failures:
        count = f"{len(failures):,} candidates keep sketched scores; the first: "
        yield failures[0] if len(failures) == 1 else count + failures[0]


def _lost_texts(stored: Mapping[int, StoredSample]) -> Iterator[str]:
    lost = [sample.text_error for sample in stored.values() if sample.text_error]
    if lost:
        yield f"the texts of {len(lost)} of these samples cannot be shown; the first: {lost[0]}"
