"""An index directory that somebody else made: it runs nothing, and reads nothing outside itself."""

import json
import shutil
import sqlite3

import pytest
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BrokenIndexError, ForValueError, UsageError
from forvalue_index.store.catalog.addresses import refuse_strange_catalog
from forvalue_index.store.manifest import open_catalog

pytest_plugins = ("tiny",)


@pytest.fixture
def path(tmp_path, built_index):
    return shutil.copytree(built_index, tmp_path / "stranger")


def rewrite_catalog(path, statement, *values):
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.parametrize("uid", ["../secret", "/tmp/secret", "..", "", "x" * 32, "A" * 32])
def test_a_segment_that_lies_elsewhere_is_not_read(path, uid):
    segment = sorted((path / "segments").iterdir())[0]
    secret = path.parent / "secret.safetensors"
    shutil.copy(segment, secret)
    rewrite_catalog(path, "UPDATE segments SET uid = ? WHERE id = 1", uid)
    with ValuationIndex.open(path) as opened:
        for read in (lambda: opened.values(rows(2)), lambda: opened.query(rows(2))):
            with pytest.raises(BrokenIndexError, match="leads out of"):
                read()
        assert any("leads out of" in f.what for f in opened.check().findings)
        with pytest.raises(ForValueError):
            opened.compact()
    assert secret.exists()


@pytest.mark.parametrize(
    "name", ["index.json", "sketch.safetensors", "catalog.sqlite", "segments", "rejected"]
)
def test_a_link_that_leads_out_is_refused(path, name):
    outside = path.parent / "outside"
    (path / "rejected").mkdir()
    shutil.move(path / name, outside)
    (path / name).symlink_to(outside)
    with pytest.raises(BrokenIndexError, match=f"{name} is a link that leads out of the index"):
        ValuationIndex.open(path)


def test_a_linked_segment_is_not_read(path):
    segment = sorted((path / "segments").iterdir())[0]
    shutil.move(segment, path.parent / "outside")
    segment.symlink_to(path.parent / "outside")
    with ValuationIndex.open(path) as opened, pytest.raises(BrokenIndexError, match="leads out of"):
        opened.values(rows(2))


def test_a_link_to_the_whole_index_is_fine(path):
    link = path.parent / "link"
    link.symlink_to(path)
    with ValuationIndex.open(link) as opened:
        assert len(opened.values(rows(2)).ids) == 30
        assert opened.check().sound


@pytest.mark.parametrize(
    "address",
    [
        "sqlite:////etc/passwd",
        "sqlite:///other.sqlite",
        "sqlite+pysqlcipher://x/y",
        "mysql://host/name",
        "postgresql://host/name",
        "postgresql+psycopg://host/name?passfile=/etc/passwd",
        "postgresql+psycopg://host/name?service=x",
        "postgresql+psycopg://host/name?sslkey=/etc/ssl/key",
        "postgresql+psycopg://host/name?plugin=evil",
        "/etc/passwd",
    ],
)
def test_a_catalog_elsewhere_is_refused(path, address):
    document = json.loads((path / "index.json").read_text("utf-8"))
    (path / "index.json").write_text(json.dumps(document | {"catalog": address}), "utf-8")
    with pytest.raises(UsageError, match="is not allowed"):
        open_catalog(path)
    with pytest.raises(UsageError, match="is not allowed"):
        ValuationIndex.create(path.parent / "mine", "model", catalog=address)


@pytest.mark.parametrize(
    "address",
    [
        "sqlite",
        "postgresql+psycopg://user@host/name",
        "postgresql+psycopg:///name?host=/run/postgresql&port=5433",
        "postgresql+psycopg://user@host/name?sslmode=require&connect_timeout=5",
    ],
)
def test_plain_addresses_are_allowed(address):
    refuse_strange_catalog(address)


def test_triggers_and_views_call_nothing_with_effects(path):
    """Without the setting, SQLite runs functions of the program from within a stranger's schema."""
    rewrite_catalog(path, "ALTER TABLE samples RENAME TO hidden")
    rewrite_catalog(path, "CREATE VIEW samples AS SELECT *, load_extension('evil') FROM hidden")
    with ValuationIndex.open(path) as opened, pytest.raises(ForValueError):
        opened.list_samples()
