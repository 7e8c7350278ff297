import os
import uuid

import pytest
import sqlalchemy as sa
from catalogs import UID, Now

from forvalue_index.exceptions import BrokenIndexError, MissingDependencyError, UsageError
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.catalog.schema import samples as samples_table
from forvalue_index.store.records import SegmentRecord


def sample(number):
    return Sample((Message("text", f"document {number}"),), "a.jsonl", number + 1)


def commit(catalog, samples):
    record = SegmentRecord(uuid.uuid4().hex, len(samples), 100, "ab" * 32)
    return catalog.commit_segment(
        record, samples, [SampleStatistics(2, 1, False, 0.5, 0.5, 1.0)] * len(samples)
    )


def test_a_missing_catalog_is_not_created_by_opening(tmp_path):
    path = tmp_path / "catalog.sqlite"
    with pytest.raises(BrokenIndexError, match="is missing"):
        Catalog.open(f"sqlite:///{path}", UID)
    assert not path.exists()


def test_damage_that_shows_only_while_ids_are_read_is_said(tmp_path):
    """A page of an index that comes after the first: its error is the driver's own."""
    path = tmp_path / "catalog.sqlite"
    with Catalog.create(f"sqlite:///{path}", UID, "print") as catalog:
        commit(catalog, [sample(number) for number in range(1500)])
    whole, seen = path.read_bytes(), []
    for start in range(4096, len(whole), 4096):
        path.write_bytes(whole[:start] + b"\xff" * 4096 + whole[start + 4096 :])
        try:
            with Catalog.open(f"sqlite:///{path}", UID) as opened:
                ids = Now(opened).live_ids()
        except BrokenIndexError as error:
            seen.append(str(error))
        else:
            assert ids.tolist() == list(range(1500))
    assert len(seen) > 5
    assert all("is damaged" in said for said in seen)


@pytest.mark.parametrize("act", [Catalog.open, lambda url, uid: Catalog.create(url, uid, "print")])
def test_a_file_that_is_no_database_is_refused(tmp_path, act):
    path = tmp_path / "catalog.sqlite"
    path.write_bytes(b"this is not SQLite " * 1000)
    with pytest.raises(BrokenIndexError, match="not a catalog or is damaged"):
        act(f"sqlite:///{path}", UID)


def test_a_damaged_database_is_reported(tmp_path):
    path = tmp_path / "catalog.sqlite"
    with Catalog.create(f"sqlite:///{path}", UID, "print") as catalog:
        commit(catalog, [sample(n) for n in range(200)])
    content = path.read_bytes()
    path.write_bytes(content[:8192] + b"\xff" * (len(content) - 8192))
    with pytest.raises(BrokenIndexError, match="damaged"):
        Catalog.open(f"sqlite:///{path}", UID)


def test_addresses_that_lead_nowhere_are_explained(tmp_path):
    unreachable = "postgresql+psycopg://me:secret@127.0.0.1:1/none?connect_timeout=2"
    with pytest.raises(CatalogError, match="can be reached") as caught:
        Catalog.open(unreachable, UID)
    assert "secret" not in str(caught.value)
    with pytest.raises(CatalogError, match="unable to open database"):
        Catalog.create(f"sqlite:///{tmp_path / 'missing' / 'x.sqlite'}", UID, "print")
    for bad in ("", "no url", "teradata://x", "postgresql+psycopg://h:port/x"):
        with pytest.raises(UsageError, match="not understood"):
            Catalog.open(bad, UID)


def test_a_missing_driver_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "psycopg", None)
    with pytest.raises(MissingDependencyError, match=r"forvalue-index\[postgres\]"):
        Catalog.open("postgresql+psycopg://h/x", UID)


def test_every_sqlite_connection_is_set_up(tmp_path):
    with Catalog.create(f"sqlite:///{tmp_path / 'c.sqlite'}", UID, "print") as catalog:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        with catalog._engine.connect() as connection:
            values = [connection.exec_driver_sql(f"PRAGMA {name}").scalar() for name in pragmas]
    assert values == ["wal", 2, 1, 30_000]


def test_an_index_in_a_directory_that_cannot_be_written_is_readable(tmp_path, monkeypatch):
    address = tmp_path / "odd %20 name?#" / "catalog.sqlite"
    address.parent.mkdir()
    with Catalog.create(address, UID, "print") as catalog:
        commit(catalog, [sample(0)])
    monkeypatch.setattr(os, "access", lambda _, mode: mode != os.W_OK)
    with Catalog.open(address, UID) as catalog:
        assert Now(catalog).sample("0").sample == sample(0)
        with pytest.raises(CatalogError, match="readonly"):
            catalog.remove([0])
    assert [file.name for file in address.parent.iterdir()] == ["catalog.sqlite"]


def test_readers_see_one_state_within_a_transaction(tmp_path):
    """Without an explicit BEGIN the driver lets two SELECTs see two states."""
    address = f"sqlite:///{tmp_path / 'c.sqlite'}"
    with Catalog.create(address, UID, "print") as catalog:
        commit(catalog, [sample(0)])
        rows = catalog._engine.connect()
        count = sa.select(sa.func.count()).select_from(samples_table)
        assert rows.execute(count).scalar() == 1
        commit(catalog, [sample(1)])
        assert rows.execute(count).scalar() == 1
        rows.close()
        assert Now(catalog).count() == 2
