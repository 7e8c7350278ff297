"""What is stored under the keys of rows, or came from their places: asked for window by window."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import sqlalchemy as sa

from forvalue_index.sources.sample import Sample
from forvalue_index.store.catalog.sample_rows import chunks, clean_text
from forvalue_index.store.catalog.schema import LIVE, REMOVED, samples, sources
from forvalue_index.store.records import KnownSample, Measured

_KNOWN = sa.select(
    *(samples.c[name] for name in ("id", "key", "content_hash", "removed", "metadata")),
    *(samples.c[name] for name in ("position", "offset", *Measured._fields)),
    sources.c.name.label("source"),
).select_from(samples.join(sources))


def known_samples(
    connection: sa.Connection, index_id: int, candidates: Iterable[Sample], *, referenced: bool
) -> dict[str, KnownSample]:
    """What is stored under the keys of samples: a live one, or a removed one of equal content.

    A removed sample of other content does not count; its key is free. Of samples that are
    `referenced` it says where their texts lie.
    """
    contents: dict[str, str] = {}
    for sample in candidates:
        # The first of several samples of one key counts.
        contents.setdefault(clean_text(sample.key), sample.content_hash)
    known: dict[str, KnownSample] = {}
    # One query for each index over keys; what is live comes last and wins.
    for state in (REMOVED, LIVE):
        for row in _under_keys(connection, index_id, contents, state):
            if not row.removed or row.content_hash == contents.get(row.key):
                known[row.key] = _known(row, referenced=referenced)
    return known


def live_samples(
    connection: sa.Connection, index_id: int, keys: Iterable[str]
) -> dict[str, KnownSample]:
    """What live samples are stored under keys."""
    rows = _under_keys(connection, index_id, keys, LIVE)
    return {row.key: _known(row) for row in rows}


def samples_at(
    connection: sa.Connection, index_id: int, source: str, first: int, last: int
) -> dict[int, KnownSample]:
    """The live samples from a range of positions of a source whose content is their key."""
    query = _KNOWN.where(
        samples.c.index_id == index_id,
        LIVE,
        sources.c.name == source,
        samples.c.position.between(first, last),
        samples.c.key == samples.c.content_hash,
    )
    return {row.position: _known(row) for row in connection.execute(query)}


def _under_keys(
    connection: sa.Connection, index_id: int, keys: Iterable[str], state: sa.ColumnElement[bool]
) -> Iterator[Any]:
    query = _KNOWN.where(samples.c.index_id == index_id, state)
    for chunk in chunks(keys):
        yield from connection.execute(query.where(samples.c.key.in_(chunk)))


def _known(row: Any, *, referenced: bool = False) -> KnownSample:
    return KnownSample(
        id=row.id,
        content_hash=row.content_hash,
        removed=row.removed,
        metadata=row.metadata,
        measured=Measured(*(getattr(row, name) for name in Measured._fields)),
        location=(row.source, row.position, row.offset) if referenced else None,
    )
