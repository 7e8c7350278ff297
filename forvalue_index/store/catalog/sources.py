"""The sources of an index's samples, and where the texts lie that its catalog only refers to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sqlalchemy as sa

from forvalue_index.exceptions import UsageError
from forvalue_index.sources.sample import Source
from forvalue_index.store.catalog.schema import sources


def source_ids(connection: sa.Connection, index_id: int, names: set[str]) -> dict[str, int]:
    """The ids of all sources of an index, by name; those of `names` are entered if they are new."""
    query = sa.select(sources.c.name, sources.c.id).where(sources.c.index_id == index_id)
    ids = {row.name: row.id for row in connection.execute(query)}
    for name in sorted(names - ids.keys()):
        insert = sa.insert(sources).values(index_id=index_id, name=name)
        ids[name] = connection.execute(insert.returning(sources.c.id)).scalar_one()
    return ids


def refer_to(
    connection: sa.Connection,
    index_id: int,
    referred: Sequence[Source],
    located: Mapping[str, str],
) -> None:
    """Note the columns of sources and, by name in `located`, their paths.

    Raises UsageError where a name stands for another file.
    """
    ids = source_ids(connection, index_id, {source.name for source in referred})
    for source in referred:
        own = sources.c.id == ids[source.name]
        path = located.get(source.name)
        before = connection.scalar(sa.select(sources.c.path).where(own))
        if before not in (None, path):
            raise UsageError(
                f"{source.name} stands for {before} in this index, and is now {path}; give its "
                "full path"
            )
        location = {"path": path, "columns": dict(source.columns)}
        connection.execute(sa.update(sources).where(own).values(location))
