"""One state of a catalog: every read of a snapshot sees what was committed when it was opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.sql.visitors import iterate

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.sources.sample import Sample
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.catalog.known_samples import known_samples, live_samples, samples_at
from forvalue_index.store.catalog.sample_rows import chunks, clean_text, unpack
from forvalue_index.store.catalog.schema import LIVE, REMOVED, indexes, samples, segments, sources
from forvalue_index.store.catalog.summary import median_error_mass, summarise
from forvalue_index.store.records import (
    Conversation,
    KnownSample,
    Reference,
    SegmentRecord,
    StoredSample,
    StoredSegment,
    Texts,
)
from forvalue_index.store.results import CatalogSummary

STREAMED_ROWS = 10_000
# The largest number that a database counts to.
MAX_COUNT = 2**63 - 1
# Before a number that names a sample. Shells leave it alone, where they take # for a comment.
NUMBER_MARK = "@"

_NAMED = samples.join(sources)
_INDEXED = (sources.c.name, samples.c.loss)
_STORED = sa.select(
    *(column for column in samples.c if column.name not in ("index_id", "segment_id", "source_id")),
    sources.c.name.label("source"),
    sources.c.path,
    sources.c["columns"].label("mapping"),
    segments.c.uid.label("segment"),
).select_from(_NAMED.join(segments))
_SEGMENT = tuple(segments.c[name] for name in ("first_id", "uid", "n_rows", "n_bytes", "sha256"))


class Snapshot:
    """Reads of one index within one transaction. Made by `Catalog.snapshot`."""

    def __init__(
        self, connection: sa.Connection, index_id: int, texts: Texts | None = None
    ) -> None:
        self._connection = connection
        self._id = index_id
        self._texts = texts

    def version(self) -> int:
        """Count the committed changes."""
        query = sa.select(indexes.c.version).where(indexes.c.id == self._id)
        return int(self._connection.execute(query).scalar_one())

    def segments(self) -> list[StoredSegment]:
        """List the segments in order of their ids."""
        query = sa.select(*_SEGMENT).where(self._own(segments)).order_by(segments.c.first_id)
        return [
            StoredSegment(row.first_id, SegmentRecord(row.uid, row.n_rows, row.n_bytes, row.sha256))
            for row in self._connection.execute(query)
        ]

    def live_ids(self, where: str | None = None, *, source: str | None = None) -> NDArray[np.int64]:
        """List the ids of live samples in order: all, or those of a source or a condition.

        Raises CatalogError where there is no such source.
        """
        query = self._filtered(samples.c.id, where)
        if source is not None:
            query = query.where(samples.c.source_id == self._source_id(source))
        return self._ids(query)

    def live_among(self, ids: Iterable[int]) -> NDArray[np.int64]:
        """List in order those of some ids whose samples are live."""
        query = sa.select(samples.c.id).where(self._own(samples), LIVE)
        parts = (self._ids(query.where(samples.c.id.in_(chunk))) for chunk in chunks(sorted(ids)))
        return np.concatenate([np.empty(0, np.int64), *parts])

    def removed_ids(self) -> NDArray[np.int64]:
        """List the ids of removed samples in order."""
        return self._ids(sa.select(samples.c.id).where(self._own(samples), REMOVED))

    def total(self) -> int:
        """Count all samples, removed ones too."""
        query = sa.select(sa.func.count()).select_from(samples).where(self._own(samples))
        return int(self._connection.execute(query).scalar_one())

    def norms(self, uid: str) -> dict[int, float]:
        """Norms of the rows of a segment when they were made, by id."""
        query = sa.select(samples.c.id, samples.c.norm).select_from(samples.join(segments))
        of_segment = query.where(self._own(samples), segments.c.uid == uid)
        return {row.id: row.norm for row in self._connection.execute(of_segment)}

    def every_sample(self) -> Iterator[tuple[int, StoredSample | str]]:
        """Read every sample, removed ones too, by id; or why one is not what was stored."""
        streamed = {"yield_per": STREAMED_ROWS}
        query = _STORED.where(self._own(samples)).order_by(samples.c.id)
        for rows in self._connection.execute(query, execution_options=streamed).partitions():
            for row, text in zip(rows, self._read(rows), strict=True):
                try:
                    yield row.id, unpack(row, text)
                except BrokenIndexError as error:
                    yield row.id, str(error)

    def unchecked(self) -> int:
        """How many samples have no checksum, as in indexes of the first two formats."""
        query = sa.select(sa.func.count()).where(self._own(samples), samples.c.checksum.is_(None))
        return int(self._connection.execute(query).scalar_one())

    def segment_ids(self, uid: str) -> NDArray[np.int64]:
        """List the ids of the samples of a segment, removed ones too, in order."""
        query = sa.select(samples.c.id).select_from(samples.join(segments))
        return self._ids(query.where(self._own(samples), segments.c.uid == uid))

    def known(self, candidates: Iterable[Sample]) -> dict[str, KnownSample]:
        """What is stored under the keys of samples: a live one, or a removed one of equal content.

        A removed sample of other content does not count; its key is free.
        """
        referenced = self._texts is not None
        return known_samples(self._connection, self._id, candidates, referenced=referenced)

    def live_by_key(self, keys: Iterable[str]) -> dict[str, KnownSample]:
        """What live samples are stored under keys."""
        return live_samples(self._connection, self._id, keys)

    def at_positions(self, source: str, first: int, last: int) -> dict[int, KnownSample]:
        """The live samples from a range of positions of a source whose content is their key."""
        return samples_at(self._connection, self._id, source, first, last)

    def samples(self, ids: Iterable[int] | NDArray[np.int64]) -> dict[int, StoredSample]:
        """Read samples by id, removed ones too; ids that were never given are left out."""
        query = _STORED.where(self._own(samples))
        return {
            stored.id: stored
            for chunk in chunks(int(id_) for id_ in ids)
            for stored in self._stored(query.where(samples.c.id.in_(chunk)))
        }

    def sample(self, name: str) -> StoredSample:
        """Find a sample by its name, see `sample_id`. Raises CatalogError where there is none."""
        id_ = self.sample_id(name)
        stored = self.samples([id_]).get(id_)
        if stored is None or (stored.sample.key != clean_text(name) and _as_id(name) != id_):
            raise BrokenIndexError(
                f"The catalog does not find the sample {name!r} any more: it is damaged. "
                "Run: forvalue check INDEX --repair"
            )
        return stored

    def sample_id(self, name: str) -> int:
        """Find the id of a sample by its name, though what is stored of it be damaged.

        `@3` is the sample numbered 3, anything else a key, a live one first. Digits are a number,
        too, where no sample has digits as its key: what names one sample never names another after
        that one was removed. Raises CatalogError.
        """
        number = _as_id(name)
        if number is None or not name.startswith(NUMBER_MARK):
            id_ = self._latest(samples.c.key == clean_text(name))
            if id_ is not None:
                return id_
            if number is not None and self._has_keys_of_digits():
                raise CatalogError(
                    f"There is no sample with the key {name!r} in the index. Its keys are numbers "
                    f"themselves, so the sample numbered {number} is called {NUMBER_MARK}{number}. "
                    "List them with: forvalue list"
                )
        id_ = None if number is None else self._latest(samples.c.id == number)
        if id_ is None:
            raise CatalogError(
                f"There is no sample with the key or id {name!r} in the index. List them with: "
                "forvalue list"
            )
        return id_

    def _latest(self, match: sa.ColumnElement[bool]) -> int | None:
        """The id of the latest sample that matches, of a live one where there is one."""
        query = sa.select(samples.c.id).where(self._own(samples), match)
        for state in (LIVE, REMOVED):
            latest = query.where(state).order_by(samples.c.id.desc()).limit(1)
            id_ = self._connection.execute(latest).scalar_one_or_none()
            if id_ is not None:
                return int(id_)
        return None

    def _has_keys_of_digits(self) -> bool:
        digits = (sa.func.ltrim(samples.c.key, "0123456789") == "") & (samples.c.key != "")
        return self._latest(digits) is not None

    def list_samples(
        self, where: str | None = None, *, limit: int, offset: int = 0
    ) -> list[StoredSample]:
        """Read live samples in order of id, all or those that meet a condition."""
        # The page's ids first: the database may sort these, never whole rows.
        page = self._filtered(samples.c.id, where)
        # Where an index finds what matches, databases are not to go through all samples in order
        # of id instead, in the hope to find a page of them soon.
        found_by_index = any(_mentions(page, column) for column in _INDEXED)
        page = page.order_by(samples.c.id + 0 if found_by_index else samples.c.id)
        page = page.limit(min(limit, MAX_COUNT)).offset(min(offset, MAX_COUNT)).correlate(None)
        query = _STORED.where(self._own(samples), samples.c.id.in_(page)).order_by(samples.c.id)
        return self._stored(query)

    def count(self, where: str | None = None) -> int:
        """Count live samples, all or those that meet a condition."""
        query = self._filtered(sa.func.count(), where)
        return int(self._connection.execute(query).scalar_one())

    def identities(self, where: str | None = None) -> Iterator[tuple[int, str, str]]:
        """Stream id, key and source of every live sample, or those of a condition, by id."""
        query = sa.select(samples.c.id, samples.c.key, sources.c.name).select_from(_NAMED)
        query = query.where(self._own(samples), LIVE)
        if where is not None:
            query = query.where(
                samples.c.id.in_(self._filtered(samples.c.id, where).correlate(None))
            )
        ordered = query.order_by(samples.c.id)
        streamed = {"yield_per": STREAMED_ROWS}
        for row in self._connection.execute(ordered, execution_options=streamed):
            yield row.id, row.key, row.name

    def label_error_mass(self) -> float | None:
        """The median over live samples, as in the summary."""
        return median_error_mass(self._connection, self._id, self.count())

    def summary(self) -> CatalogSummary:
        """Count and measure what the index holds."""
        return summarise(self._connection, self._id)

    def _stored(self, query: sa.Select[Any]) -> list[StoredSample]:
        rows = self._connection.execute(query).all()
        return [unpack(row, text) for row, text in zip(rows, self._read(rows), strict=True)]

    def _read(self, rows: Sequence[Any]) -> Sequence[Conversation | str]:
        """The texts of rows that only refer to them; nothing for the others."""
        if self._texts is None:
            return [""] * len(rows)
        return self._texts.read(
            [
                Reference(row.path, row.mapping, row.position, row.offset, row.content_hash)
                for row in rows
            ]
        )

    def _source_id(self, name: str) -> int:
        query = sa.select(sources.c.id).where(self._own(sources), sources.c.name == name)
        id_ = self._connection.execute(query).scalar_one_or_none()
        if id_ is None:
            raise CatalogError(
                f"There is no source {name!r} in the index. See them with: forvalue info"
            )
        return int(id_)

    def _ids(self, query: sa.Select[Any]) -> NDArray[np.int64]:
        # Sorted here, so that the database may go through the smallest index; of the driver's own
        # rows, as those of SQLAlchemy take twice as long.
        rows: Any = self._connection.execute(query).cursor
        driver: Any = self._connection.dialect.dbapi
        try:
            return np.sort(np.fromiter(chain.from_iterable(rows), dtype=np.int64))
        except driver.Error as error:
            raise sa.exc.DBAPIError.instance(str(query), None, error, driver.Error) from error

    def _filtered(self, column: Any, where: str | None) -> sa.Select[Any]:
        query = sa.select(column).select_from(samples).where(self._own(samples), LIVE)
        if where is None:
            return query
        # Imported here because few commands take a condition, and sqlglot takes its time.
        from forvalue_index.store.catalog.filters import compile_filter

        query = query.where(compile_filter(where))
        if not _mentions(query, sources.c.name):
            return query  # a join would look up the source of every sample
        return query.where(samples.c.source_id == sources.c.id, self._own(sources))

    def _own(self, table: sa.Table) -> sa.ColumnElement[bool]:
        return table.c.index_id == self._id


def _mentions(query: sa.Select[Any], column: sa.Column[Any]) -> bool:
    return any(part is column for part in iterate(query))


def _as_id(name: str) -> int | None:
    """The id that a name of digits may mean, or one of digits behind the mark of numbers does."""
    digits = name.removeprefix(NUMBER_MARK)
    plain = digits.isascii() and digits.isdecimal() and len(digits) <= len(str(MAX_COUNT))
    return int(digits) if plain and int(digits) <= MAX_COUNT else None
