"""Which rows of one `add` repeat an earlier one: its keys, on disk where memory would not do.

What rows say of samples that are there already is kept here, too, until all are read: the last of
several rows counts, and a sample is not given what a later row takes back.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from forvalue_index.exceptions import ForValueError
from forvalue_index.ingest.tally import Repeat
from forvalue_index.sources.sample import Sample
from forvalue_index.store.catalog.sample_rows import CHUNK, clean_metadata, compared

DIGEST_BYTES = 16
# Of a metadata key, and of the value under it.
NAME_BYTES, VALUE_BYTES = 4, 8
_TABLES = (
    "CREATE TABLE seen (key BLOB PRIMARY KEY, content TEXT NOT NULL, source INTEGER NOT NULL, "
    "position INTEGER NOT NULL, marks BLOB NOT NULL, was_known INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE new_metadata (key TEXT PRIMARY KEY, metadata TEXT NOT NULL, "
    "was_known INTEGER NOT NULL) WITHOUT ROWID",
)


class NewMetadata(NamedTuple):
    """What rows say of the sample of a key, and whether the index held it before this `add`."""

    key: str
    metadata: dict[str, Any]
    was_known: bool


class SeenKeys:
    """The samples read so far, by key. A private database that vanishes with this object."""

    def __init__(self) -> None:
        # Without a name, SQLite keeps it in memory until it outgrows the cache.
        # Not bound to this thread, as rows may be read by another one.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for table in _TABLES:
            self._database.execute(table)
        self._database.execute("BEGIN")
        self._sources: dict[str, int] = {}

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def content_of(self, key: str) -> str | None:
        """The content hash that the sample of this key came with first, None for a new key."""
        query = "SELECT content FROM seen WHERE key = ?"
        row = self._run(query, _digest(key)).fetchone()
        return None if row is None else str(row[0])

    def note(self, sample: Sample, *, was_known: bool = False) -> None:
        """Remember a sample, unless its key is known.

        `was_known` says that new metadata of it is an update of what the index held before.
        """
        source = self._sources.setdefault(sample.source, len(self._sources))
        marks = b"".join(_marks(clean_metadata(sample.metadata)).values())
        self._run(
            "INSERT OR IGNORE INTO seen VALUES (?, ?, ?, ?, ?, ?)",
            *(_digest(sample.key), sample.content_hash, source, sample.position, marks, was_known),
        )

    def repeat(self, sample: Sample) -> Repeat:
        """The earlier row that a sample repeats, and what of its metadata is other or new.

        That is kept for `new_metadata`.
        """
        query = "SELECT source, position, marks, was_known FROM seen WHERE key = ?"
        key = _digest(sample.key)
        source, position, stored_marks, was_known = self._run(query, key).fetchone()
        first = f"{list(self._sources)[source]}:{position}"
        metadata = clean_metadata(sample.metadata)
        marks, before = _marks(metadata), _by_name(stored_marks)
        changed = {name: metadata[name] for name in metadata if marks[name] not in before.values()}
        if changed:
            after = before | _by_name(b"".join(marks.values()))
            self._run("UPDATE seen SET marks = ? WHERE key = ?", b"".join(after.values()), key)
            self.keep_metadata(sample.key, changed, was_known=bool(was_known))
        return Repeat(f"{sample.source}:{sample.position}", first, changed)

    def keep_metadata(self, key: str, metadata: Mapping[str, Any], *, was_known: bool) -> None:
        """Keep what a row says of a sample beside what earlier rows said; of one name this."""
        query = "SELECT metadata FROM new_metadata WHERE key = ?"
        row = self._run(query, key).fetchone()
        merged = {**(json.loads(row[0]) if row else {}), **metadata}
        self._run(
            "INSERT OR REPLACE INTO new_metadata VALUES (?, ?, ?)",
            *(key, json.dumps(merged), was_known),
        )

    def new_metadata(self) -> Iterator[list[NewMetadata]]:
        """What was kept, in lists that fit into one statement, in order of the keys."""
        rows = self._run("SELECT key, metadata, was_known FROM new_metadata ORDER BY key")
        while chunk := rows.fetchmany(CHUNK):
            yield [NewMetadata(key, json.loads(kept), bool(known)) for key, kept, known in chunk]

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise ForValueError(
                f"The keys of the rows read so far cannot be kept in a temporary file ({error}). "
                "Make room for it, or set SQLITE_TMPDIR to a directory that has room"
            ) from error


def _digest(text: str, size: int = DIGEST_BYTES) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=size).digest()


def _marks(metadata: Mapping[str, Any]) -> dict[str, bytes]:
    """Name -> digests of the name and the value: a few bytes for each, however long it is."""
    return {
        name: _digest(name, NAME_BYTES) + _digest(compared(value), VALUE_BYTES)
        for name, value in metadata.items()
    }


def _by_name(marks: bytes) -> dict[bytes, bytes]:
    size = NAME_BYTES + VALUE_BYTES
    every = (marks[start : start + size] for start in range(0, len(marks), size))
    return {mark[:NAME_BYTES]: mark for mark in every}
