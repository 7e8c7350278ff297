"""Which rows of one `add` repeat an earlier one: its keys, on disk where memory would not do."""

from __future__ import annotations

import hashlib
import sqlite3

from forvalue_index.records import Sample

DIGEST_BYTES = 16


class Repeats:
    """The samples read so far, by key. A private database that vanishes with this object."""

    def __init__(self) -> None:
        # Without a name, SQLite keeps it in memory until it outgrows the cache.
        self._database = sqlite3.connect("", isolation_level=None)
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
        row = self._database.execute(query, (_digest(key),)).fetchone()
        return None if row is None else str(row[0])

    def note(self, sample: Sample) -> None:
        """Remember a sample, unless its key is known."""
        row = (_digest(sample.key), sample.content_hash)
        self._database.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", row)


def _digest(key: str) -> bytes:
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()
