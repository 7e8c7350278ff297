"""What an evaluation looks at: training samples of an index, validation samples, and scores.

A score matrix is [validation, training] in the order of both; larger means more alike, or more
helpful. Training samples are in order of id.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from forvalue_index.baselines import bm25_scores, hidden_similarity, mean_hidden_states
from forvalue_index.evaluation_results import Evaluated
from forvalue_index.exceptions import BadSampleError, SourceError, UsageError
from forvalue_index.features import Embedder, Prepared
from forvalue_index.index import Data, ValuationIndex
from forvalue_index.records import BadRow, Sample, StoredSample
from forvalue_index.settings import ON_BAD
from forvalue_index.sources import open_sources
from forvalue_index.storage import View

T = TypeVar("T")
Matrix = NDArray[np.float32]

FOR_VALUE = "for-value"
BM25 = "bm25"
BM25_RESPONSE = "bm25, responses alone"
HIDDEN_STATE = "hidden state"


@dataclass(frozen=True)
class EvaluationData:
    """What an index is evaluated with: a validation set, and how much of the index.

    `data` is what `ValuationIndex.query` takes, with its `columns` and `on_bad`. With a `limit`,
    so many training samples are drawn by `seed` instead of all.
    """

    data: Data
    columns: Mapping[str, str] | None = None
    on_bad: str = "fail"
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise UsageError(f"--limit is {self.limit}; use at least 2 training samples, or none")
        if self.on_bad not in ON_BAD:
            raise UsageError(f"--on-bad cannot be {self.on_bad!r}; use one of {', '.join(ON_BAD)}")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Training and validation samples with the scores of each method by name.

    `loss` [training] is the mean cross-entropy over the label tokens when a sample was added.
    """

    training: tuple[Sample, ...]
    validation: tuple[Sample, ...]
    loss: NDArray[np.float64]
    scores: Mapping[str, Matrix]
    evaluated: Evaluated


Check = Callable[[Sequence[Sample], Sequence[Sample]], None]


def gather(index: ValuationIndex, wanted: EvaluationData, *, check: Check) -> Evidence:
    """Read what an evaluation needs and score it by every method.

    `check` gets training and validation samples before the model is loaded, and raises where they
    cannot serve.

    Raises:
        UsageError: the index has fewer than two samples with texts.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    started = time.perf_counter()
    warnings: list[str] = []
    validation = _read_validation(wanted, warnings)
    with index.storage.view() as view:
        stored = _read_training(view, wanted, warnings)
        training = [one.sample for one in stored]
        check(training, validation)
        embedder = index.embedder
        loaded = time.perf_counter()
        prepared = _prepared(embedder, validation, wanted.on_bad, warnings)
        queries = embedder.embed(prepared).rows.numpy()
        scores = {FOR_VALUE: sketched_scores(view, queries, [one.id for one in stored])}
        version = view.version
    scored = time.perf_counter()
    scores |= _baseline_scores(index, prepared, training)
    manifest = index.manifest
    seconds = {
        "load": loaded - started,
        "score": scored - loaded,
        "baselines": time.perf_counter() - scored,
    }
    return Evidence(
        training=tuple(training),
        validation=tuple(p.sample for p in prepared),
        loss=np.array([one.statistics.loss for one in stored]),
        scores=scores,
        evaluated=Evaluated(
            index=str(index.path),
            fingerprint=manifest.fingerprint,
            index_version=version,
            labels=manifest.settings.labels,
            training_samples=len(training),
            validation_samples=len(prepared),
            seconds=seconds,
            warnings=tuple(warnings),
        ),
    )


def sketched_scores(view: View, queries: Matrix, ids: Sequence[int]) -> Matrix:
    """Inner products of query rows with the rows of samples whose ids are in order."""
    wanted = np.asarray(ids, dtype=np.int64)
    scores = np.empty((len(queries), len(wanted)), dtype=np.float32)
    for block in view.blocks():
        place = np.searchsorted(wanted, block.ids)
        here = np.isin(block.ids, wanted)
        scores[:, place[here]] = queries @ block.rows.numpy()[here].T
    return scores


def field_values(samples: Iterable[Sample], field: str, *, role: str) -> list[Any]:
    """What each sample has under a field of its metadata. Raises UsageError where one lacks it."""
    found = []
    for sample in samples:
        value = sample.metadata.get(field)
        if value is None:
            there = ", ".join(sorted(map(str, sample.metadata))) or "none at all"
            raise UsageError(
                f"the {role} sample {sample.key} ({sample.source}:{sample.position}) has no field "
                f"{field!r}; it has {there}. Name a field that every sample has"
            )
        found.append(value)
    return found


def class_names(samples: Iterable[Sample], field: str, *, role: str) -> list[str]:
    """The classes of samples as texts, so that 1 and "1" are one class. Raises UsageError."""
    return [
        value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        for value in field_values(samples, field, role=role)
    ]


def _read_validation(wanted: EvaluationData, warnings: list[str]) -> list[Sample]:
    sources = open_sources(wanted.data, wanted.columns)
    rows = [row for source in sources for row in source.samples()]
    samples = _usable(rows, wanted.on_bad, warnings)
    if not samples:
        names = ", ".join(source.name for source in sources)
        raise SourceError(f"{names} has no usable row to validate with; mend the file")
    return samples


def _read_training(view: View, wanted: EvaluationData, warnings: list[str]) -> list[StoredSample]:
    """Live samples in order of id, those without a text left out; raises where none remain."""
    ids = view.catalog.live_ids()
    if wanted.limit is not None and len(ids) < wanted.limit:
        warnings.append(
            f"--limit is {wanted.limit:,} and the index holds {len(ids):,} samples; all are used"
        )
    elif wanted.limit is not None:
        drawn = np.random.default_rng(wanted.seed).choice(ids, wanted.limit, replace=False)
        ids = np.sort(drawn)
    found = view.catalog.samples(ids)
    stored = [found[id_] for id_ in sorted(found)]
    lost = [one.text_error for one in stored if one.text_error]
    if lost:
        warnings.append(
            f"{len(lost):,} training sample(s) are left out, as their texts cannot be read; the "
            f"first: {lost[0]}"
        )
    readable = [one for one in stored if not one.text_error]
    if len(readable) < 2:
        raise UsageError(
            f"there are {len(readable)} training samples with texts in the index, and an "
            f"evaluation compares at least 2"
            + (f"; the first lost text: {lost[0]}" if lost else "; add some: forvalue add INDEX")
        )
    return readable


def _prepared(
    embedder: Embedder, samples: Sequence[Sample], on_bad: str, warnings: list[str]
) -> list[Prepared]:
    tokenised = map(embedder.prepare, samples)
    prepared = _usable(tokenised, on_bad, warnings)
    if not prepared:
        raise SourceError("no validation row can be used with this model; mend the file")
    truncated = sum(p.encoded.truncated for p in prepared)
    if truncated:
        warnings.append(
            f"{truncated} validation sample(s) are longer than the context and were cut"
        )
    return prepared


def _usable(rows: Iterable[T | BadRow], on_bad: str, warnings: list[str]) -> list[T]:
    """Rows but for the bad ones, which are warned of. Raises BadSampleError if they must not be."""
    good, bad = [], []
    for row in rows:
        if not isinstance(row, BadRow):
            good.append(row)
        elif on_bad == "fail":
            raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")
        else:
            bad.append(row)
    if bad:
        warnings.append(f"{len(bad)} validation row(s) were left out, the first one: {bad[0]}")
    return good


def _baseline_scores(
    index: ValuationIndex, validation: Sequence[Prepared], training: Sequence[Sample]
) -> dict[str, Matrix]:
    queries = [p.sample for p in validation]
    embedder = index.embedder
    both = [*validation, *_tokenised(embedder, training)]
    hidden = mean_hidden_states(embedder, both, on_progress=index.on_progress)
    return {
        BM25: bm25_scores(list(map(_text, queries)), list(map(_text, training))),
        BM25_RESPONSE: bm25_scores(
            [sample.response for sample in queries], [sample.response for sample in training]
        ),
        HIDDEN_STATE: hidden_similarity(hidden[: len(validation)], hidden[len(validation) :]),
    }


def _tokenised(embedder: Embedder, training: Iterable[Sample]) -> Iterator[Prepared]:
    for prepared in map(embedder.prepare, training):
        if isinstance(prepared, BadRow):
            raise BadSampleError(f"{prepared}. It is in the index all the same; add it anew")
        yield prepared


def _text(sample: Sample) -> str:
    return f"{sample.prompt}\n{sample.response}"
