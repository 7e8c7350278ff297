"""Validation sets: read, tokenised and embedded like training samples; nothing is stored."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError, SourceError
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.gradients.exact_values import NO_GRADIENT
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.progress import OnProgress, ignore_progress
from forvalue_index.sources.data import Data
from forvalue_index.sources.sample import BadRow, Sample, Source
from forvalue_index.store.model import IndexModel
from forvalue_index.store.rows import unit_rows
from forvalue_index.valuation.scoring import Scoring

Rows = NDArray[np.float32]


class ValidationSamples(NamedTuple):
    """The rows of a validation set as they were read, in order, before a model is needed.

    `sources` names what they were read from. With `on_bad` of "fail" none is bad.
    """

    rows: tuple[Sample | BadRow, ...]
    sources: str
    on_bad: str

    @property
    def samples(self) -> list[Sample]:
        """Those that are samples."""
        return [row for row in self.rows if isinstance(row, Sample)]


class ValidationSet(NamedTuple):
    """The usable samples of a validation set in input order, and what to say of the others."""

    prepared: tuple[Prepared, ...]
    warnings: tuple[str, ...] = ()

    @property
    def label_tokens(self) -> int:
        """How many tokens are scored, if all labels are."""
        return sum(p.encoded.n_label_tokens for p in self.prepared)


class ValidationRows(NamedTuple):
    """The embedded samples [sample, dim], each of norm 1 where they are normalised.

    `label_error_mass` is the median over samples of the mean of 1 - p(label).
    """

    rows: Rows
    label_error_mass: float

    @property
    def mean(self) -> Rows:
        """The query of the whole set, [dim]."""
        mean: Rows = self.rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        return mean


def read_validation(model: IndexModel, data: Data) -> tuple[ValidationSet, float]:
    """A validation set as the model of an index reads it, and the seconds that loading took.

    Raises as `read_samples` and `tokenised`.
    """
    read = read_samples(model.sources(data), data.on_bad)
    started = time.perf_counter()
    reader = model.reader
    load_s = time.perf_counter() - started
    return tokenised(reader, read), load_s


def embedded_rows(
    model: IndexModel, scoring: Scoring, validation: ValidationSet
) -> ValidationRows | None:
    """The rows of a validation set; none where the index waits for its first samples."""
    if model.storage.uncalibrated:
        return None
    return embed_validation(
        model.embedder([scoring.geometry]),
        scoring.geometry,
        validation,
        normalize=scoring.normalize,
        on_progress=model.on_progress,
    )


def read_samples(sources: Sequence[Source], on_bad: str = "fail") -> ValidationSamples:
    """Read a validation set.

    Raises:
        BadSampleError: a row is not usable and `on_bad` is "fail".
        SourceError: no row is usable, or a source cannot be read.
    """
    rows = [_usable_or_skipped(row, on_bad) for source in sources for row in source.samples()]
    names = ", ".join(source.name for source in sources)
    read = ValidationSamples(tuple(rows), names, on_bad)
    if not read.samples:
        raise _nothing_usable(read, [row for row in rows if isinstance(row, BadRow)])
    return read


def tokenised(reader: ModelReader, read: ValidationSamples) -> ValidationSet:
    """A validation set as a model reads it.

    Raises:
        BadSampleError: a row is not usable with this model and bad rows are not skipped.
        SourceError: no row is usable.
    """
    prepared: list[Prepared] = []
    rejected: list[BadRow] = []
    for row in read.rows:
        one = reader.prepare(row) if isinstance(row, Sample) else row
        if isinstance(one, Prepared):
            prepared.append(one)
        else:
            _usable_or_skipped(one, read.on_bad)
            rejected.append(one)
    if not prepared:
        raise _nothing_usable(read, rejected)
    return ValidationSet(tuple(prepared), tuple(_warnings(prepared, rejected)))


def embed_validation(
    embedder: Embedder,
    geometry: str,
    validation: ValidationSet,
    *,
    normalize: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ValidationRows:
    """Embed a validation set in one geometry of the embedder.

    Raises:
        BadSampleError: no sample has a gradient.
        ModelError: the model gives infinite or undefined numbers for a sample, which is named.
    """
    embedded = embedder.embed(validation.prepared, on_progress=on_progress)
    rows = embedded.rows[geometry]
    if not rows.any():
        raise BadSampleError(NO_GRADIENT)
    chosen = unit_rows(rows) if normalize else rows
    masses = [statistics.label_error_mass for statistics in embedded.statistics]
    return ValidationRows(chosen.numpy(), float(np.median(masses)))


def _usable_or_skipped(row: Sample | BadRow, on_bad: str) -> Sample | BadRow:
    if isinstance(row, BadRow) and on_bad == "fail":
        raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")
    return row


def _nothing_usable(read: ValidationSamples, rejected: Sequence[BadRow]) -> SourceError:
    what = f"{len(rejected)} bad, first {rejected[0]}" if rejected else "none at all"
    return SourceError(f"{read.sources} has no usable row to validate with ({what}); mend the file")


def _warnings(prepared: Sequence[Prepared], rejected: Sequence[BadRow]) -> Iterator[str]:
    truncated = sum(p.encoded.truncated for p in prepared)
    if truncated:
        yield f"{truncated} validation sample(s) are longer than the context and were cut"
    if rejected:
        yield f"{len(rejected)} validation row(s) were left out, the first one: {rejected[0]}"
