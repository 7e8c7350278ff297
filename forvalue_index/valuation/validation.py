"""Validation sets: read, tokenised and embedded like training samples; nothing is stored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError, SourceError
from forvalue_index.gradients.embedder import Embedder, refuse_undefined
from forvalue_index.gradients.exact_values import NO_GRADIENT
from forvalue_index.model.label_tokens import ModelReader, Prepared, rows_of
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.sources.sample import BadRow, Source
from forvalue_index.store.rows import unit_rows

Rows = NDArray[np.float32]


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


def read_validation(
    reader: ModelReader, *, sources: Sequence[Source], on_bad: str = "fail"
) -> ValidationSet:
    """Read and tokenise a validation set.

    Raises:
        BadSampleError: a row is not usable and `on_bad` is "fail".
        SourceError: no row is usable, or a source cannot be read.
    """
    prepared: list[Prepared] = []
    rejected: list[BadRow] = []
    for row in rows_of(reader, sources):
        if isinstance(row, Prepared):
            prepared.append(row)
        elif on_bad == "fail":
            raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")
        else:
            rejected.append(row)
    if not prepared:
        names = ", ".join(source.name for source in sources)
        found = f"{len(rejected)} bad, first {rejected[0]}" if rejected else "none at all"
        raise SourceError(f"{names} has no usable row to validate with ({found}); mend the file")
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
    prepared = validation.prepared
    parts: list[tuple[tuple[int, ...], torch.Tensor]] = []
    masses: list[float] = []
    done = tokens = 0
    for batch in embedder.batches(prepared):
        embedded = embedder.embed_batch(batch, prepared)
        refuse_undefined(embedded, [prepared[i] for i in batch.indices])
        parts.append((batch.indices, embedded.rows[geometry]))
        masses += [statistics.label_error_mass for statistics in embedded.statistics]
        done, tokens = done + len(batch.indices), tokens + int(batch.attention_mask.sum())
        on_progress(Progress("embedding", done, len(prepared), tokens))
    in_batches = torch.cat([rows for _, rows in parts])
    rows = torch.empty_like(in_batches)
    rows[[i for indices, _ in parts for i in indices]] = in_batches
    if not rows.any():
        raise BadSampleError(NO_GRADIENT)
    found = unit_rows(rows) if normalize else rows
    return ValidationRows(found.numpy(), float(np.median(masses)))


def _warnings(prepared: Sequence[Prepared], rejected: Sequence[BadRow]) -> Iterator[str]:
    truncated = sum(p.encoded.truncated for p in prepared)
    if truncated:
        yield f"{truncated} validation sample(s) are longer than the context and were cut"
    if rejected:
        yield f"{len(rejected)} validation row(s) were left out, the first one: {rejected[0]}"
