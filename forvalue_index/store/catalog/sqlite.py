"""Connections to SQLite files: durable, for many readers, on full and on read-only disks."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.engine import URL

from forvalue_index.store.catalog.schema import metadata
from forvalue_index.store.permissions import is_unreadable

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
# SQLite finds a JSON key only where it is written as it is named, without \u escapes.
to_json = json.JSONEncoder(ensure_ascii=False).encode
# A collation: texts that are numbers, or lists of JSON that begin with one, by their values.
BY_DECIMALS = "forvalue_decimal"
# What SQLite calls it where the file that connections share cannot be made.
NO_SHARED_FILE = "SQLITE_IOERR_SHMSIZE"
# Where the writer opens or closes the catalog, its log is there and what belongs to it is not.
UNSETTLED_S = 1.0
# Why a log is not copied now, and may be later.
_POSTPONED = ("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_FULL", NO_SHARED_FILE)
_EMPTY_LOG = "PRAGMA wal_checkpoint(TRUNCATE)"
_UNSETTLED = ("SQLITE_CANTOPEN", "SQLITE_READONLY")
_AS_IT_LIES = "as it lies"


class AsItLies(NamedTuple):
    """A file that is read without locks, and its state when it was opened."""

    path: Path
    state: tuple[int, ...]

    def changed(self) -> bool:
        """Whether anybody has written to it since: what was read of it may be torn."""
        # A log without content is that of somebody who only reads.
        return _state(self.path) != self.state or _log_size(self.path) > 0


def sqlite_path(url: URL) -> Path | None:
    """The file of an SQLite database; None for another one, or one in memory."""
    in_memory = url.database in (None, "", ":memory:")
    if url.get_backend_name() != "sqlite" or in_memory or "uri" in url.query:
        return None
    return Path(str(url.database))


def sqlite_engine(url: URL) -> sa.Engine:
    """Prepare connections to an SQLite database; none is made yet."""
    path = sqlite_path(url)
    engine = sa.create_engine(url, json_serializer=to_json)

    def do_connect(dialect: sa.Dialect, record: Any, arguments: Any, options: Any) -> Any:
        if path is not None and path.is_file() and not os.access(path.parent, os.W_OK):
            return _connect_read_only(path, dialect, record, arguments, options)
        return _connect_sqlite(dialect, record, arguments, options)

    event.listen(engine, "do_connect", do_connect)
    event.listen(engine, "checkin", _let_go)
    event.listen(engine, "begin", _begin)
    return engine


def copy_log(engine: sa.Engine) -> None:
    """Copy what was committed from an SQLite database's log to the database, and empty the log.

    A log that is damaged or lost loses nothing then. Where somebody reads an older state, or the
    disk is full, the log stays until a later call; nobody waits.
    """
    if engine.dialect.name != "sqlite":
        return
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        _execute(driver, "PRAGMA busy_timeout = 0")
        try:
            driver.execute(_EMPTY_LOG).close()
        except sqlite3.OperationalError as error:
            if not errorname(error).startswith(_POSTPONED):
                raise sa.exc.OperationalError(_EMPTY_LOG, {}, error) from error
        finally:
            _execute(driver, f"PRAGMA busy_timeout = {1000 * BUSY_S}")


def strange_objects(connection: sa.Connection) -> list[str]:
    """What an SQLite database holds besides the tables of a catalog and their indexes.

    A catalog may come from a stranger, and a view or trigger in it may run for ever.
    """
    if connection.dialect.name != "sqlite":
        return []
    listing = sa.text("SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY name")
    own = {*metadata.tables, "alembic_version"}
    strange = []
    for kind, name, table, sql in connection.execute(listing):
        is_table = kind == "table" and str(sql).startswith("CREATE TABLE")
        internal = kind in ("table", "index") and str(name).startswith("sqlite_")
        if not (internal or (table in own and (is_table or kind == "index"))):
            strange.append(f"the {kind} {name}")
    return strange


def values_of_other_types(
    connection: sa.Connection, tables: Iterable[sa.Table] = metadata.tables.values()
) -> Iterator[str]:
    """What is wrong with the types of values: SQLite takes any value in any column."""
    for table in tables:
        allowed = {column.name: storage_classes(column) for column in table.columns}
        wrong = {
            name: f"typeof({table.name}.{quoted(name)}) NOT IN ({', '.join(map(repr, classes))})"
            for name, classes in allowed.items()
        }
        counts = ", ".join(f"total({condition})" for condition in wrong.values())
        found = connection.exec_driver_sql(f"SELECT {counts} FROM {table.name}").one()
        for name, count in zip(wrong, found, strict=True):
            if count:
                expected = " or ".join(allowed[name])
                yield f"{count:,.0f} values of {table.name}.{name} are other than {expected}"


def storage_classes(column: sa.Column[Any]) -> list[str]:
    """What SQLite may hold in a column."""
    kinds = {sa.Integer: "integer", sa.Boolean: "integer", sa.Float: "real", sa.LargeBinary: "blob"}
    found = next((own for kind, own in kinds.items() if isinstance(column.type, kind)), "text")
    return [found, "null"] if column.nullable else [found]


def quoted(name: str) -> str:
    """A name as SQL has it."""
    return f'"{name}"'


def as_it_lies(connection: sa.Connection) -> AsItLies | None:
    """What a connection reads without locks, if it does."""
    lies: AsItLies | None = connection.info.get(_AS_IT_LIES)
    return lies


def log_of(path: Path) -> Path:
    """The log of a database in WAL mode."""
    return path.with_name(f"{path.name}-wal")


def _log_size(path: Path) -> int:
    """Bytes in a database's log; -1 where there is none."""
    try:
        return log_of(path).stat().st_size
    except OSError:
        return -1


def _state(path: Path) -> tuple[int, ...]:
    try:
        stat = path.stat()
    except OSError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _connect_read_only(
    path: Path, dialect: sa.Dialect, record: Any, arguments: Any, options: Any
) -> Any:
    """Connect where no file can be made beside the database.

    WAL needs one. Where there is none, nobody is writing now, so the database can be read as it
    lies, without locks. Others may begin to write at any time: whoever reads asks `changed`.
    """
    until = time.monotonic() + UNSETTLED_S
    while True:
        state = _state(path)  # before the log is looked for: a change after it shows
        try:
            if _log_size(path) >= 0:
                return _connect_sqlite(dialect, record, arguments, options)
            address = f"{path.absolute().as_uri()}?immutable=1"
            connection = dialect.connect(address, **{**options, "uri": True})
            record.info[_AS_IT_LIES] = AsItLies(path, state)
            return _set_up_sqlite(connection, _PRAGMAS)
        except sqlite3.DatabaseError as error:
            record.info.pop(_AS_IT_LIES, None)
            settled = not errorname(error).startswith(_UNSETTLED) and _state(path) == state
            if settled or time.monotonic() > until or is_unreadable(path):
                raise
        time.sleep(0.01)


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
        connection.create_collation(BY_DECIMALS, _by_decimals)
        for pragma in pragmas:
            _execute(connection, f"PRAGMA {pragma}")
    except BaseException:
        connection.close()
        raise
    return connection


def _by_decimals(one: str, other: str) -> int:
    """Compare exactly, however many digits there are: -1, 0 or 1."""
    left, right = (Decimal(text.lstrip("[").partition(",")[0]) for text in (one, other))
    return (left > right) - (left < right)


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
