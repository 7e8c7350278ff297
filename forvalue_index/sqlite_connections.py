"""Connections to SQLite files: durable, for many readers, on full and on read-only disks."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL

BUSY_S = 30
# FULL, not NORMAL: in WAL mode NORMAL may lose the last commits in a power cut, and a commit says
# that samples are stored. One commit covers a whole segment, so its fsync costs nothing that shows.
# LIKE distinguishes case, as it does on PostgreSQL.
_PRAGMAS = (
    f"busy_timeout = {1000 * BUSY_S}",
    "journal_mode = WAL",
    "synchronous = FULL",
    "foreign_keys = ON",
    "case_sensitive_like = ON",
    # A catalog may come from a stranger: its views and triggers may call nothing that has effects.
    "trusted_schema = OFF",
    "cell_size_check = ON",
    # All that a commit of one segment changes in the trees of a large catalog, 64 MB at most: with
    # less, pages are written to the log again and again.
    "cache_size = -65536",
    # Pages, 4 KB each: a large commit alone fills more than the default of 1,000, and what several
    # commits change is copied from the log once.
    "wal_autocheckpoint = 20000",
)
# SQLite finds a JSON key only where it is written as it is named, without \\u escapes.
to_json = json.JSONEncoder(ensure_ascii=False).encode
# What SQLite calls it where the file that connections share cannot be made.
NO_SHARED_FILE = "SQLITE_IOERR_SHMSIZE"


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite database; None for another one, or one in memory."""
    in_memory = url.database in (None, "", ":memory:")
    if url.get_backend_name() != "sqlite" or in_memory or "uri" in url.query:
        return None
    return Path(str(url.database))


def sqlite_engine(url: URL) -> sa.Engine:
    """Prepare connections to an SQLite database; none is made yet."""
    path = sqlite_path(url)
    read_only = path is not None and path.is_file() and not os.access(path.parent, os.W_OK)
    if path is not None and read_only and not path.with_name(f"{path.name}-wal").exists():
        # WAL needs a file beside the database. Where none can be made and none is there, nobody
        # else is writing, so the database can be read as it lies.
        address = f"{path.absolute().as_uri()}?immutable=1"
        url = url.set(database=address).update_query_dict({"uri": "true"})
    engine = sa.create_engine(url, json_serializer=to_json)
    event.listen(engine, "do_connect", _connect_sqlite)
    event.listen(engine, "checkin", _let_go)
    event.listen(engine, "begin", _begin)
    return engine


def _connect_sqlite(dialect: sa.Dialect, record: Any, arguments: Any, options: Any) -> Any:
    try:
        return _set_up_sqlite(dialect.connect(*arguments, **options), _PRAGMAS)
    except sqlite3.OperationalError as error:
        if errorname(error) != NO_SHARED_FILE:
            raise
    # The disk is too full for the 32 KB that the connections of WAL share. One that locks out all
    # others needs no such file, and what is stored can still be read.
    record.info["alone"] = True
    alone = ("locking_mode = EXCLUSIVE", *_PRAGMAS)
    return _set_up_sqlite(dialect.connect(*arguments, **options), alone)


def _set_up_sqlite(connection: Any, pragmas: Sequence[str]) -> Any:
    try:
        # The driver's own transaction control leaves SELECT and DDL outside of transactions.
        connection.isolation_level = None
        for pragma in pragmas:
            _execute(connection, f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _execute(connection: Any, statement: str) -> None:
    """Wait for locks that SQLite itself does not wait for: those of a file that becomes WAL."""
    until = time.monotonic() + BUSY_S
    while True:
        try:
            connection.execute(statement).close()
            return
        except sqlite3.OperationalError as error:
            if errorname(error) != "SQLITE_BUSY" or time.monotonic() > until:
                raise
        time.sleep(0.01)


def _let_go(_connection: Any, record: Any) -> None:
    """Close a connection that locks out all others as soon as it is not used."""
    if record.info.get("alone"):
        record.invalidate()


def errorname(error: Any) -> str:
    """SQLite's own name of an error; empty for other databases."""
    return str(getattr(error, "sqlite_errorname", ""))


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN")
