"""Each `add` of an index, so that one that was stopped is known to be unfinished."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import sqlalchemy as sa

from forvalue_index.store.catalog.schema import runs


def start_run(connection: sa.Connection, index_id: int, source_names: Sequence[str]) -> int:
    """Begin a run of these sources, or take up a stopped one; returns its id."""
    stopped = sa.select(runs.c.id, runs.c.sources).where(_unfinished(index_id))
    same = [r.id for r in connection.execute(stopped) if r.sources == list(source_names)]
    if same:
        return int(same[-1])
    begun = sa.insert(runs).values(index_id=index_id, sources=list(source_names))
    return int(connection.execute(begun.returning(runs.c.id)).scalar_one())


def finish_run(connection: sa.Connection, index_id: int, run_id: int) -> None:
    """Record that a run is done, and with it each stopped one of its sources."""
    unfinished = sa.select(runs.c.id, runs.c.sources).where(_unfinished(index_id))
    names = {row.id: set(row.sources) for row in connection.execute(unfinished)}
    stored = [id_ for id_, own in names.items() if own <= names.get(run_id, set())]
    ended = sa.update(runs).where(_unfinished(index_id), runs.c.id.in_(stored))
    connection.execute(ended.values(finished_at=datetime.now(UTC)))


def stopped_runs(connection: sa.Connection, index_id: int) -> tuple[tuple[str, ...], ...]:
    """The sources of each run that did not reach its end."""
    query = sa.select(runs.c.sources).where(_unfinished(index_id)).order_by(runs.c.id)
    return tuple(tuple(names) for names in connection.scalars(query))


def _unfinished(index_id: int) -> sa.ColumnElement[bool]:
    return sa.and_(runs.c.index_id == index_id, runs.c.finished_at.is_(None))
