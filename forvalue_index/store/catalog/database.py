"""Connections to the catalog's database, and the state of its schema.

SQLite lives inside an index directory, PostgreSQL is for teams. Both are opened here and nowhere
else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from traceback import walk_tb
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import URL, make_url

from forvalue_index.exceptions import (
    BrokenIndexError,
    ForValueError,
    UsageError,
    missing_extra,
)
from forvalue_index.store.catalog.schema import REVISIONS, indexes, runs, segments, sources
from forvalue_index.store.catalog.sqlite import (
    NO_SHARED_FILE,
    as_it_lies,
    errorname,
    log_of,
    sqlite_engine,
    sqlite_path,
    strange_objects,
    to_json,
    values_of_other_types,
)
from forvalue_index.store.permissions import is_unreadable

_MIGRATION_LOCK = 0x666F7276  # any number that nobody else takes
_DAMAGED = ("not a database", "malformed", "disk image")
_FULL = ("disk is full", "No space left")


class CatalogError(ForValueError):
    """The catalog's database cannot be reached, or refuses a change."""


class NoRoomError(CatalogError):
    """The catalog's disk is full, and nothing has changed."""


def connect(address: str | Path) -> sa.Engine:
    """Prepare connections to an SQLite file or to the database of a URL; none is made yet.

    Raises MissingDependencyError where the driver is not installed, UsageError for a bad URL.
    """
    try:
        if isinstance(address, Path):
            # A URL would give some characters of a path another meaning.
            return sqlite_engine(URL.create("sqlite", database=str(address)))
        parsed = make_url(address)
        if parsed.get_backend_name() == "sqlite":
            return sqlite_engine(parsed)
        return sa.create_engine(parsed, pool_pre_ping=True, json_serializer=to_json)
    except ModuleNotFoundError as error:
        need = f"The catalog needs the module {error.name}, which is not installed. Run:"
        raise missing_extra(need, "postgres") from error
    except (sa.exc.ArgumentError, ValueError) as error:
        shown = str(address).rpartition("@")[2]
        raise UsageError(
            f"The catalog's address …{shown} is not understood ({error}). Write "
            "sqlite:////path/catalog.sqlite or postgresql+psycopg://user@host/database"
        ) from error


def describe(engine: sa.Engine) -> str:
    """Name the database in messages, without a password."""
    path = sqlite_path(engine.url)
    return str(path) if path is not None else engine.url.render_as_string(hide_password=True)


def migrate(engine: sa.Engine) -> None:
    """Bring the schema to this version's; an empty database gets all of it."""
    # Imported here because only creating and migrating need it, and it takes a tenth of a second.
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(migrations_directory()).replace("%", "%%"))
    with translated_errors(engine), _migrating(engine) as connection:
        _refuse_newer(engine, _revision(connection))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def upgrade(address: str | Path) -> tuple[str, str]:
    """Migrate a catalog that is there; returns the schema's revision before and after."""
    engine = connect(address)
    try:
        before = _stored_revision(engine)
        if before is None:
            raise BrokenIndexError(
                f"{describe(engine)} is no catalog of an index. Give the database that the index "
                "was created with"
            )
        migrate(engine)
        return before, REVISIONS[-1]
    finally:
        engine.dispose()


@contextmanager
def _migrating(engine: sa.Engine) -> Iterator[sa.Connection]:
    """One transaction that a second migration waits for."""
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            lock = sa.select(sa.func.pg_advisory_xact_lock(_MIGRATION_LOCK))
            with connection.begin():
                connection.execute(lock)
                yield connection
            return
        # SQLite changes a table by making it anew, and the rows that refer to it must not mind.
        # A transaction cannot change that, so it is told to the driver before one begins.
        driver: Any = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys = OFF").close()
        try:
            with connection.begin():
                connection.exec_driver_sql("PRAGMA user_version = 0")  # a write, which locks
                yield connection
                broken = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
                if broken:
                    raise BrokenIndexError(
                        f"{describe(engine)} has rows that refer to nothing ({broken[0]}), so it "
                        "was not migrated and is as it was. Restore it from a backup"
                    )
        finally:
            driver.execute("PRAGMA foreign_keys = ON").close()


def snapshots_of(engine: sa.Engine) -> sa.Engine:
    """The same database, for transactions that read one state of it. SQLite's all do."""
    if engine.dialect.name != "postgresql":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ", postgresql_readonly=True)


def migrations_directory() -> Path:
    """Find the migrations: within the package where installed, beside it in a checkout."""
    package = Path(__file__).parents[2]
    installed = package / "_migrations"
    return installed if installed.is_dir() else package.parent / "migrations"


def check_schema(engine: sa.Engine) -> None:
    """Raise BrokenIndexError unless the schema is the one that this version reads and writes."""
    revision = _stored_revision(engine)
    _refuse_newer(engine, revision)
    if revision == REVISIONS[-1]:
        _refuse_other_types(engine)
    else:
        raise BrokenIndexError(
            f"{describe(engine)} has schema {revision or 'none'}, this version of forvalue-index "
            f"uses {REVISIONS[-1]}. "
            + ("Run: forvalue migrate INDEX" if revision else "It is no catalog of an index")
        )


def _refuse_other_types(engine: sa.Engine) -> None:
    """Raise BrokenIndexError where SQLite holds values of other types, those of samples aside."""
    if engine.dialect.name != "sqlite":
        return
    wrong: list[str] = []
    with suppress(BrokenIndexError), reading(engine) as connection:  # what reads it, names it
        wrong += values_of_other_types(connection, (indexes, sources, runs, segments))
    if wrong:
        cure = "Restore it from a backup, or create the index anew"
        raise BrokenIndexError(f"{describe(engine)} is damaged: {wrong[0]}. {cure}")


def complaints_of(engine: sa.Engine) -> list[str]:
    """What SQLite finds wrong with a database. PostgreSQL checks its pages whenever it reads."""
    if engine.dialect.name != "sqlite":
        return []
    try:
        with reading(engine) as connection:
            broken = connection.exec_driver_sql("PRAGMA integrity_check(20)").scalars().all()
            dangling = connection.exec_driver_sql("PRAGMA foreign_key_check").all()
            others = list(values_of_other_types(connection))
    except BrokenIndexError as error:
        return [str(error)]
    name = describe(engine)
    complaints = [f"{name}: {line}" for line in [*broken, *others] if line != "ok"]
    return complaints + [f"{name}: row {row[1]} of {row[0]} has no {row[2]}" for row in dangling]


def rebuild_trees(engine: sa.Engine) -> None:
    """Build the index trees of an SQLite database anew from its tables."""
    if engine.dialect.name == "sqlite":
        with translated_errors(engine), engine.begin() as connection:
            connection.exec_driver_sql("REINDEX")


@contextmanager
def reading(engine: sa.Engine) -> Iterator[sa.Connection]:
    """A connection to read one state. Raises CatalogError where it may have read of two."""
    with translated_errors(engine), _connection(snapshots_of(engine)) as connection:
        unlocked = as_it_lies(connection)
        if unlocked is None:
            yield connection
            return
        overtaken = CatalogError(
            f"{unlocked.path} was written to by another user while it was read, which cannot be "
            "followed without the right to write in its directory. Run the same again"
        )
        try:
            yield connection
        except OSError:
            raise
        except Exception as error:
            # Whatever a torn state leads to.
            if unlocked.changed():
                raise overtaken from error
            raise
        if unlocked.changed():
            raise overtaken


@contextmanager
def translated_errors(engine: sa.Engine) -> Iterator[None]:
    """Turn the database's errors into ours; what the caller understands better passes through."""
    try:
        yield
    except sa.exc.IntegrityError:
        raise
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        if not _is_of_conversion(error):
            raise
        raise BrokenIndexError(
            f"{describe(engine)} is damaged ({error}). Run: forvalue check INDEX, which names what "
            "is; or restore it from a backup"
        ) from error
    except sa.exc.DBAPIError as error:
        raise _translated(engine, error) from error


def _is_of_conversion(error: Exception) -> bool:
    """Whether it was raised where the library makes Python's values of those of a database."""
    frames = walk_tb(error.__traceback__)
    return any(f.f_globals.get("__name__", "").startswith("sqlalchemy.") for f, _ in frames)


def _translated(engine: sa.Engine, error: sa.exc.DBAPIError) -> ForValueError:
    """What a database's own error means, and what to do about it."""
    name, reason = describe(engine), str(error.orig).strip()
    path = sqlite_path(engine.url)
    for file in () if path is None else (path, log_of(path)):
        if is_unreadable(file):
            return CatalogError(
                f"{file} cannot be read for lack of permission. Have its owner give you the "
                "right to read it"
            )
    if any(sign in reason for sign in _DAMAGED):
        return BrokenIndexError(
            f"{name} is not a catalog or is damaged ({reason}). Restore it from a backup, or "
            "create the index anew"
        )
    no_room = (
        f"{name} has no room to write ({reason}). Make room on its disk, then run the same again"
    )
    if any(sign in reason for sign in _FULL):
        return NoRoomError(no_room)
    if errorname(error.orig) == NO_SHARED_FILE:
        # No NoRoomError: a commit may be in the log already.
        return CatalogError(no_room)
    return CatalogError(
        f"{name} does not do what was asked ({reason}). See that the database can be reached "
        "and written to and is not locked, then run the same again"
    )


def _connection(engine: sa.Engine) -> sa.Connection:
    connection = engine.connect()
    unlocked = as_it_lies(connection)
    if unlocked is None or not unlocked.changed():
        return connection
    # It was kept from before the change.
    connection.invalidate()
    connection.close()
    return engine.connect()


def _stored_revision(engine: sa.Engine) -> str | None:
    path = sqlite_path(engine.url)
    if path is not None and not path.is_file():
        raise BrokenIndexError(
            f"{path} is missing, and it is the catalog of the index. Restore it from a backup, "
            "or create the index anew"
        )
    with reading(engine) as connection:
        strange = strange_objects(connection)
        if strange:
            raise BrokenIndexError(
                f"{describe(engine)} holds {strange[0]}, so it is no catalog of an index, or a "
                "changed one, and is not read. Restore it from a backup, or create the index anew"
            )
        return _revision(connection)


def _revision(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    revision: str | None = connection.scalar(sa.text("SELECT version_num FROM alembic_version"))
    return revision


def _refuse_newer(engine: sa.Engine, revision: str | None) -> None:
    if revision is not None and revision not in REVISIONS:
        raise BrokenIndexError(
            f"{describe(engine)} has schema {revision}, which is newer than {REVISIONS[-1]}, the "
            "last one this version knows. Run: pip install --upgrade forvalue-index"
        )
