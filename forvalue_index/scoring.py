"""A score for every sample of an index: blocked products over rows, or exactly with the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice, starmap
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forvalue_index.contracts import OnProgress, ignore_progress
from forvalue_index.exact_matrices import exact_matrix
from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.geometry import Geometry
from forvalue_index.hash_tables import SketchError
from forvalue_index.label_tokens import LabelReader, Prepared
from forvalue_index.records import Progress, StoredSample
from forvalue_index.rescoring import (
    ValidationGradient,
    exact_values,
    validation_gradient,
)
from forvalue_index.results import Scoring, Values
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.settings import GEOMETRIES
from forvalue_index.snapshot import Snapshot
from forvalue_index.validation import ValidationRows, ValidationSet
from forvalue_index.valuation import (
    Exact,
    Rescore,
    Valuer,
    refuse_filled,
    refuse_other_ids,
    whitening_of,
)
from forvalue_index.view import Block, View

NO_VALUES = Values(np.empty(0, np.int64), np.empty(0, np.float32), np.empty(0, np.float32))
# Of a block: ids, scores, and squared norms of each part of its rows where they are asked for.
_Scored = tuple[NDArray[Any], ...]
EXPORTED_ROWS = 10_000
# Texts that are held at once.
EXACT_SAMPLES = 1024


def wanted_scoring(
    path: Path, held: Sequence[str], how: Mapping[str, Any], *, exact: bool, rows: bool
) -> Scoring:
    """What is asked of the index at `path`, by default in the first of the geometries it holds.

    Raises UsageError where there is no such geometry, or no `rows` of it, or a whitened `exact`
    score is asked for.
    """
    chosen = Scoring(**{**how, "geometry": how.get("geometry") or held[0]})
    if chosen.geometry not in GEOMETRIES:
        raise UsageError(
            f"--geometry cannot be {chosen.geometry!r}; use one of {', '.join(GEOMETRIES)}"
        )
    if rows and chosen.geometry not in held:
        raise UsageError(
            f"--geometry {chosen.geometry}: {path} has rows of {', '.join(held)}; use one of "
            "these, exact scores, or build an index with it"
        )
    if chosen.whiten and exact:
        raise UsageError(
            "--whiten changes a query in the space of rows, which exact scores do not have; leave "
            "one of them out"
        )
    return chosen


def sketched_values(  # noqa: PLR0913 - what scores depend on
    view: View,
    embedded: ValidationRows | None,
    scoring: Scoring,
    *,
    errors: SketchError,
    damping: float,
    where: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Values:
    """A score for every live sample, in order of id, from the rows of an index.

    `embedded` may be None where there are no samples. Only samples that meet `where` are given.
    """
    if embedded is None:
        refuse_filled(view.catalog)
        return NO_VALUES
    query = embedded.mean
    if scoring.whiten and view.catalog.count():
        query = whitening_of(view, scoring, damping)(query[None])[0]
    asked, known = torch.from_numpy(query), None if scoring.whiten else errors

    def scored_block(block: Block) -> _Scored:
        scores = torch.mv(block.rows, asked).numpy()
        return block.ids, scores, *(() if known is None else known.squares(block.rows.numpy()))

    found = view.scan(
        scoring.geometry, scored_block, normalize=scoring.normalize, on_progress=on_progress
    )
    return _values(found, query, known, view.catalog, where)


def resident_values(
    valuer: Valuer,
    search: GpuIndex,
    embedded: ValidationRows,
    catalog: Snapshot,
    where: str | None = None,
) -> Values:
    """As `sketched_values`, of rows that a valuer searches in the memory of GPUs."""
    query, errors = valuer.queries(embedded, 1)[0], valuer.errors
    asked = torch.from_numpy(query)

    def scored_block(ids: NDArray[np.int64], rows: Tensor) -> _Scored:
        scores = torch.mv(rows, asked.to(rows.device)).cpu().numpy()
        parts = () if errors is None else errors.parts()
        return ids, scores, *(rows[:, part].square().sum(dim=1).cpu().numpy() for part in parts)

    found = starmap(scored_block, search.blocks())
    return _values(found, query, errors, catalog, where)


def _values(
    found: Iterable[_Scored],
    query: NDArray[np.float32],
    errors: SketchError | None,
    catalog: Snapshot,
    where: str | None,
) -> Values:
    """Scored blocks after each other, of samples that meet `where`, with standard errors."""
    columns = [np.concatenate(column) for column in zip(*found, strict=True)]
    if not columns:
        return NO_VALUES
    ids, scores, *squares = columns
    stderrs = np.full(len(ids), np.nan, np.float32)
    if errors is not None:
        stderrs = errors.of_squares(query, squares, scores)
    if where is None:
        return Values(ids, scores, stderrs)
    wanted = np.isin(ids, catalog.live_ids(where), assume_unique=True)
    return Values(ids[wanted], scores[wanted], stderrs[wanted])


def streamed_values(
    catalog: Snapshot,
    reader: LabelReader,
    target: ValidationGradient,
    *,
    where: str | None = None,
    on_progress: OnProgress = ignore_progress,
) -> Values:
    """The exact score of every live sample, or of those that meet `where`, in order of id.

    Raises BadSampleError, naming the sample, where its text is lost or cannot be valued.
    """
    ids = catalog.live_ids(where)
    scores = np.empty(len(ids), dtype=np.float32)
    for start in range(0, len(ids), EXACT_SAMPLES):
        chunk = slice(start, start + EXACT_SAMPLES)
        stored = catalog.samples(ids[chunk])
        refuse_other_ids(np.array(sorted(stored), dtype=np.int64), ids[chunk])
        prepared = [prepare_stored(reader, stored[id_]) for id_ in ids[chunk].tolist()]

        def scored(progress: Progress, before: int = start) -> None:
            on_progress(Progress("scoring", before + progress.done, len(ids)))

        scores[chunk] = exact_values(reader, target, prepared, on_progress=scored)
    return Values(ids=ids, scores=scores, stderrs=np.zeros(len(ids), dtype=np.float32))


def rescorer(
    reader: LabelReader,
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


def prepare_stored(reader: LabelReader, stored: StoredSample) -> Prepared:
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


def named_values(
    catalog: Snapshot, scored: Values, where: str | None = None
) -> Iterator[dict[str, list[object]]]:
    """Values with keys and sources beside them, as columns, a bounded number of rows at a time.

    `catalog` is a snapshot of the state that was scored, and `where` the condition for it.
    """
    identities = catalog.identities(where)
    for start in range(0, len(scored.ids), EXPORTED_ROWS):
        chunk = slice(start, start + EXPORTED_ROWS)
        named = list(islice(identities, EXPORTED_ROWS))
        refuse_other_ids(np.array([id_ for id_, _, _ in named], np.int64), scored.ids[chunk])
        stderrs = scored.stderrs[chunk]
        yield {
            "id": scored.ids[chunk].tolist(),
            "key": [key for _, key, _ in named],
            "source": [source for _, _, source in named],
            "score": scored.scores[chunk].tolist(),
            "stderr": [None if np.isnan(s) else s for s in stderrs.tolist()],
        }
