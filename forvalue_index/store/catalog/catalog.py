"""The catalog: everything about an index's samples but their rows, in SQL.

A row here is the proof that a vector exists: a segment file is written first, then one
transaction records it with all of its samples. `remove` marks; only `replace_segments`, when rows
are compacted, forgets what is marked.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Sample, Source
from forvalue_index.store.catalog.database import (
    CatalogError,
    check_schema,
    complaints_of,
    connect,
    describe,
    migrate,
    reading,
    rebuild_trees,
    translated_errors,
)
from forvalue_index.store.catalog.runs import finish_run, start_run
from forvalue_index.store.catalog.sample_rows import chunks, pack, revise, with_facts_of
from forvalue_index.store.catalog.schema import LIVE, indexes, samples, segments
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.catalog.sources import refer_to, source_ids
from forvalue_index.store.catalog.sqlite import copy_log
from forvalue_index.store.catalog.witness import NO_WITNESS, Witness
from forvalue_index.store.records import SegmentRecord, Texts


class Catalog:
    """The catalog of one index; several indexes may share a database."""

    def __init__(
        self, engine: sa.Engine, uid: str, texts: Texts | None = None, witness: Witness = NO_WITNESS
    ) -> None:
        self._engine = engine
        self._texts = texts
        self._witness = witness
        witnessed = witness.version()  # first, as others may commit at any time
        with reading(engine) as connection:
            asked = sa.select(indexes.c.id, indexes.c.fingerprint, indexes.c.version)
            row = connection.execute(asked.where(indexes.c.uid == uid)).one_or_none()
        if row is None:
            raise BrokenIndexError(
                f"{describe(engine)} holds no index {uid}. Give the database that the index was "
                "created with, or create the index anew"
            )
        witness.refuse_older(row.version, witnessed, describe(engine))
        self._id: int = row.id
        self.fingerprint: str = row.fingerprint

    @classmethod
    def create(
        cls,
        address: str | Path,
        uid: str,
        fingerprint: str,
        *,
        texts: Texts | None = None,
        witness: Witness = NO_WITNESS,
    ) -> Catalog:
        """Migrate the database and enter a new index. Raises CatalogError if it is there.

        With `texts`, the catalog refers to the texts of samples and does not hold them.
        """
        engine = connect(address)
        try:
            migrate(engine)
            row = sa.insert(indexes).values(uid=uid, fingerprint=fingerprint)
            with translated_errors(engine), engine.begin() as connection:
                connection.execute(row)
            return cls(engine, uid, texts, witness)
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
    def open(
        cls,
        address: str | Path,
        uid: str,
        *,
        texts: Texts | None = None,
        witness: Witness = NO_WITNESS,
    ) -> Catalog:
        """Open an index. Raises BrokenIndexError where it, its schema or last change is missing."""
        engine = connect(address)
        try:
            check_schema(engine)
            return cls(engine, uid, texts, witness)
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

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """Read one state of the catalog, whatever is committed meanwhile."""
        with reading(self._engine) as connection:
            snapshot = Snapshot(connection, self._id, self._texts)
            snapshot.version()  # databases settle on a state with the first read
            yield snapshot

    def refer_to(self, referred: Sequence[Source]) -> None:
        """Note how sources are read and, in a catalog that only refers to texts, where these lie.

        Raises UsageError where they cannot be referred to, or a name stands for another file.
        """
        texts = self._texts
        located = {s.name: texts.locate(s.name, s.path) for s in referred} if texts else {}
        with self._writing() as connection:
            refer_to(connection, self._id, referred, located)

    def start_run(self, source_names: Sequence[str]) -> int:
        """Begin an `add` of these sources, or go on with one that was stopped; returns its id."""
        with self._writing() as connection:
            return start_run(connection, self._id, source_names)

    def finish_run(self, run_id: int) -> None:
        """Record that all of an `add` is stored, and with it each stopped one of its sources."""
        with self._writing() as connection:
            finish_run(connection, self._id, run_id)

    def commit_segment(
        self,
        segment: SegmentRecord,
        new: Sequence[Sample],
        statistics: Sequence[SampleStatistics],
        *,
        replaced: Sequence[int] = (),
    ) -> int:
        """Record a written segment and its samples, all or nothing; returns the first id.

        Samples with ids in `replaced` are removed, as others have their place.

        Raises CatalogError where a key is taken, BadSampleError where a sample cannot be stored.
        """
        if not segment.n_rows == len(new) == len(statistics):
            raise CatalogError(
                f"Segment {segment.uid} has {segment.n_rows} rows for {len(new)} samples and "
                f"{len(statistics)} statistics. Give one of each for every row"
            )
        try:
            with self._writing() as connection:
                first_id = self._allocate(connection, len(new))
                segment_id = self._insert_segment(connection, segment, first_id)
                ids = source_ids(connection, self._id, {sample.source for sample in new})
                rows = [
                    pack(first_id + offset, sample, measured, referenced=self._texts is not None)
                    | {
                        "index_id": self._id,
                        "segment_id": segment_id,
                        "source_id": ids[sample.source],
                    }
                    for offset, (sample, measured) in enumerate(zip(new, statistics, strict=True))
                ]
                self._mark_removed(connection, replaced)
                if rows:
                    connection.execute(sa.insert(samples), rows)
        except sa.exc.IntegrityError as error:
            with self.snapshot() as snapshot:
                clashes = sorted(snapshot.known(new))[:3] or "twice in this segment"
            raise CatalogError(
                f"Segment {segment.uid} was not recorded, nothing has changed: a key is taken "
                f"({clashes}). Run the same again: samples that are stored are skipped"
            ) from error
        return first_id

    def remove(self, ids: Iterable[int] | NDArray[np.int64]) -> int:
        """Mark samples as removed; returns how many were live before."""
        with self._writing() as connection:
            removed = self._mark_removed(connection, (int(id_) for id_ in ids))
            if removed:
                self._allocate(connection, 0)
        return removed

    def _mark_removed(self, connection: sa.Connection, ids: Iterable[int]) -> int:
        removed = 0
        for chunk in chunks(ids):
            live = self._own(samples) & LIVE & samples.c.id.in_(chunk)
            marked = sa.update(samples).where(live).values(removed=True)
            removed += connection.execute(marked).rowcount
        return removed

    def restore(self, restored: Mapping[int, Sample]) -> None:
        """Make samples live, by id, with source, position, metadata and images of these."""
        with self.snapshot() as snapshot:
            stored = snapshot.samples(restored)
        with self._writing() as connection:
            self._allocate(connection, 0)
            ids = source_ids(connection, self._id, {s.source for s in restored.values()})
            for id_, sample in restored.items():
                changed = sample
                if not stored[id_].referenced:
                    changed = with_facts_of(sample, stored[id_].sample)
                values = revise(dataclasses.replace(stored[id_], sample=changed))
                values |= {"removed": False, "source_id": ids[sample.source]}
                connection.execute(self._update(id_, values))

    def update_metadata(self, changed: Mapping[int, Mapping[str, Any]]) -> None:
        """Replace the metadata of samples, by id."""
        with self.snapshot() as snapshot:
            stored = snapshot.samples(changed)
        with self._writing() as connection:
            self._allocate(connection, 0)
            for id_, metadata in changed.items():
                sample = dataclasses.replace(stored[id_].sample, metadata=metadata)
                values = revise(dataclasses.replace(stored[id_], sample=sample))
                connection.execute(self._update(id_, values))

    def replace_segments(
        self,
        old: Sequence[str],
        new: SegmentRecord | None,
        *,
        first_id: int,
        forget: Sequence[int] | None = None,
    ) -> None:
        """Let one segment, or none, take the place of others, by uid.

        Removed samples of the old ones with ids in `forget`, or all of them, are forgotten. The new
        segment holds the rows of all others. Raises CatalogError, and changes nothing, where it
        does not.
        """
        own = self._own(segments) & segments.c.uid.in_(old)
        with self._writing() as connection:
            self._allocate(connection, 0)
            old_ids = list(connection.scalars(sa.select(segments.c.id).where(own)))
            members = self._own(samples) & samples.c.segment_id.in_(old_ids)
            gone = sa.delete(samples).where(members, samples.c.removed)
            for part in [None] if forget is None else chunks(forget):
                connection.execute(gone if part is None else gone.where(samples.c.id.in_(part)))
            moved = 0
            if new is not None:
                segment_id = self._insert_segment(connection, new, first_id)
                move = sa.update(samples).where(members).values(segment_id=segment_id)
                moved = connection.execute(move).rowcount
            expected = 0 if new is None else new.n_rows
            left = sa.select(sa.func.count()).select_from(samples).where(members)
            if moved != expected or connection.execute(left).scalar_one():
                raise CatalogError(
                    f"The samples of segments {', '.join(old)} changed while their rows were "
                    "written anew; nothing has changed. Run the same again"
                )
            connection.execute(sa.delete(segments).where(own))

    def complaints(self) -> list[str]:
        """What is wrong with the database itself."""
        return complaints_of(self._engine)

    def reindex(self) -> None:
        """Build the database's index trees anew from its tables, where it is SQLite."""
        rebuild_trees(self._engine)

    @contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One transaction, which sees what was committed before it and locks out other writers."""
        own = indexes.c.id == self._id
        with translated_errors(self._engine):
            with self._engine.begin() as connection:
                # Before anything is read: on SQLite only a first statement that writes locks.
                locked = sa.update(indexes).where(own).values(version=indexes.c.version)
                before = connection.execute(locked.returning(indexes.c.version)).scalar_one()
                yield connection
                version = connection.execute(sa.select(indexes.c.version).where(own)).scalar_one()
            if version != before:
                copy_log(self._engine)
                self._witness.keep(version)

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.index_id == self._id

    def _update(self, id_: int, values: Mapping[str, Any]) -> sa.Update:
        return sa.update(samples).where(self._own(samples), samples.c.id == id_).values(**values)

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
