"""Answering a validation set: which stored samples helped it, which hurt, and by how much.

The score is linear in the query, so a validation set is answered by one search with the mean of
its rows. The most harmful samples are the best ones for the negated query.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.contracts import OnProgress, SearchIndex, Source, ignore_progress
from forvalue_index.exceptions import (
    BadSampleError,
    BrokenIndexError,
    SourceError,
    UsageError,
)
from forvalue_index.features import Embedder, Prepared
from forvalue_index.records import BadRow, Progress, StoredSample
from forvalue_index.results import QueryResult, ScoredSample, ValidationResult, Values
from forvalue_index.segments import CURE, GEOMETRY
from forvalue_index.sketch import standard_errors
from forvalue_index.snapshot import Snapshot
from forvalue_index.storage import Storage, View

EXPORTED_ROWS = 10_000

Rows = NDArray[np.float32]
Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]


class ValidationSet(NamedTuple):
    """An embedded validation set: `rows` [sample, dim], in input order."""

    rows: Rows
    label_tokens: int
    warnings: tuple[str, ...]

    @property
    def mean(self) -> Rows:
        """The query of the whole set, [dim]."""
        mean: Rows = self.rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean


def embed_validation(
    embedder: Embedder,
    *,
    sources: Sequence[Source],
    on_bad: str = "fail",
    on_progress: OnProgress = ignore_progress,
) -> ValidationSet:
    """Embed a validation set; nothing of it is stored.

    Raises:
        BadSampleError: a row is not usable and `on_bad` is "fail".
        SourceError: no row is usable, or a source cannot be read.
    """
    prepared: list[Prepared] = []
    rejected: list[BadRow] = []
    for row in (row for source in sources for row in source.samples()):
        usable = row if isinstance(row, BadRow) else embedder.prepare(row)
        if isinstance(usable, Prepared):
            prepared.append(usable)
        elif on_bad == "fail":
            raise BadSampleError(f"{usable}. Mend the row, or use --on-bad skip")
        else:
            rejected.append(usable)
    if not prepared:
        names = ", ".join(source.name for source in sources)
        found = f"{len(rejected)} bad, first {rejected[0]}" if rejected else "none at all"
        raise SourceError(f"{names} has no usable row to validate with ({found}); mend the file")
    return ValidationSet(
        rows=_embed(embedder, prepared, on_progress),
        label_tokens=sum(p.encoded.n_label_tokens for p in prepared),
        warnings=tuple(_warnings(prepared, rejected)),
    )


def _embed(embedder: Embedder, prepared: Sequence[Prepared], on_progress: OnProgress) -> Rows:
    rows: Rows | None = None
    done = tokens = 0
    for batch in embedder.batches(prepared):
        embedded = embedder.embed_batch(batch, prepared)
        if rows is None:
            rows = np.empty((len(prepared), embedded.rows.shape[1]), dtype=np.float32)
        rows[list(batch.indices)] = embedded.rows.numpy()
        done, tokens = done + len(batch.indices), tokens + int(batch.attention_mask.sum())
        on_progress(Progress("embedding", done, len(prepared), tokens))
    return rows if rows is not None else np.empty((0, 0), dtype=np.float32)


def _warnings(prepared: Sequence[Prepared], rejected: Sequence[BadRow]) -> Iterator[str]:
    truncated = sum(p.encoded.truncated for p in prepared)
    if truncated:
        yield f"{truncated} validation sample(s) are longer than the context and were cut"
    if rejected:
        yield f"{len(rejected)} validation row(s) were left out, the first one: {rejected[0]}"


class Valuer:
    """Scores one state of an index. Sketched scores carry their standard error."""

    def __init__(self, storage: Storage, search: SearchIndex, *, version: int) -> None:
        self._storage = storage
        self._search = search
        self.version = version
        self._widths = storage.part_widths()

    def query(
        self,
        validation: ValidationSet,
        catalog: Snapshot,
        *,
        top: int,
        bottom: int,
        per_sample: bool = False,
    ) -> QueryResult:
        """The `top` most helpful and `bottom` most harmful samples for a validation set.

        `catalog` is a snapshot of the same state of the index.

        Raises:
            UsageError: `top` or `bottom` is below 1.
        """
        refuse_counts(top=top, bottom=bottom)
        started = time.perf_counter()
        queries = validation.mean[None]
        if per_sample:
            queries = np.concatenate([queries, validation.rows])
        helpful = self._search.search(queries, top)
        harmful = [(ids, -scores) for ids, scores in self._search.search(-queries, bottom)]
        found = np.unique(np.concatenate([ids for ids, _ in [*helpful, *harmful]]))
        stored = catalog.samples(found.tolist())
        _refuse_other_ids(np.array(sorted(stored), dtype=np.int64), found)
        answers = [
            (self._hits(query, best, stored), self._hits(query, worst, stored))
            for query, best, worst in zip(queries, helpful, harmful, strict=True)
        ]
        manifest = self._storage.manifest
        return QueryResult(
            index=str(self._storage.path),
            fingerprint=manifest.fingerprint,
            index_version=self.version,
            geometry=GEOMETRY,
            validation_samples=len(validation.rows),
            validation_label_tokens=validation.label_tokens,
            searched=len(self._search),
            helpful=answers[0][0],
            harmful=answers[0][1],
            per_sample=tuple(ValidationResult(i, *both) for i, both in enumerate(answers[1:])),
            seconds={"search": time.perf_counter() - started},
            warnings=(*validation.warnings, *self._remarks(answers[0][1]), *_lost_texts(stored)),
        )

    def _remarks(self, harmful: Sequence[ScoredSample]) -> Iterator[str]:
        if not len(self._search):
            yield "the index holds no samples yet; add some with: forvalue add INDEX DATA"
        elif harmful[0].score >= 0:
            yield "no sample has a negative score: the most harmful ones are the least helpful"

    def _hits(
        self, query: Rows, ranking: Ranking, stored: Mapping[int, StoredSample]
    ) -> tuple[ScoredSample, ...]:
        ids, scores = ranking
        stderrs = standard_errors(query, self._search.rows(ids), self._widths)
        return tuple(
            ScoredSample(
                rank=rank,
                id=id_,
                score=float(score),
                stderr=float(stderr),
                exact=not self._widths,
                sample=stored[id_].sample,
            )
            for rank, (id_, score, stderr) in enumerate(
                zip(ids.tolist(), scores, stderrs, strict=True), 1
            )
        )


def values(
    view: View,
    validation: ValidationSet,
    *,
    widths: tuple[int, ...],
    on_progress: OnProgress = ignore_progress,
) -> Values:
    """A score for every live sample, in order of id: blocked products over the segments.

    `widths` are those of `Storage.part_widths`.
    """
    query = validation.mean
    ids, scores, stderrs = [], [], []
    total, done = view.catalog.count(), 0
    for block in view.blocks():
        rows = block.rows.numpy()
        ids.append(block.ids)
        scores.append(rows @ query)
        stderrs.append(standard_errors(query, rows, widths))
        done += len(rows)
        on_progress(Progress("scoring", done, total))
    return Values(
        ids=np.concatenate([*ids, np.empty(0, np.int64)]),
        scores=np.concatenate([*scores, np.empty(0, np.float32)]),
        stderrs=np.concatenate([*stderrs, np.empty(0, np.float32)]),
    )


def named_values(catalog: Snapshot, scored: Values) -> Iterator[dict[str, list[object]]]:
    """Values with keys and sources beside them, as columns, a bounded number of rows at a time.

    `catalog` is a snapshot of the state that was scored.
    """
    identities = catalog.identities()
    for start in range(0, len(scored.ids), EXPORTED_ROWS):
        chunk = slice(start, start + EXPORTED_ROWS)
        named = list(islice(identities, EXPORTED_ROWS))
        _refuse_other_ids(np.array([id_ for id_, _, _ in named], np.int64), scored.ids[chunk])
        yield {
            "id": scored.ids[chunk].tolist(),
            "key": [key for _, key, _ in named],
            "source": [source for _, _, source in named],
            "score": scored.scores[chunk].tolist(),
            "stderr": scored.stderrs[chunk].tolist(),
        }


def _refuse_other_ids(found: NDArray[np.int64], wanted: NDArray[np.int64]) -> None:
    if not np.array_equal(found, wanted):
        raise BrokenIndexError(f"The catalog does not find all samples by their ids; {CURE}")


def _lost_texts(stored: Mapping[int, StoredSample]) -> Iterator[str]:
    lost = [sample.text_error for sample in stored.values() if sample.text_error]
    if lost:
        yield f"the texts of {len(lost)} of these samples cannot be shown; the first: {lost[0]}"


def refuse_counts(*, top: int, bottom: int) -> None:
    """Raise UsageError where fewer than one sample is asked for."""
    for name, count in (("top", top), ("bottom", bottom)):
        if count < 1:
            raise UsageError(f"--{name} is {count}; ask for at least 1 sample")
