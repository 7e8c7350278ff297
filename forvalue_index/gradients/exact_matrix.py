"""Exact values of many training samples for each of many validation samples, in kernel form.

The tokens of a bounded number of validation samples are held, in several geometries at once, and
those of the training samples go by in chunks: one forward pass over them for each such group.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.gradients.exact import cross_gram
from forvalue_index.gradients.exact_values import (
    by_sample,
    gradient_norm,
    joined,
    tokens_in,
    without_zeros,
)
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.model.label_tokens import LabelTokens, ModelReader, Prepared
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.settings import RAW

# Floats of prediction errors that are held at once: 1 GiB.
HELD_FLOATS = 2**28
PLAIN = Geometry(RAW)


@dataclass(frozen=True, eq=False)
class ExactScores:
    """In one geometry: `values` [validation, training], and the norms of the gradients of both."""

    values: NDArray[np.float64]
    validation_norms: NDArray[np.float64]
    training_norms: NDArray[np.float64]

    @property
    def cosines(self) -> NDArray[np.float64]:
        """Values divided by both norms; those of a gradient of zero are 0."""
        norms = map(without_zeros, (self.validation_norms, self.training_norms))
        cosines: NDArray[np.float64] = self.values / np.outer(*norms)
        return cosines


@torch.inference_mode()
def exact_matrices(
    reader: ModelReader,
    geometries: Sequence[Geometry],
    validation: Sequence[Prepared],
    training: Sequence[Prepared],
    *,
    on_progress: OnProgress = ignore_progress,
) -> dict[str, ExactScores]:
    """Exact scores in each geometry, by its name.

    Raises BadSampleError, naming the sample, where the model gives no usable numbers.
    """
    scores = {
        geometry.name: ExactScores(
            np.zeros((len(validation), len(training))),
            np.zeros(len(validation)),
            np.zeros(len(training)),
        )
        for geometry in geometries
    }
    done, total = 0, len(validation) * len(training)
    for positions, plain in _held(reader, validation, HELD_FLOATS // len(geometries)):
        held = {geometry.name: in_geometry(geometry, plain) for geometry in geometries}
        for name, tokens in held.items():
            _Norms(scores[name].validation_norms, positions).finish(tokens)
        for batch in reader.batches(training):
            columns = list(batch.indices)
            norms = {name: _Norms(one.training_norms, columns) for name, one in scores.items()}
            for chunk in tokens_in(reader, PLAIN, batch, training):
                for geometry in geometries:
                    name, right = geometry.name, in_geometry(geometry, chunk)
                    part = cross_gram(
                        _sides(held[name]), _sides(right), (len(positions), len(columns))
                    )
                    scores[name].values[np.ix_(positions, columns)] += part.cpu().numpy()
                    norms[name].add(right)
            for noted in norms.values():
                noted.finish()
            done += len(positions) * len(columns)
            on_progress(Progress("re-scoring", done, total))
    return scores


def exact_matrix(
    reader: ModelReader,
    geometry: Geometry,
    validation: Sequence[Prepared],
    training: Sequence[Prepared],
    *,
    normalize: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> NDArray[np.float64]:
    """Exact values, or cosines, [validation, training] in one geometry. Raises as above."""
    both = exact_matrices(reader, [geometry], validation, training, on_progress=on_progress)
    scores = both[geometry.name]
    return scores.cosines if normalize else scores.values


def in_geometry(geometry: Geometry, tokens: LabelTokens) -> LabelTokens:
    """Tokens with both sides in a geometry."""
    error, hidden = geometry.error(tokens.error), geometry.hidden(tokens.hidden)
    return tokens._replace(error=error, hidden=hidden)


class _Norms:
    """Writes the norms of samples to their positions, as their tokens go by in chunks."""

    def __init__(self, norms: NDArray[np.float64], positions: Sequence[int]) -> None:
        self._norms, self._positions = norms, positions
        self._last: list[LabelTokens] = []  # of the one sample that may go on in the next chunk

    def add(self, tokens: LabelTokens) -> None:
        """Note all samples but the last."""
        *done, last = by_sample([*self._last, tokens])
        self._last = [last]
        self._note(done)

    def finish(self, *tokens: LabelTokens) -> None:
        """Note all samples."""
        self._note(by_sample([*self._last, *tokens]))

    def _note(self, samples: Iterable[LabelTokens]) -> None:
        for tokens in samples:
            self._norms[self._positions[int(tokens.owner[0])]] = float(gradient_norm(tokens))


def _sides(tokens: LabelTokens) -> tuple[Tensor, Tensor, Tensor]:
    return tokens.error, tokens.hidden, tokens.owner


def _held(
    reader: ModelReader, prepared: Sequence[Prepared], most_floats: int
) -> Iterator[tuple[list[int], LabelTokens]]:
    """Samples in groups of a bounded size: their positions, and their tokens with owners from 0."""
    positions: list[int] = []
    held: list[LabelTokens] = []
    size = 0
    for batch in reader.batches(prepared):
        for tokens in by_sample(tokens_in(reader, PLAIN, batch, prepared)):
            if held and size + tokens.error.numel() > most_floats:
                yield positions, joined(held)
                positions, held, size = [], [], 0
            size += tokens.error.numel()
            owner = torch.full_like(tokens.owner, len(positions))
            positions.append(batch.indices[int(tokens.owner[0])])
            held.append(tokens._replace(owner=owner))
    if held:
        yield positions, joined(held)
