import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from migrating import configuration

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.store.catalog.database import (
    check_schema,
    connect,
    migrate,
)
from forvalue_index.store.catalog.schema import REVISIONS, metadata

pytest_plugins = ("databases",)


@pytest.fixture
def engine(database_url):
    engine = connect(database_url)
    yield engine
    engine.dispose()


def test_the_migrations_make_the_tables_that_the_code_declares(engine):
    migrate(engine)
    with engine.connect() as connection:
        options = {"render_as_batch": True, "compare_server_default": True}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_constraints_have_the_names_of_the_convention(engine):
    migrate(engine)
    inspector = sa.inspect(engine)
    for table in metadata.sorted_tables:
        assert inspector.get_pk_constraint(table.name)["name"] == table.primary_key.name
        foreign = {key["name"] for key in inspector.get_foreign_keys(table.name)}
        assert foreign == {key.name for key in table.foreign_key_constraints}
        unique = {key["name"] for key in inspector.get_unique_constraints(table.name)}
        declared = (c for c in table.constraints if isinstance(c, sa.UniqueConstraint))
        assert unique == {key.name for key in declared}


def test_downgrading_to_nothing_leaves_nothing(engine):
    migrate(engine)
    with engine.begin() as connection:
        command.downgrade(configuration(connection), "base")
    assert sa.inspect(engine).get_table_names() == ["alembic_version"]
    migrate(engine)
    check_schema(engine)


def test_migrating_twice_changes_nothing(engine):
    migrate(engine)
    migrate(engine)
    check_schema(engine)


def test_the_listed_revisions_are_those_of_the_migrations():
    scripts = ScriptDirectory.from_config(configuration())
    assert tuple(reversed([s.revision for s in scripts.walk_revisions()])) == REVISIONS


def test_a_failed_migration_leaves_nothing(engine, monkeypatch):
    """SQLite's driver commits DDL by itself unless transactions are begun explicitly."""
    monkeypatch.setattr("alembic.op.create_index", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        migrate(engine)
    assert sa.inspect(engine).get_table_names() == []


@pytest.mark.parametrize("act", [migrate, check_schema])
def test_a_schema_from_the_future_is_refused(engine, act):
    migrate(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(BrokenIndexError, match=r"9999.*newer than 0002.*pip install --upgrade"):
        act(engine)


def test_an_old_schema_is_named_together_with_the_current_one(engine):
    with engine.begin() as connection:
        command.upgrade(configuration(connection), "0001")
    with pytest.raises(BrokenIndexError, match=r"schema 0001.*uses 0002.*forvalue migrate INDEX"):
        check_schema(engine)


def test_a_database_without_a_schema_is_refused(engine):
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE other (id INTEGER)")
    with pytest.raises(BrokenIndexError, match="no catalog of an index"):
        check_schema(engine)


def test_migrations_need_a_connection():
    with pytest.raises(SystemExit, match=r"forvalue_index\.store\.catalog\.database\.migrate"):
        command.upgrade(configuration(), "head")
