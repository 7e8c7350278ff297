"""Which rows of one `add` repeat an earlier one: its keys, on disk where memory would not do."""

from __future__ import annotations

import hashlib
import sqlite3
from typing import Any

from forvalue_index.exceptions import ForValueError
from forvalue_index.sources.sample import Sample

DIGEST_BYTES = 16


class SeenKeys:
    """The samples read so far, by key. A private database that vanishes with this object."""

    def __init__(self) -> None:
        # Without a name, SQLite keeps it in memory until it outgrows the cache.
        # Not bound to this thread, as rows may be read by another one.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute(
            "CREATE TABLE seen (key BLOB PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID"
        )
        self._database.execute("BEGIN")

    def close(self) -> None:
        """Forget everything."""
        self._database.close()

    def content_of(self, key: str) -> str | None:
        """The content hash that the sample of this key came with first, None for a new key."""
        query = "SELECT content FROM seen WHERE key = ?"
        row = self._run(query, _digest(key)).fetchone()
        return None if row is None else str(row[0])

    def note(self, sample: Sample) -> None:
        """Remember a sample, unless its key is known."""
        insert = "INSERT OR IGNORE INTO seen VALUES (?, ?)"
        self._run(insert, _digest(sample.key), sample.content_hash)

    def _run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        try:
            return self._database.execute(statement, values)
        except sqlite3.OperationalError as error:
            raise ForValueError(
                f"The keys of the rows read so far cannot be kept in a temporary file ({error}). "
                "Make room for it, or set SQLITE_TMPDIR to a directory that has room"
            ) from error


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
