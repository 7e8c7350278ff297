"""SQLite takes any value in any column: it is named, and never read as something else."""

import shutil
import sqlite3
import zlib
from contextlib import suppress

import pytest
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BrokenIndexError, ForValueError
from forvalue_index.store.catalog import damage
from forvalue_index.store.catalog.schema import metadata
from forvalue_index.store.catalog.sqlite import storage_classes

pytest_plugins = ("tiny",)

VALUES = ["x", b"x", 1.5, 7, None]
KINDS = {str: "text", bytes: "blob", float: "real", int: "integer", type(None): "null"}
# Keys and references, which SQLite itself looks after.
REFERENCES = {"index_id", "segment_id", "source_id"}
# Of many samples at once; these are not looked at one by one.
READ_AT_ONCE = {("samples", name) for name in ("id", "norm", "label_error_mass")}


@pytest.fixture
def path(tmp_path, built_index):
    return shutil.copytree(built_index, tmp_path / "index")


def execute(path, statement, *values):
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        found = connection.execute(statement, values).fetchall()
    connection.close()
    return found


def put(path, table, column, value):
    """Whether one row of a table now holds another value in a column, of another kind."""
    where = f"rowid = (SELECT min(rowid) FROM {table})"
    kind = f'SELECT typeof("{column}") FROM {table} WHERE {where}'
    before = execute(path, kind)
    try:
        execute(path, f'UPDATE {table} SET "{column}" = ? WHERE {where}', value)
    except sqlite3.IntegrityError:
        return False
    after = execute(path, kind)
    allowed = storage_classes(metadata.tables[table].columns[column])
    return before and after != before and after[0][0] not in allowed


@pytest.mark.parametrize("value", VALUES, ids=[KINDS[type(value)] for value in VALUES])
@pytest.mark.parametrize(
    ("table", "column"),
    [
        (table.name, column.name)
        for table in metadata.tables.values()
        for column in table.columns
        if column.name not in REFERENCES and (table.name, column.name) not in READ_AT_ONCE
    ],
)
def test_a_value_of_another_type_is_named(path, table, column, value, thorough):
    if not put(path, table, column, value):
        pytest.skip("the database takes no such value, or it is of the same type")
    with suppress(ForValueError), ValuationIndex.open(path) as opened:
        reads = [opened.info, opened.list_samples, lambda: opened.sample("@0")]
        for read in [*reads, *[lambda: opened.values(rows(2))] * thorough]:
            with suppress(ForValueError):
                read()
        named = [finding.what for finding in opened.check().findings]
        assert any(f"{table}.{column} are other than" in what for what in named), named


def test_a_lost_checksum_is_named(path):
    execute(path, "UPDATE samples SET checksum = NULL WHERE id = 3")
    with ValuationIndex.open(path) as opened:
        assert any("1 samples have lost their checksum" in f.what for f in opened.check().findings)


def test_no_text_fills_the_memory(path, monkeypatch):
    monkeypatch.setattr(damage, "MOST_TEXT_BYTES", 2**20)
    bomb = zlib.compress(bytes(2**21))
    execute(path, "UPDATE samples SET payload = ? WHERE id = 0", bomb)
    execute(path, "UPDATE samples SET payload = ? WHERE id = 1", bomb[:-20])
    with ValuationIndex.open(path) as opened:
        for name in ("@0", "@1"):
            with pytest.raises(BrokenIndexError, match="its text is far too long"):
                opened.sample(name)


def test_a_text_that_is_cut_off_is_damaged(path):
    (payload,) = execute(path, "SELECT payload FROM samples WHERE id = 0")[0]
    execute(path, "UPDATE samples SET payload = ? WHERE id = 0", payload[:-5])
    with (
        ValuationIndex.open(path) as opened,
        pytest.raises(BrokenIndexError, match="its text is cut off"),
    ):
        opened.sample("@0")


@pytest.mark.parametrize("deep", ["[" * 100_000, '{"messages":' * 50_000])
def test_a_text_that_is_nested_too_deep_is_damaged(path, deep):
    content = zlib.compress(deep.encode())
    execute(path, "UPDATE samples SET payload = ? WHERE id = 0", content)
    with ValuationIndex.open(path) as opened, pytest.raises(BrokenIndexError, match="is damaged"):
        opened.sample("@0")


def test_metadata_that_is_nested_too_deep_is_damaged(path):
    execute(path, "UPDATE samples SET metadata = ? WHERE id = 0", "[" * 100_000)
    with ValuationIndex.open(path) as opened, pytest.raises(BrokenIndexError, match="is damaged"):
        opened.list_samples()
