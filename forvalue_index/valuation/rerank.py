"""Exact scores of stored samples from the model, as of those that a search found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError
from forvalue_index.gradients.exact_matrix import exact_matrix
from forvalue_index.gradients.exact_values import exact_values, validation_gradient
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.progress import OnProgress, ignore_progress
from forvalue_index.search.contract import Ids
from forvalue_index.store.records import StoredSample
from forvalue_index.valuation.validation import ValidationSet


class Exact(NamedTuple):
    """Exact scores [query, sample] of the samples with these `ids`, in order of id.

    `failures` say why candidates could not be scored.
    """

    ids: Ids
    scores: NDArray[np.float64]
    failures: tuple[str, ...] = ()


NOTHING = Exact(np.empty(0, np.int64), np.empty((0, 0)))
Rescore = Callable[[Mapping[int, StoredSample]], Exact]


def rescorer(
    reader: ModelReader,
    geometry: Geometry,
    validation: ValidationSet,
    *,
    normalize: bool = False,
    per_sample: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Rescore:
    """What scores stored samples exactly for a validation set and, where wanted, each sample of it.

    Samples without a usable text are left out, and named among the failures.
    """

    def rescore(stored: Mapping[int, StoredSample]) -> Exact:
        usable: dict[int, Prepared] = {}
        failures = []
        for id_ in sorted(stored):
            try:
                usable[id_] = prepare_stored(reader, stored[id_])
            except BadSampleError as error:
                failures.append(f"{error}; its score is sketched")
        both, training = validation.prepared, list(usable.values())
        if per_sample:
            matrix = exact_matrix(
                reader, geometry, both, training, normalize=normalize, on_progress=on_progress
            )
            scores = np.concatenate([matrix.mean(axis=0)[None], matrix])
        else:
            target = validation_gradient(reader, geometry, both, normalize=normalize)
            scores = exact_values(reader, target, training, on_progress=on_progress)[None]
        return Exact(np.array(list(usable), dtype=np.int64), scores, tuple(failures))

    return rescore


def prepare_stored(reader: ModelReader, stored: StoredSample) -> Prepared:
    """A stored sample as the model reads it. Raises BadSampleError where its text is lost."""
    if stored.text_error:
        raise BadSampleError(
            f"the text of sample {stored.sample.key} cannot be read, and exact scores need it: "
            f"{stored.text_error}"
        )
    prepared = reader.prepare(stored.sample)
    if not isinstance(prepared, Prepared):
        raise BadSampleError(f"sample {stored.sample.key}: {prepared.reason}")
    try:
        reader.open_images(stored.sample)  # which may be lost by now
    except BadSampleError as error:
        raise BadSampleError(f"sample {stored.sample.key}: {error}") from error
    return prepared
