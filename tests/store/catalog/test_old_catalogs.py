"""Catalogs of earlier schemas, full of samples: up, down, and used afterwards."""

import json
import random
import threading
import uuid
import zlib
from datetime import UTC, datetime

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from catalogs import Now, commit, sample, segment

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import (
    _migrating,
    check_schema,
    connect,
    migrate,
    migrations_directory,
)
from forvalue_index.store.catalog.schema import metadata
from forvalue_index.store.records import StoredSample

pytest_plugins = ("databases",)

UIDS = ("first", "second")
SOURCES = ("a.jsonl", "ü.jsonl")
SEGMENTS = ((0, 400), (400, 200), (600, 400))
REMOVED = set(range(5, 1000, 9))


@pytest.fixture
def engine(database_url):
    engine = connect(database_url)
    yield engine
    engine.dispose()


def move(engine, revision):
    """Bring a database to a revision, up or down, as `migrate` does it."""
    config = Config()
    config.set_main_option("script_location", str(migrations_directory()))
    with _migrating(engine) as connection:
        config.attributes["connection"] = connection
        current = MigrationContext.configure(connection).get_current_revision() or ""
        go = command.downgrade if revision == "base" or revision < current else command.upgrade
        go(config, revision)


def old_sample(number):
    chosen = random.Random(number)
    words = " ".join(chosen.choices(["red", "ü", "→ 😀", '"quoted"', "line\nbreak"], k=40))
    extra = {"tool_calls": [{"name": "f", "arguments": {}}]} if number % 50 == 0 else {}
    return Sample(
        (Message("user", f"question {number}", extra), Message("assistant", words)),
        SOURCES[number % 2],
        number + 1,
        None if number % 4 == 0 else f"own-{number}",
        {"topic": ("law", "art")[number % 2], "score": number / 7, "tags": [number, None, "é"]},
    )


def old_row(number, **place):
    one = old_sample(number)
    text = json.dumps([m.as_dict() for m in one.messages], ensure_ascii=False)
    return {
        "id": number,
        "key": one.key,
        "content_hash": one.content_hash,
        "position": one.position,
        "n_tokens": 10 + number,
        "n_label_tokens": 5 + number,
        "truncated": number % 2 == 0,
        "loss": number / 8,
        "label_error_mass": 0.5,
        "norm": 1.0 + number,
        "removed": number in REMOVED,
        "metadata": one.metadata,
        "payload": zlib.compress(text.encode()),
        **place,
    }


def fill_old(engine):
    """Two indexes of 1,000 and 10 samples, written as the first schema has them."""
    move(engine, "0001")
    tables = sa.MetaData()
    tables.reflect(engine)
    tables.tables["samples"].c.metadata.type = sa.JSON()
    now = datetime.now(UTC)

    def insert(connection, name, *rows):
        table = tables.tables[name]
        return [
            connection.execute(sa.insert(table).values(row)).inserted_primary_key[0] for row in rows
        ]

    with engine.begin() as connection:
        for uid, segments in zip(UIDS, (SEGMENTS, ((0, 10),)), strict=True):
            n = sum(n for _, n in segments)
            versions = {"version": len(segments), "next_sample_id": n}
            (index_id,) = insert(
                connection,
                "indexes",
                {"uid": uid, "fingerprint": "print", "created_at": now, **versions},
            )
            mine = {"index_id": index_id}
            source_ids = insert(connection, "sources", *({**mine, "name": s} for s in SOURCES))
            for first, n_rows in segments:
                file = {"uid": f"{uid}-{first}", "first_id": first, "n_rows": n_rows}
                file |= {"n_bytes": n_rows * 100, "sha256": "ab" * 32, "created_at": now}
                (segment_id,) = insert(connection, "segments", mine | file)
                mine_here = mine | {"segment_id": segment_id}
                rows = [
                    old_row(number, **mine_here, source_id=source_ids[number % 2])
                    for number in range(first, first + n_rows)
                ]
                connection.execute(sa.insert(tables.tables["samples"]), rows)


def dump(engine):
    """Every table as it is, schema and rows."""
    tables = sa.MetaData()
    tables.reflect(engine)
    with engine.connect() as connection:
        return {
            name: sorted(map(repr, connection.execute(sa.select(table))))
            for name, table in tables.tables.items()
        }, structure(engine)


def structure(engine):
    inspector = sa.inspect(engine)
    return {
        name: (
            {(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)},
            {index["name"] for index in inspector.get_indexes(name)},
            {unique["name"] for unique in inspector.get_unique_constraints(name)},
            {key["name"] for key in inspector.get_foreign_keys(name)},
        )
        for name in inspector.get_table_names()
    }


def dangling(engine):
    if engine.dialect.name != "sqlite":
        return []
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
        return connection.exec_driver_sql("PRAGMA foreign_key_check").all()


def check_old_content(catalog):
    """All that was written with the first schema."""
    expected_live = [n for n in range(1000) if n not in REMOVED]
    with catalog.snapshot() as snapshot:
        assert snapshot.live_ids().tolist() == expected_live
        assert snapshot.removed_ids().tolist() == sorted(REMOVED)
        assert all(isinstance(found, StoredSample) for _, found in snapshot.every_sample())
        assert [(s.first_id, s.file.n_rows) for s in snapshot.segments()] == list(SEGMENTS)
        stored = snapshot.samples(range(1001))
        assert stored.keys() == set(range(1000))
        for number, found in stored.items():
            assert found.sample == old_sample(number)
            statistics, row = vars(found.statistics), old_row(number)
            assert statistics == {name: row[name] for name in statistics}
            first = max(first for first, _ in SEGMENTS if first <= number)
            assert found.segment == f"first-{first}"
        art = [n for n in expected_live if n % 2]
        assert snapshot.live_ids("metadata.topic = 'art'").tolist() == art
        assert snapshot.live_ids("source = 'ü.jsonl'").tolist() == art
        summary = snapshot.summary()
        assert (summary.samples, summary.removed) == (len(expected_live), len(REMOVED))
        assert summary.stopped == ()
        known = snapshot.known(old_sample(n) for n in range(0, 1000, 3))
        assert {found.id for found in known.values()} == set(range(0, 1000, 3))
        assert {found.id for found in known.values() if found.removed} == {
            n for n in REMOVED if n % 3 == 0
        }


def test_an_old_catalog_full_of_samples_is_read_as_it_was_written(engine, database_url):
    fill_old(engine)
    with pytest.raises(BrokenIndexError, match="forvalue migrate INDEX"):
        Catalog.open(database_url, "first")
    migrate(engine)
    assert dangling(engine) == []
    with Catalog.open(database_url, "first") as catalog:
        check_old_content(catalog)
        assert catalog.complaints() == []
    with Catalog.open(database_url, "second") as catalog:
        assert Now(catalog).count() == 9


def test_an_old_catalog_can_be_changed_once_it_is_migrated(engine, database_url):
    fill_old(engine)
    migrate(engine)
    with Catalog.open(database_url, "first") as catalog:
        catalog.start_run(["new.jsonl"])
        assert commit(catalog, [sample(1, source="new.jsonl", own_id="new")]) == 1000
        assert catalog.remove([0, 1, 1000]) == 3
        again = old_sample(1)
        catalog.restore({1: again})
        catalog.update_metadata({2: {"topic": "war"}})
        assert commit(catalog, [sample(2, own_id="own-5")]) == 1001  # removed in the old catalog
        assert Now(catalog).sample("own-1").sample == again
        assert Now(catalog).live_ids("metadata.topic = 'war'").tolist() == [2]
        assert Now(catalog).sample("own-5").id == 1001
        assert all(isinstance(found, StoredSample) for _, found in Now(catalog).every_sample())
        old = [f"first-{first}" for first, _ in SEGMENTS[:2]]
        live = Now(catalog).live_ids("id < 600")
        catalog.replace_segments(old, segment(len(live)), first_id=0)
        assert Now(catalog).live_ids("id < 600").tolist() == live.tolist()
        assert catalog.complaints() == []
    assert dangling(engine) == []


def test_down_to_the_first_schema_and_up_again_loses_no_sample(engine, database_url):
    fill_old(engine)
    before = dump(engine)
    migrate(engine)
    move(engine, "0001")
    assert dangling(engine) == []
    assert dump(engine) == before
    migrate(engine)
    with Catalog.open(database_url, "first") as catalog:
        check_old_content(catalog)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"render_as_batch": True})
        assert compare_metadata(context, metadata) == []


def test_the_first_schema_has_no_room_for_two_samples_of_one_key(engine, database_url):
    fill_old(engine)
    migrate(engine)
    with Catalog.open(database_url, "first") as catalog:
        commit(catalog, [sample(2, own_id="own-5")])
        before = dump(engine)
        with pytest.raises(sa.exc.IntegrityError):
            move(engine, "0001")
        assert dump(engine) == before
        check_schema(engine)
        assert Now(catalog).sample("own-5").id == 1000
    assert dangling(engine) == []


def test_rows_that_refer_to_nothing_stop_a_migration(tmp_path):
    engine = connect(tmp_path / "catalog.sqlite")
    fill_old(engine)
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
        driver.execute("PRAGMA foreign_keys = OFF")
        driver.execute("DELETE FROM segments WHERE first_id = 400")
        driver.execute("PRAGMA foreign_keys = ON")
    before = dump(engine)
    with pytest.raises(BrokenIndexError, match="refer to nothing"):
        migrate(engine)
    assert dump(engine) == before
    with engine.connect() as connection:
        assert connection.exec_driver_sql("PRAGMA foreign_keys").scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("populated", [False, True])
def test_two_migrations_at_once_both_succeed(engine, database_url, populated):
    if populated:
        fill_old(engine)
    failures, ready = [], threading.Barrier(2)

    def run():
        own = connect(database_url)
        try:
            ready.wait()
            migrate(own)
        except Exception as error:
            failures.append(error)
        finally:
            own.dispose()

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    check_schema(engine)
    if populated:
        with Catalog.open(database_url, "first") as catalog:
            check_old_content(catalog)


def test_two_indexes_created_at_once_in_an_empty_database_are_both_there(database_url):
    uids, failures, ready = [uuid.uuid4().hex for _ in range(2)], [], threading.Barrier(2)

    def run(uid):
        ready.wait()
        try:
            Catalog.create(database_url, uid, "print").close()
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(uid,)) for uid in uids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    for uid in uids:
        with Catalog.open(database_url, uid) as catalog:
            assert Now(catalog).count() == 0
