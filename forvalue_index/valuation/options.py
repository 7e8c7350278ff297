"""From the options of a query to the data it reads and the scores it gives."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypedDict, cast

from forvalue_index.exceptions import UsageError
from forvalue_index.settings import GEOMETRIES
from forvalue_index.sources.data import Data, DataOptions
from forvalue_index.store.store import Storage
from forvalue_index.valuation.scoring import Scoring


class ScoringOptions(TypedDict, total=False):
    """The fields of `Scoring` as keyword arguments. No geometry is the first of the index."""

    geometry: str | None
    normalize: bool
    whiten: bool
    search: str | None


class QueryOptions(DataOptions, ScoringOptions, total=False):
    """How a validation set is read, and what a score is."""


def asked(
    storage: Storage, data: Any, options: QueryOptions, *, exact: bool, rows: bool
) -> tuple[Data, Scoring]:
    """A validation set and what its scores are. Raises as `wanted_scoring`."""
    reading = {n: value for n, value in options.items() if n in DataOptions.__annotations__}
    scored = {n: value for n, value in options.items() if n not in reading}
    scoring = wanted_scoring(storage, scored, exact=exact, rows=rows)
    return Data.of(data, cast(DataOptions, reading)), scoring


def wanted_scoring(
    storage: Storage, options: Mapping[str, Any], *, exact: bool, rows: bool
) -> Scoring:
    """What is asked of an index, by default in the first of the geometries that it holds.

    Raises UsageError where there is no such geometry, or no `rows` of it, or a whitened `exact`
    score is asked for.
    """
    path, held = storage.path, storage.manifest.settings.geometries
    chosen = Scoring(**{**options, "geometry": options.get("geometry") or held[0]})
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
