"""What an evaluation looks at: training samples of an index, validation samples, and scores.

Training samples are in order of id.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.evaluation.metrics import Numbers
from forvalue_index.evaluation.results import Evaluated
from forvalue_index.evaluation.scores import Matrix, all_exact, all_sketched, baselines
from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.index import ValuationIndex
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.sources.data import Data
from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.store.records import StoredSample
from forvalue_index.store.view import View
from forvalue_index.valuation.scorers.self_influence import self_influences
from forvalue_index.valuation.validation import read_samples, tokenised

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class EvaluationData:
    """What an index is evaluated with: a validation set, and how much of the index.

    `data` is `Data`, or its rows. With a `limit`, so many training samples are drawn by `seed`
    instead of all. `exact` asks for exact scores beside sketched ones, from the model and the
    texts.
    """

    data: Any
    limit: int | None = None
    exact: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 2:
            raise UsageError(f"--limit is {self.limit}; use at least 2 training samples, or none")


@dataclass(frozen=True, eq=False)
class Evidence:
    """Training and validation samples, and scores [validation, training] by name.

    `sketched` are scores of rows with their `stderrs`, `exact` those of the model for the same
    names where they were asked for. `loss` [training] is the mean cross-entropy over the label
    tokens when a sample was added, `self_influences` [training] by geometry are inner products of
    rows with themselves.
    """

    training: tuple[Prepared, ...]
    validation: tuple[Prepared, ...]
    loss: NDArray[np.float64]
    self_influences: Mapping[str, Numbers]
    sketched: Mapping[str, Matrix]
    stderrs: Mapping[str, Matrix]
    exact: Mapping[str, Matrix]
    baselines: Mapping[str, Matrix]
    evaluated: Evaluated

    @property
    def scores(self) -> dict[str, Matrix]:
        """All scores by the names of their methods."""
        exact = {f"{name}, exact": scores for name, scores in self.exact.items()}
        return {**self.sketched, **exact, **self.baselines}

    @property
    def training_samples(self) -> list[Sample]:
        """The training samples as they were read."""
        return [prepared.sample for prepared in self.training]

    @property
    def validation_samples(self) -> list[Sample]:
        """The validation samples as they were read."""
        return [prepared.sample for prepared in self.validation]


def warned(evaluated: Evaluated, warnings: Iterable[str]) -> Evaluated:
    """The same with further warnings."""
    return replace(evaluated, warnings=(*evaluated.warnings, *warnings))


Check = Callable[[Sequence[Sample], Sequence[Sample]], None]


def anything(_training: Sequence[Sample], _validation: Sequence[Sample]) -> None:
    """Let all samples serve."""


def gather(index: ValuationIndex, wanted: EvaluationData, *, check: Check = anything) -> Evidence:
    """Read what an evaluation needs and score it by every method.

    Rows are scored in each geometry of the index, as inner products and as cosines. `check` gets
    training and validation samples before the model is loaded, and raises where they cannot serve.

    Raises:
        UsageError: the index has fewer than two samples with texts.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    started = time.perf_counter()
    data = Data.of(wanted.data)
    read = read_samples(index.model.sources(data), data.on_bad)
    with index.storage.view() as view:
        stored, warnings = _read_training(view, wanted)
        training = [one.sample for one in stored]
        check(training, read.samples)
        reader = index.model.reader
        loaded = time.perf_counter()
        validation = tokenised(reader, read)
        prepared = validation.prepared
        ids = [one.id for one in stored]
        sketched, stderrs = all_sketched(index, view, prepared, ids)
        influences = self_influences(view, ids)
        version = view.version
    indexed = tuple(_tokenised(reader, training))
    exact = all_exact(index, prepared, indexed) if wanted.exact else {}
    scored = time.perf_counter()
    compared = baselines(index, prepared, indexed)
    manifest = index.manifest
    return Evidence(
        training=indexed,
        validation=prepared,
        loss=np.array([one.statistics.loss for one in stored]),
        self_influences=influences,
        sketched=sketched,
        stderrs=stderrs,
        exact=exact,
        baselines=compared,
        evaluated=Evaluated(
            index=str(index.path),
            fingerprint=manifest.fingerprint,
            index_version=version,
            labels=manifest.settings.labels,
            training_samples=len(training),
            validation_samples=len(prepared),
            seconds={
                "load": loaded - started,
                "score": scored - loaded,
                "baselines": time.perf_counter() - scored,
            },
            warnings=(*validation.warnings, *warnings),
        ),
    )


def _read_training(view: View, wanted: EvaluationData) -> tuple[list[StoredSample], list[str]]:
    """Live samples in order of id, those without a text left out, and what to say of that.

    Raises UsageError where fewer than two are left.
    """
    ids, warnings = _drawn(view.catalog.live_ids(), wanted)
    by_id = view.catalog.samples(ids)
    stored = [by_id[id_] for id_ in sorted(by_id)]
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
    return readable, warnings


def _drawn(ids: Ids, wanted: EvaluationData) -> tuple[Ids, list[str]]:
    """As many ids as are wanted, in order, and a warning where there are fewer."""
    if wanted.limit is None:
        return ids, []
    if len(ids) < wanted.limit:
        return ids, [
            f"--limit is {wanted.limit:,} and the index holds {len(ids):,} samples; all are used"
        ]
    drawn = np.random.default_rng(wanted.seed).choice(ids, wanted.limit, replace=False)
    return np.sort(drawn), []


def _tokenised(reader: ModelReader, training: Iterable[Sample]) -> Iterator[Prepared]:
    for prepared in map(reader.prepare, training):
        if isinstance(prepared, BadRow):
            raise BadSampleError(f"{prepared}. It is in the index all the same; add it anew")
        yield prepared
