"""Answering a validation set: which stored samples helped it, which hurt, and by how much.

The score is linear in the query, so a validation set is answered by one search with the mean of
its rows. The most harmful samples are the best ones for the negated query. What the search finds
can be scored again exactly, with the model.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.search.contract import Ids, Rows, Scores
from forvalue_index.sources.data import Data
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.model import IndexModel
from forvalue_index.store.records import StoredSample
from forvalue_index.valuation.held_search import HeldSearch
from forvalue_index.valuation.rerank import NOTHING, Exact, Rescore, rescorer
from forvalue_index.valuation.results import (
    QueryResult,
    ScoredSample,
    ValidationResult,
    saturation_warnings,
)
from forvalue_index.valuation.row_scorer import RowScorer, refuse_filled, refuse_other_ids
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import (
    ValidationRows,
    ValidationSet,
    embedded_rows,
    read_validation,
)


class AnswerCounts(NamedTuple):
    """How many answers: the `top` most helpful, the `bottom` most harmful.

    With `rerank`, as many candidates from either end are scored exactly. `per_sample` asks for
    answers to each validation sample, too.
    """

    top: int
    bottom: int
    per_sample: bool = False
    rerank: int | None = None


@dataclass(frozen=True, eq=False)
class Question:
    """A validation set as it was embedded, and what is asked about it.

    `embedded` is None where the index holds no samples. `rescore` scores the candidates of
    `counts.rerank` exactly. Only samples that meet `where` are searched.
    """

    validation: ValidationSet
    embedded: ValidationRows | None
    counts: AnswerCounts
    rescore: Rescore | None = None
    where: str | None = None


class _Ranking(NamedTuple):
    """Answers to one query from one end, best first."""

    ids: Ids
    scores: Scores
    exact: NDArray[np.bool_]

    def first(self, count: int) -> _Ranking:
        return _Ranking(self.ids[:count], self.scores[:count], self.exact[:count])


class _Candidates(NamedTuple):
    """What the search gives for each query, from either end, with harmful scores as they are."""

    searched: int
    helpful: list[tuple[Ids, Scores]]
    harmful: list[tuple[Ids, Scores]]


def query(
    model: IndexModel,
    search: HeldSearch,
    data: Data,
    *,
    counts: AnswerCounts,
    scoring: Scoring,
    where: str | None = None,
) -> QueryResult:
    """The most helpful and most harmful samples of an index for a validation set.

    Raises:
        UsageError: as `refuse_counts`.
        BadSampleError: a row is not usable, or the validation set has no gradient.
        SourceError, SettingsMismatchError: the data, or the model, cannot be used.
    """
    refuse_counts(counts)
    started = time.perf_counter()
    validation, load_s = read_validation(model, data)
    embedded = embedded_rows(model, scoring, validation)
    seconds = {"load": load_s, "embed": time.perf_counter() - started - load_s}
    rescore = None
    if counts.rerank is not None and embedded is not None:
        rescore = rescorer(
            model.reader,
            model.geometry(scoring.geometry),
            validation,
            normalize=scoring.normalize,
            per_sample=counts.per_sample,
            on_progress=model.on_progress,
        )
    question = Question(validation, embedded, counts, rescore, where)
    result = search.with_or_without_gpus(
        scoring, partial(_opened_and_answered, search, scoring, question)
    )
    return replace(result, seconds={**seconds, **result.seconds})


def _opened_and_answered(search: HeldSearch, scoring: Scoring, question: Question) -> QueryResult:
    started = time.perf_counter()
    with search.current(scoring) as (scorer, snapshot):
        seconds = {"open": time.perf_counter() - started}
        result = answer(scorer, snapshot, question)
    return replace(result, seconds={**seconds, **result.seconds})


def answer(scorer: RowScorer, catalog: Snapshot, question: Question) -> QueryResult:
    """Answer from one state of an index; `catalog` is a snapshot of the same state."""
    validation, embedded, counts = question.validation, question.embedded, question.counts
    if embedded is None:
        refuse_filled(catalog)
    started = time.perf_counter()
    queries = scorer.queries(embedded, 1 + len(validation.prepared) * counts.per_sample)
    candidates = _candidates(scorer, catalog, queries, question)
    stored = _stored(catalog, candidates)
    seconds = {"search": time.perf_counter() - started}
    exact = NOTHING
    if question.rescore is not None and stored:
        exact = question.rescore(stored)
        seconds["rerank"] = time.perf_counter() - started - seconds["search"]
    answers = []
    for i, query in enumerate(queries):
        best = _merged(scorer, candidates.helpful[i], exact, i, sign=1).first(counts.top)
        worst = _merged(scorer, candidates.harmful[i], exact, i, sign=-1).first(counts.bottom)
        answers.append((_hits(scorer, query, best, stored), _hits(scorer, query, worst, stored)))
    helpful, harmful = answers[0]
    result = QueryResult(
        index=str(scorer.path),
        fingerprint=scorer.manifest.fingerprint,
        index_version=scorer.version,
        scoring=scorer.scoring,
        validation_samples=len(validation.prepared),
        validation_label_tokens=validation.label_tokens,
        searched=candidates.searched,
        search=scorer.search.kind,
        where=question.where,
        reranked=len(exact.ids),
        helpful=helpful,
        harmful=harmful,
        per_sample=tuple(ValidationResult(i, *ends) for i, ends in enumerate(answers[1:])),
        label_error_mass=None if embedded is None else embedded.label_error_mass,
        index_error_mass=catalog.label_error_mass(),
        seconds=seconds,
    )
    said = (*validation.warnings, *_remarks(result, question), *_failed(exact), *_lost(stored))
    return replace(result, warnings=said)


def refuse_counts(counts: AnswerCounts) -> None:
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


def _candidates(
    scorer: RowScorer, catalog: Snapshot, queries: Rows, question: Question
) -> _Candidates:
    counts, where = question.counts, question.where
    allowed = None if where is None else catalog.live_ids(where)
    n_helpful, n_harmful = (counts.rerank or count for count in (counts.top, counts.bottom))
    helpful = scorer.search.search(queries, n_helpful, allowed)
    negated = scorer.search.search(-queries, n_harmful, allowed)
    harmful = [(ids, -scores) for ids, scores in negated]
    searched = len(scorer.search) if allowed is None else len(allowed)
    return _Candidates(searched, helpful, harmful)


def _stored(catalog: Snapshot, candidates: _Candidates) -> dict[int, StoredSample]:
    by_query = [ids for ids, _ in (*candidates.helpful, *candidates.harmful)]
    ids = np.unique(np.concatenate(by_query))
    stored = catalog.samples(ids.tolist())
    refuse_other_ids(np.array(sorted(stored), dtype=np.int64), ids)
    return stored


def _merged(
    scorer: RowScorer, candidates: tuple[Ids, Scores], exact: Exact, query: int, *, sign: int
) -> _Ranking:
    """Exact scores where there are any, and sketched ones of candidates without, in order."""
    ids, scores = candidates
    is_exact = np.full(len(ids), scorer.exact)
    if len(exact.ids):
        left = ~np.isin(ids, exact.ids)
        ids = np.concatenate([exact.ids, ids[left]])
        scores = np.concatenate([exact.scores[query].astype(np.float32), scores[left]])
        is_exact = np.concatenate([np.full(len(exact.ids), True), is_exact[left]])
    order = np.lexsort((ids, -sign * scores))
    return _Ranking(ids[order], scores[order], is_exact[order])


def _hits(
    scorer: RowScorer, query: Rows, ranking: _Ranking, stored: Mapping[int, StoredSample]
) -> tuple[ScoredSample, ...]:
    stderrs = scorer.standard_errors(query, ranking.ids)
    columns = zip(ranking.ids.tolist(), ranking.scores, ranking.exact, stderrs, strict=True)
    return tuple(
        ScoredSample(
            rank=rank,
            id=id_,
            score=float(score),
            stderr=0.0 if exact and stderr is not None else stderr,
            exact=bool(exact),
            sample=stored[id_].sample,
        )
        for rank, (id_, score, exact, stderr) in enumerate(columns, 1)
    )


def _remarks(result: QueryResult, question: Question) -> Iterator[str]:
    searched, where, rerank = result.searched, result.where, question.counts.rerank
    if not searched:
        yield (
            "the index holds no samples yet; add some with: forvalue add INDEX DATA"
            if where is None
            else f"no sample meets --where {where!r}"
        )
    elif result.harmful and result.harmful[0].score >= 0:
        yield "no sample has a negative score: the most harmful ones are the least helpful"
    if searched and rerank is not None and rerank > searched:
        held = "the index holds" if where is None else "--where leaves"
        yield f"--rerank {rerank:,}: {held} {searched:,} samples, so all were taken"
    masses = {
        "validation samples": result.label_error_mass,
        "indexed samples": result.index_error_mass,
    }
    yield from saturation_warnings(masses)


def _failed(exact: Exact) -> Iterator[str]:
    failures = exact.failures
    if failures:
        count = f"{len(failures):,} candidates keep sketched scores; the first: "
        yield failures[0] if len(failures) == 1 else count + failures[0]


def _lost(stored: Mapping[int, StoredSample]) -> Iterator[str]:
    lost = [sample.text_error for sample in stored.values() if sample.text_error]
    if lost:
        yield f"the texts of {len(lost)} of these samples cannot be shown; the first: {lost[0]}"
