"""Measuring a calibration on a sample of the first data, with the model."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.exceptions import BadSampleError, ModelError
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.embedder import Feature, features_of, geometry_of
from forvalue_index.gradients.exact import gram
from forvalue_index.gradients.geometry import Moments
from forvalue_index.gradients.hash_tables import (
    HashTables,
    geometry_tables,
    n_directions,
    part_widths,
)
from forvalue_index.gradients.sketch_error import ErrorScale, SketchError
from forvalue_index.model.label_tokens import LabelTokens, ModelReader, Prepared
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.settings import Settings

CALIBRATION_SAMPLES = 128
# Label tokens whose exact inner products are compared with sketched ones, and those of one sample.
COMPARED_TOKENS, COMPARED_OF_SAMPLE = 1024, 32
# How many pairs that err as the formula says are added to those that are compared.
PRIOR_PAIRS = 10
FIT_STEPS = 500


class CalibrationSample:
    """The samples to calibrate on: a random choice that their order has no part in."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._chosen: dict[str, Prepared] = {}

    def offer(self, prepared: Prepared) -> None:
        """Choose a sample, or not."""
        drawn = f"{self._seed} {prepared.sample.content_hash}".encode()
        self._chosen[hashlib.blake2b(drawn).hexdigest()] = prepared
        if len(self._chosen) > 2 * CALIBRATION_SAMPLES:
            self._chosen = dict(sorted(self._chosen.items())[:CALIBRATION_SAMPLES])

    def samples(self) -> list[Prepared]:
        """What is chosen of all that was offered, in random order."""
        return [self._chosen[draw] for draw in sorted(self._chosen)[:CALIBRATION_SAMPLES]]


def calibrate(
    reader: ModelReader,
    tables: HashTables,
    settings: Settings,
    prepared: Sequence[Prepared],
    *,
    on_progress: OnProgress = ignore_progress,
) -> Calibration:
    """Measure on samples, in random order, what rows for `settings` need to know of data.

    Tokens for which the model gives infinite or undefined numbers are left out, and samples whose
    images have vanished.

    Raises:
        ModelError: no token is left.
        BadSampleError: no sample is left.
    """
    try:
        sums = _measure(reader, prepared, on_progress)
    except BadSampleError:
        prepared = [one for one in prepared if _is_readable(one)]
        if not prepared:
            raise
        sums = _measure(reader, prepared, on_progress)
    if not sums.n_labels:
        raise ModelError(
            f"the model gives infinite or undefined numbers for all {len(prepared):,} samples of "
            "the calibration; use --dtype float32"
        )
    error_size = torch.empty_like(sums.error_size)
    error_size[reader.vocab_order] = sums.error_size
    # In the precision they are stored in, so that whoever opens the index has the same.
    totals = (error_size, sums.hidden, sums.hidden_square)
    means = ((total / sums.n_labels).float() for total in totals)
    measured = Calibration(Moments(*means), len(prepared), sums.n_labels)
    directions = {}
    for name in settings.geometries:
        if count := n_directions(tables, name):
            geometry = geometry_of(name, reader, measured, settings)
            directions[name] = geometry.directions(measured.moments, count).cpu().numpy()
    measured = replace(measured, directions=directions)
    features = features_of(reader, tables, settings, measured, settings.geometries)
    widths = {
        name: part_widths(geometry_tables(tables, name, directions.get(name)), settings.dim)
        for name in features
    }
    scales = _error_scales(reader, _compared(prepared), features, widths)
    return replace(measured, error_scale=scales)


def _is_readable(prepared: Prepared) -> bool:
    """Whether the images of a sample, if it has some, can be read."""
    if prepared.encoded.read_inputs is not None:
        try:
            prepared.encoded.read_inputs()
        except BadSampleError:
            return False
    return True


class _Sums(NamedTuple):
    """Sums over label tokens, with the vocabulary in the reader's order."""

    n_labels: int
    error_size: Tensor
    hidden: Tensor
    hidden_square: Tensor


def _measure(reader: ModelReader, prepared: Sequence[Prepared], on_progress: OnProgress) -> _Sums:
    vocab_size, hidden_size = reader.head.weight.shape
    zeros = reader.empty().double().new_zeros
    count, done = 0, 0
    error_size, mean = zeros(vocab_size), zeros(hidden_size)
    hidden_square = zeros(hidden_size, hidden_size)
    for batch in reader.batches(prepared):
        for tokens in map(_defined, reader.label_tokens(batch)):
            hidden = tokens.hidden.double()
            count += len(hidden)
            error_size += tokens.error.abs().sum(0)
            mean += hidden.sum(0)
            hidden_square += hidden.T @ hidden
        done += len(batch.indices)
        on_progress(Progress("calibrating", done, len(prepared)))
    return _Sums(count, error_size, mean, hidden_square)


def _defined(tokens: LabelTokens) -> LabelTokens:
    """The tokens for which the model gives numbers."""
    usable = torch.isfinite(tokens.loss) & torch.isfinite(tokens.hidden).all(dim=1)
    return LabelTokens(*(tensor[usable] for tensor in tokens))


@torch.inference_mode()
def _error_scales(
    reader: ModelReader,
    prepared: Sequence[Prepared],
    features: Mapping[str, Feature],
    widths: Mapping[str, tuple[int, ...]],
) -> dict[str, ErrorScale]:
    """How large sketching errors are over pairs of samples."""
    chunks, start = [], 0
    for batch in reader.batches(prepared):
        for tokens in map(_defined, reader.label_tokens(batch)):
            chunks.append(tokens._replace(owner=tokens.owner + start))
        start += len(batch.indices)
    if not chunks:
        return {}
    tokens = LabelTokens(*(torch.cat(parts) for parts in zip(*chunks, strict=True)))
    scales = {}
    for name, (geometry, sketch) in features.items():
        error, hidden = geometry.error(tokens.error), geometry.hidden(tokens.hidden)
        exact = gram(error, hidden, tokens.owner, start)
        sums = sketch.empty(start, error)
        sketch.accumulate(sums, error, hidden, tokens.owner)
        rows = sketch.rows(sums).float().cpu().numpy()
        scales[name] = _scale(exact.cpu().numpy(), rows, widths[name])
    return scales


def _scale(
    exact: NDArray[np.float64], rows: NDArray[np.float32], widths: Sequence[int]
) -> ErrorScale:
    pairs = np.triu_indices(len(rows), 1)
    scores = rows.astype(np.float64) @ rows.T.astype(np.float64)
    by_formula = SketchError(tuple(widths))
    promised = np.stack([by_formula.standard_errors(row, rows) for row in rows]).astype(np.float64)
    return fit_error_scale((scores - exact)[pairs], promised[pairs], scores[pairs])


def fit_error_scale(
    errors: NDArray[np.float64], formula: NDArray[np.float64], scores: NDArray[np.float64]
) -> ErrorScale:
    """The scale under which errors are most likely, as normal ones of mean 0.

    Their variance is noise^2 formula^2 + relative^2 score^2. The mean square alone would do for
    noise, but a sketch that drops a part has a few huge errors, which would inflate all others.
    """
    some = formula > 0  # exact rows and those of no gradient say nothing about a sketch
    units = formula[some]
    squares = np.append(np.square(errors[some] / units), np.ones(PRIOR_PAIRS))
    parts = np.append(np.square(scores[some] / units), np.zeros(PRIOR_PAIRS))
    noise, relative = 1.0, 0.01
    for _ in range(FIT_STEPS):  # majorise, minimise: the likelihood rises with each step
        variances = noise + relative * parts
        misfit = squares / np.square(variances)
        noise *= np.sqrt(misfit.sum() / (1 / variances).sum())
        if parts.any():
            relative *= np.sqrt((parts * misfit).sum() / (parts / variances).sum())
    return ErrorScale(float(np.sqrt(noise)), float(np.sqrt(relative)) if parts.any() else 0.0)


def _compared(prepared: Sequence[Prepared]) -> list[Prepared]:
    """The first samples, cut to few labels each, that fit into what is compared."""
    chosen, total = [], 0
    for one in prepared:
        labels = np.flatnonzero(one.encoded.label_mask)[:COMPARED_OF_SAMPLE]
        total += len(labels)
        if total > COMPARED_TOKENS:
            break
        mask = np.zeros_like(one.encoded.label_mask)
        mask[labels] = True
        chosen.append(replace(one, encoded=replace(one.encoded, label_mask=mask)))
    return chosen
