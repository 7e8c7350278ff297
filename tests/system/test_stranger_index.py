"""An index directory that somebody else made: it runs nothing, and reads nothing outside itself."""

import json
import os
import shutil
import sqlite3

import numpy as np
import pytest
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.lds import subset_losses
from forvalue_index.exceptions import BrokenIndexError, ForValueError, UsageError
from forvalue_index.search.code_files import CodeFiles, Tuned
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


def test_no_view_of_a_strangers_schema_is_read(path):
    """It may call functions of the program, or run for ever."""
    rewrite_catalog(path, "ALTER TABLE samples RENAME TO hidden")
    rewrite_catalog(path, "CREATE VIEW samples AS SELECT *, load_extension('evil') FROM hidden")
    with pytest.raises(BrokenIndexError, match="the table hidden, so it is no catalog"):
        ValuationIndex.open(path)


TABLES = ["index.json", "sketch.safetensors", "calibration.safetensors", "writer.lock"]
CATALOG = [f"catalog.sqlite{suffix}" for suffix in ("", "-wal", "-shm", "-journal")]


@pytest.mark.parametrize("name", [*TABLES, *CATALOG])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(path, name):
    (path / name).unlink(missing_ok=True)
    os.mkfifo(path / name)
    with pytest.raises(BrokenIndexError, match=f"{name} is no file; "):
        ValuationIndex.open(path)


@pytest.mark.parametrize("name", ["segments", "media", "rejected", "lds"])
def test_a_file_in_place_of_a_directory_is_named(path, name):
    shutil.rmtree(path / name, ignore_errors=True)
    (path / name).write_text("no directory")
    with pytest.raises(BrokenIndexError, match=f"{name} is no directory; "):
        ValuationIndex.open(path)


@pytest.mark.parametrize("name", ["writer.lock", "lds", "catalog.sqlite-wal"])
def test_nothing_is_written_through_a_link(path, name):
    """The lock was emptied and written to, whatever it was a link to."""
    mine = path.parent / "mine"
    mine.write_text("mine")
    (path / name).unlink(missing_ok=True)
    (path / name).symlink_to(mine)
    with pytest.raises(BrokenIndexError, match=f"{name} is a link that leads out of the index"):
        ValuationIndex.open(path)
    assert mine.read_text() == "mine"


def test_no_index_is_created_through_links(tmp_path, model_dir):
    (tmp_path / "outside").mkdir()
    (tmp_path / "index").mkdir()
    (tmp_path / "index" / "segments").symlink_to(tmp_path / "outside")
    with pytest.raises(BrokenIndexError, match="segments is a link that leads out of the index"):
        ValuationIndex.create(tmp_path / "index", str(model_dir))
    assert [*(tmp_path / "outside").iterdir()] == []


def test_links_under_names_of_half_written_files_are_left_alone(path):
    """They were followed, and what they led to was written over."""
    mine = path.parent / "mine"
    mine.write_text("mine")
    names = [*TABLES, "search/raw/rabitq/tuned.json", "lds/run.json"]
    links = [path / f"{name}.partial" for name in names]
    for link in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(mine)
    with ValuationIndex.open(path) as opened:
        opened.add(rows(3, prefix="new"))
        assert opened.check(repair=True).sound
        subset_losses(path / "lds", np.ones((1, 2), bool), lambda *_: np.zeros(1), run={})
    CodeFiles(path / "search", "raw", "rabitq").keep_tuned(Tuned(rows=1))
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("object_", "said"),
    [
        ("CREATE VIEW strange AS SELECT 1", "the view strange"),
        (
            "CREATE TRIGGER strange AFTER UPDATE ON indexes BEGIN DELETE FROM samples; END",
            "the trigger strange",
        ),
        ("CREATE TABLE strange (x)", "the table strange"),
        ("CREATE VIRTUAL TABLE strange USING fts5(x)", "the table strange"),
    ],
)
def test_what_no_catalog_has_is_refused(path, object_, said):
    rewrite_catalog(path, object_)
    with pytest.raises(BrokenIndexError, match=f"holds {said}.*, so it is no catalog"):
        ValuationIndex.open(path)


@pytest.mark.parametrize("table", ["indexes", "alembic_version"])
def test_a_view_that_runs_for_ever_is_not_read(path, table):
    endless = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x FROM n) SELECT * FROM n"
    rewrite_catalog(path, f"ALTER TABLE {table} RENAME TO was")
    rewrite_catalog(path, f"CREATE VIEW {table} AS {endless}")
    with pytest.raises(BrokenIndexError, match="so it is no catalog of an index"):
        ValuationIndex.open(path)


def changed_manifest(path, change):
    document = json.loads((path / "index.json").read_text())
    change(document)
    (path / "index.json").write_text(json.dumps(document))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d["settings"].update(geometry=5),
        lambda d: d["settings"].update(model=["a"]),
        lambda d: d["settings"].update(dim="4096"),
        lambda d: d["settings"].update(dim=4096.0),
        lambda d: d["settings"].update(seed=None),
        lambda d: d["settings"].update(trust_remote_code="no"),
        lambda d: d["settings"].update(max_length=True),
        lambda d: d["settings"].update(unknown=1),
        lambda d: d["model"].update(vocab_size="x"),
        lambda d: d["model"].update(hidden_size=None),
        lambda d: d.update(format_version=1e999),
        lambda d: d.update(format_version=[4]),
        lambda d: d.update(settings=None),
        lambda d: d.pop("model"),
    ],
)
def test_a_value_of_another_type_is_damage(path, change):
    changed_manifest(path, change)
    with pytest.raises(BrokenIndexError, match=r"index\.json is damaged"):
        ValuationIndex.open(path)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "1", "", "{", '{"a":' * 100_000])
def test_a_manifest_that_is_none_is_damage(path, text):
    (path / "index.json").write_text(text)
    with pytest.raises(BrokenIndexError, match=r"index\.json is damaged"):
        ValuationIndex.open(path)


def test_an_endless_manifest_is_not_read(path):
    with (path / "index.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(BrokenIndexError, match="far more than it needs"):
        ValuationIndex.open(path)


@pytest.mark.parametrize("how", ["pipe", "device", "deep", "list"])
def test_what_is_strange_in_place_of_tuned_parameters_counts_as_nothing(path, how):
    tuned = path / "search" / "raw" / "rabitq" / "tuned.json"
    tuned.parent.mkdir(parents=True)
    if how == "pipe":
        os.mkfifo(tuned)
    elif how == "device":
        tuned.symlink_to("/dev/zero")
    else:
        tuned.write_text("[" * 100_000 if how == "deep" else "[1]")
    assert CodeFiles(path / "search", "raw", "rabitq").tuned(30) == Tuned()


def test_codes_that_are_a_pipe_are_made_anew(path):
    codes = path / "search" / "raw" / "rabitq" / "quantizer.safetensors"
    codes.parent.mkdir(parents=True)
    os.mkfifo(codes)
    assert CodeFiles(path / "search", "raw", "rabitq").quantizer() is None
