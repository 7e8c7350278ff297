"""The catalog: everything about an index's samples but their rows, in SQL.

A row here is the proof that a vector exists: a segment file is written first, then one
transaction records it with all of its samples. Nothing is deleted; `remove` marks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from forvalue_index.catalog_rows import chunks, clean_text, pack, unpack
from forvalue_index.catalog_summary import summarise
from forvalue_index.database import (
    CatalogError,
    check_schema,
    connect,
    describe,
    migrate,
    translated_errors,
)
from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.records import (
    CatalogSummary,
    Sample,
    SampleStatistics,
    SegmentRecord,
    StoredSample,
    StoredSegment,
)
from forvalue_index.tables import indexes, samples, segments, sources

STREAMED_ROWS = 10_000
# The largest number that a database counts to.
MAX_COUNT = 2**63 - 1

_NAMED = samples.join(sources)
_STORED = sa.select(
    *(column for column in samples.c if column.name not in ("index_id", "segment_id", "source_id")),
    sources.c.name.label("source"),
    segments.c.uid.label("segment"),
).select_from(_NAMED.join(segments))


class Catalog:
    """The catalog of one index; several indexes may share a database."""

    def __init__(self, engine: sa.Engine, uid: str) -> None:
        self._engine = engine
        with self._reading() as connection:
            query = sa.select(indexes.c.id, indexes.c.fingerprint).where(indexes.c.uid == uid)
            row = connection.execute(query).one_or_none()
        if row is None:
            raise BrokenIndexError(
                f"{describe(engine)} holds no index {uid}. Give the database that the index was "
                "created with, or create the index anew"
            )
        self._id: int = row.id
        self.fingerprint: str = row.fingerprint

    @classmethod
    def create(cls, address: str | Path, uid: str, fingerprint: str) -> Catalog:
        """Migrate the database and enter a new index. Raises CatalogError if it is there."""
        engine = connect(address)
        try:
            migrate(engine)
            row = sa.insert(indexes).values(uid=uid, fingerprint=fingerprint)
            with translated_errors(engine), engine.begin() as connection:
                connection.execute(row)
            return cls(engine, uid)
        except sa.exc.IntegrityError as error:
            engine.dispose()
            raise CatalogError(
                f"{describe(engine)} already holds the index {uid}. Open it, or create one with "
                "another uid"
            ) from error
        except BaseException:
            engine.dispose()
            raise

    @classmethod
    def open(cls, address: str | Path, uid: str) -> Catalog:
        """Open an index. Raises BrokenIndexError unless it is there and its schema is current."""
        engine = connect(address)
        try:
            check_schema(engine)
            return cls(engine, uid)
        except BaseException:
            engine.dispose()
            raise

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def version(self) -> int:
        """Count the committed changes."""
        return int(self._scalar(sa.select(indexes.c.version).where(indexes.c.id == self._id)))

    def known(self, candidates: Iterable[Sample]) -> dict[str, str]:
        """Map the keys that are stored already, of removed samples too, to content hashes."""
        query = sa.select(samples.c.key, samples.c.content_hash).where(self._own(samples))
        found: dict[str, str] = {}
        with self._reading() as connection:
            for keys in chunks(clean_text(sample.key) for sample in candidates):
                rows = connection.execute(query.where(samples.c.key.in_(keys)))
                found.update((row.key, row.content_hash) for row in rows)
        return found

    def commit_segment(
        self,
        segment: SegmentRecord,
        new: Sequence[Sample],
        statistics: Sequence[SampleStatistics],
    ) -> int:
        """Record a written segment and its samples, all or nothing; returns the first id.

        Raises CatalogError where a key is stored already, BadSampleError where a sample cannot be.
        """
        if not segment.n_rows == len(new) == len(statistics):
            raise CatalogError(
                f"Segment {segment.uid} has {segment.n_rows} rows for {len(new)} samples and "
                f"{len(statistics)} statistics. Give one of each for every row"
            )
        rows = [pack(*pair) for pair in zip(new, statistics, strict=True)]
        names = {sample.source for sample in new}
        try:
            with self._writing() as connection:
                first_id = self._allocate(connection, len(rows))
                segment_id = self._insert_segment(connection, segment, first_id)
                source_ids = self._source_ids(connection, names)
                shared = {"index_id": self._id, "segment_id": segment_id}
                for offset, (row, sample) in enumerate(zip(rows, new, strict=True)):
                    row |= shared | {"id": first_id + offset}
                    row["source_id"] = source_ids[sample.source]
                if rows:
                    connection.execute(sa.insert(samples), rows)
        except sa.exc.IntegrityError as error:
            clashes = sorted(self.known(new))[:3] or "twice in this segment"
            raise CatalogError(
                f"Segment {segment.uid} was not recorded, nothing has changed: a key is taken "
                f"({clashes}). Run the same again: samples that are stored are skipped"
            ) from error
        return first_id

    def remove(self, ids: Iterable[int] | NDArray[np.int64]) -> int:
        """Mark samples as removed; returns how many were live before."""
        removed = 0
        with self._writing() as connection:
            for chunk in chunks(int(id_) for id_ in ids):
                live = self._live(None) & samples.c.id.in_(chunk)
                removed += connection.execute(
                    sa.update(samples).where(live).values(removed=True)
                ).rowcount
            if removed:
                self._allocate(connection, 0)
        return removed

    def segments(self) -> list[StoredSegment]:
        """List the segments in order of their ids."""
        query = sa.select(segments).where(self._own(segments)).order_by(segments.c.first_id)
        with self._reading() as connection:
            return [_segment(row) for row in connection.execute(query)]

    def live_ids(self, where: str | None = None) -> NDArray[np.int64]:
        """List the ids of live samples, all or those that meet a condition, in order."""
        query = sa.select(samples.c.id).select_from(_NAMED).where(self._live(where))
        return self._ids(query)

    def removed_ids(self) -> NDArray[np.int64]:
        """List the ids of removed samples in order."""
        return self._ids(sa.select(samples.c.id).where(self._own(samples), samples.c.removed))

    def samples(self, ids: Iterable[int] | NDArray[np.int64]) -> dict[int, StoredSample]:
        """Read samples by id, removed ones too; ids that were never given are left out."""
        query = _STORED.where(self._own(samples))
        with self._reading() as connection:
            return {
                row.id: unpack(row)
                for chunk in chunks(int(id_) for id_ in ids)
                for row in connection.execute(query.where(samples.c.id.in_(chunk)))
            }

    def sample(self, name: str) -> StoredSample:
        """Find a sample, live or removed, by key or else by id. Raises CatalogError."""
        query = _STORED.where(self._own(samples))
        with self._reading() as connection:
            row = connection.execute(query.where(samples.c.key == clean_text(name))).one_or_none()
            if row is None and name.isascii() and name.isdecimal() and int(name) <= MAX_COUNT:
                row = connection.execute(query.where(samples.c.id == int(name))).one_or_none()
        if row is None:
            raise CatalogError(
                f"There is no sample with the key or id {name!r} in the index. List them with: "
                "forvalue list"
            )
        return unpack(row)

    def list_samples(
        self, where: str | None = None, *, limit: int, offset: int = 0
    ) -> list[StoredSample]:
        """Read live samples in order of id, all or those that meet a condition."""
        query = _STORED.where(self._live(where)).order_by(samples.c.id)
        page = query.limit(min(limit, MAX_COUNT)).offset(min(offset, MAX_COUNT))
        with self._reading() as connection:
            return [unpack(row) for row in connection.execute(page)]

    def count(self, where: str | None = None) -> int:
        """Count live samples, all or those that meet a condition."""
        query = sa.select(sa.func.count()).select_from(_NAMED).where(self._live(where))
        return int(self._scalar(query))

    def identities(self) -> Iterator[tuple[int, str, str]]:
        """Stream id, key and source of every live sample in order of id."""
        query = sa.select(samples.c.id, samples.c.key, sources.c.name).select_from(_NAMED)
        ordered = query.where(self._live(None)).order_by(samples.c.id)
        with self._reading() as connection:
            for row in connection.execute(ordered, execution_options={"yield_per": STREAMED_ROWS}):
                yield row.id, row.key, row.name

    def summary(self) -> CatalogSummary:
        """Count and measure what the index holds."""
        with self._reading() as connection:
            return summarise(connection, self._id)

    @contextmanager
    def _reading(self) -> Iterator[sa.Connection]:
        with translated_errors(self._engine), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One transaction. Its first statement must write, so that SQLite locks at once."""
        with translated_errors(self._engine), self._engine.begin() as connection:
            yield connection

    def _scalar(self, query: sa.Select[Any]) -> Any:
        with self._reading() as connection:
            return connection.execute(query).scalar_one()

    def _ids(self, query: sa.Select[Any]) -> NDArray[np.int64]:
        with self._reading() as connection:
            return np.fromiter(connection.scalars(query.order_by(samples.c.id)), dtype=np.int64)

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.index_id == self._id

    def _live(self, where: str | None) -> sa.ColumnElement[bool]:
        live = self._own(samples) & ~samples.c.removed
        if where is None:
            return live
        # Imported here because few commands take a condition, and sqlglot takes its time.
        from forvalue_index.filters import compile_filter

        return live & compile_filter(where)

    def _allocate(self, connection: sa.Connection, n_ids: int) -> int:
        """Take the next ids and count a change; returns the first id."""
        after = sa.update(indexes).where(indexes.c.id == self._id)
        taken = after.values(
            next_sample_id=indexes.c.next_sample_id + n_ids, version=indexes.c.version + 1
        ).returning(indexes.c.next_sample_id)
        return int(connection.execute(taken).scalar_one()) - n_ids

    def _insert_segment(
        self, connection: sa.Connection, segment: SegmentRecord, first_id: int
    ) -> int:
        row = dataclasses.asdict(segment) | {"index_id": self._id, "first_id": first_id}
        insert = sa.insert(segments).values(row).returning(segments.c.id)
        return int(connection.execute(insert).scalar_one())

    def _source_ids(self, connection: sa.Connection, names: set[str]) -> dict[str, int]:
        query = sa.select(sources.c.name, sources.c.id).where(self._own(sources))
        ids = {row.name: row.id for row in connection.execute(query)}
        for name in sorted(names - ids.keys()):
            insert = sa.insert(sources).values(index_id=self._id, name=name)
            ids[name] = connection.execute(insert.returning(sources.c.id)).scalar_one()
        return ids


def _segment(row: Any) -> StoredSegment:
    return StoredSegment(row.first_id, SegmentRecord(row.uid, row.n_rows, row.n_bytes, row.sha256))
