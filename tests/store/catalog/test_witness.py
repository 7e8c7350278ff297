"""Commits that SQLite rolls back in silence, because its log is damaged or lost, are missed."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
from commands import refused
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.store.catalog.witness import WITNESS, Witness

pytest_plugins = ("tiny",)

HOLD_A_STATE = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM samples").fetchall()
print("held", flush=True)
time.sleep(600)
"""


@pytest.fixture
def path(tmp_path, built_index):
    return shutil.copytree(built_index, tmp_path / "index")


@pytest.fixture
def with_log(path):
    """An index from which 12 samples were removed while somebody read, and who was then killed.

    So these removals lie in the log alone.
    """
    catalog = path / "catalog.sqlite"
    reader = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_STATE, str(catalog)], stdout=subprocess.PIPE, text=True
    )
    assert reader.stdout.readline() == "held\n"
    with ValuationIndex.open(path) as index:
        index.remove(where="id < 12")
        state = [shutil.copy(p, path.parent / p.name) for p in path.glob("catalog.sqlite*")]
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    # Whoever closes the catalog last copies the log; here the machine stopped before.
    for copy in state:
        shutil.copy(copy, path)
    assert (path / "catalog.sqlite-wal").stat().st_size > 0
    return path


def test_a_sound_log_is_read(with_log):
    with ValuationIndex.open(with_log) as index:
        assert index.info().removed == 12
        assert index.check().sound


def flip(log):
    content = bytearray(log.read_bytes())
    content[40] ^= 1
    log.write_bytes(content)


@pytest.mark.parametrize("damage", [flip, os.unlink, lambda log: os.truncate(log, 0)])
def test_a_damaged_or_lost_log_is_no_older_state_in_silence(with_log, damage):
    """Removed samples were back, and `check` found nothing."""
    damage(with_log / "catalog.sqlite-wal")
    said = "its log was damaged or lost"
    with pytest.raises(BrokenIndexError, match=said):
        ValuationIndex.open(with_log)
    for command in (("check",), ("info",), ("list",), ("check", "--repair")):
        name, *options = command
        assert said in refused(name, with_log, *options)
    (with_log / WITNESS).unlink()  # as the message says
    with ValuationIndex.open(with_log) as index:
        assert index.info().removed == 0
        assert index.check(repair=True).sound
        index.remove(where="id < 12")
    with ValuationIndex.open(with_log) as index:
        assert index.info().removed == 12


def test_after_each_commit_nothing_lies_in_the_log_alone(path):
    log = path / "catalog.sqlite-wal"
    with ValuationIndex.open(path) as index:
        index.remove(where="id < 12")
        assert log.stat().st_size == 0
        index.add(rows(3, prefix="new"))
        copy = shutil.copytree(path, path.parent / "copy")
    log.unlink(missing_ok=True)
    for file in copy.glob("catalog.sqlite-*"):
        file.unlink()
    with ValuationIndex.open(copy) as index:
        assert (index.info().removed, index.info().samples) == (12, 21)


def test_an_older_catalog_is_refused(path):
    catalog = path / "catalog.sqlite"
    older = shutil.copy(catalog, path.parent)
    with ValuationIndex.open(path) as index:
        index.remove(where="id = 0")
    shutil.copy(older, catalog)
    with pytest.raises(BrokenIndexError, match="or an older copy was put here"):
        ValuationIndex.open(path)


def test_each_change_is_witnessed(path):
    seen = [Witness(path).version()]

    def changes(change):
        change()
        seen.append(Witness(path).version())
        with sqlite3.connect(path / "catalog.sqlite") as connection:
            assert connection.execute("SELECT version FROM indexes").fetchall() == [(seen[-1],)]
        connection.close()

    with ValuationIndex.open(path) as index:
        changes(lambda: index.add(rows(3, prefix="new")))
        changes(lambda: index.remove(where="id = 0"))
        changes(index.compact)
    assert seen == sorted(set(seen))


def test_an_index_from_before_has_none_until_it_is_changed(path):
    (path / WITNESS).unlink()
    with ValuationIndex.open(path) as index:
        assert Witness(path).version() == 0
        index.remove(where="id = 0")
        assert Witness(path).version() > 0


def test_a_version_of_another_type_is_none(path):
    with sqlite3.connect(path / "catalog.sqlite") as connection:
        connection.execute("UPDATE indexes SET version = 'x'")
    connection.close()
    with pytest.raises(BrokenIndexError, match=r"values of indexes\.version are other than"):
        ValuationIndex.open(path)


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"version": "x"}', '{"version": 1e999}'])
def test_a_damaged_witness_is_named(path, content):
    (path / WITNESS).write_text(content)
    with pytest.raises(BrokenIndexError, match=r"committed\.json is damaged"):
        ValuationIndex.open(path)
