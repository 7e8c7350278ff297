"""An index in numbers, computed by its catalog's database."""

from __future__ import annotations

import random
import statistics
from typing import Any

import sqlalchemy as sa

from forvalue_index.store.catalog.runs import stopped_runs
from forvalue_index.store.catalog.sample_rows import chunks
from forvalue_index.store.catalog.schema import LIVE, REMOVED, indexes, samples, segments, sources
from forvalue_index.store.results import CatalogSummary, SourceSummary

MEDIAN_SAMPLES = 8192
MOST_IDS = 2**16


def summarise(connection: sa.Connection, index_id: int) -> CatalogSummary:
    """Count and measure; run it in one transaction, or the numbers may not fit together."""
    own = samples.c.index_id == index_id
    live = sa.and_(own, LIVE)
    by_source = _by_source(connection, live)
    n_live = sum(source.samples for source in by_source)
    n_segments, n_bytes = connection.execute(
        sa.select(sa.func.count(), sa.func.coalesce(sa.func.sum(segments.c.n_bytes), 0)).where(
            segments.c.index_id == index_id
        )
    ).one()
    gone = sa.select(sa.func.count()).select_from(samples).where(own, REMOVED)
    removed = int(connection.execute(gone).scalar_one())
    return CatalogSummary(
        samples=n_live,
        removed=removed,
        segments=n_segments,
        bytes=int(n_bytes),
        sources=by_source,
        loss=_median(connection, samples.c.loss, live, n_live),
        label_error_mass=median_error_mass(connection, index_id, n_live),
        stopped=stopped_runs(connection, index_id),
    )


def median_error_mass(connection: sa.Connection, index_id: int, count: int) -> float | None:
    """The median label error mass of `count` live samples, estimated where there are many.

    Its column has no index, which would cost a tenth of the time to add.
    """
    if not count:
        return None
    following = sa.select(indexes.c.next_sample_id).where(indexes.c.id == index_id)
    n_ids = int(connection.execute(following).scalar_one())
    # Removed samples leave gaps.
    wanted = min(n_ids, MOST_IDS, MEDIAN_SAMPLES * n_ids // count)
    ids = sorted(random.Random(0).sample(range(n_ids), wanted))
    live = (samples.c.index_id == index_id, LIVE)
    query = sa.select(samples.c.label_error_mass).where(*live)
    masses = [
        value
        for chunk in chunks(ids)
        for value in connection.scalars(query.where(samples.c.id.in_(chunk)))
    ]
    return statistics.median(masses) if masses else None


def _by_source(
    connection: sa.Connection, live: sa.ColumnElement[bool]
) -> tuple[SourceSummary, ...]:
    # Counted before names come in: the index over sources has all that counting needs.
    counted = sa.select(samples.c.source_id, sa.func.count().label("n")).where(live)
    counts = counted.group_by(samples.c.source_id).subquery()
    query = sa.select(sources.c.name, counts.c.n).join_from(
        counts, sources, counts.c.source_id == sources.c.id
    )
    rows = connection.execute(query.order_by(sources.c.id))
    return tuple(SourceSummary(name, count) for name, count in rows)


def _median(
    connection: sa.Connection, column: sa.Column[Any], live: sa.ColumnElement[bool], count: int
) -> float | None:
    """The median by an index over the column, which has it in order."""
    if not count:
        return None
    query = sa.select(column).where(live).order_by(column)
    middle = connection.scalars(query.limit(2 - count % 2).offset((count - 1) // 2)).all()
    return float(sum(middle) / len(middle))
