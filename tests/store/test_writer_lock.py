import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from datetime import datetime, timedelta

import pytest
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BusyIndexError, ForValueError
from forvalue_index.store.writer_lock import LOCK, writer_lock

pytest_plugins = ("tiny",)

HOLD = """
import sys, time
from pathlib import Path
from forvalue_index.store.writer_lock import writer_lock
with writer_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def another_writer(path):
    """A process that holds the lock until its standard input ends."""
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_second_writer_is_refused_and_told_who_writes(filled):
    with another_writer(filled.path) as process:
        for write in (
            lambda: filled.add(rows(3)),
            lambda: filled.remove(["r1"]),
            filled.compact,
            lambda: filled.check(repair=True),
        ):
            with pytest.raises(BusyIndexError) as error:
                write()
            found = re.fullmatch(
                rf"{re.escape(str(filled.path))} is being written to by process (\d+) on (\S+) "
                r"since (\S+)\. Wait for it to finish, or give --wait",
                str(error.value),
            )
            assert (int(found[1]), found[2]) == (process.pid, socket.gethostname())
            age = datetime.now().astimezone() - datetime.fromisoformat(found[3])
            assert timedelta(seconds=-1) < age < timedelta(minutes=1)
        assert (len(filled), filled.version) == (30, 2)
    assert filled.remove(["r1"]) == 1


def test_a_second_index_object_of_the_same_process_is_a_second_writer(filled):
    with (
        writer_lock(filled.path),
        ValuationIndex.open(filled.path) as other,
        pytest.raises(BusyIndexError, match=f"by process {os.getpid()} on"),
    ):
        other.remove(["r1"])


def test_one_that_waits_goes_on_once_the_other_has_finished(filled):
    steps = []
    filled.model.on_progress = steps.append
    with another_writer(filled.path) as process:
        release = threading.Timer(0.5, process.stdin.close)
        release.start()
        started = time.monotonic()
        assert filled.remove(["r1"], wait=True) == 1
        assert time.monotonic() - started > 0.4
        release.join()
    waiting = [step.done for step in steps if step.stage == "waiting"]
    assert (waiting[0], waiting[-1]) == (0, 1)


def test_a_writer_that_was_killed_is_in_nobodys_way(filled):
    with another_writer(filled.path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert json.loads((filled.path / LOCK).read_text())["pid"] == process.pid
        assert filled.remove(["r1"]) == 1
    assert json.loads((filled.path / LOCK).read_text())["pid"] == os.getpid()


def test_readers_do_not_wait_for_a_writer(filled):
    with another_writer(filled.path):
        assert len(filled) == filled.info().samples == len(filled.list_samples()) == 30
        assert filled.sample("r1").sample.key == "r1"
        assert filled.query(rows(1), top=3).searched == len(filled.values(rows(1)).ids) == 30
        assert filled.check().findings == ()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "\udcff"])
def test_a_holder_that_has_not_written_its_name_yet(filled, content):
    with another_writer(filled.path):
        (filled.path / LOCK).write_text(content, "utf-8", "surrogateescape")
        with pytest.raises(BusyIndexError, match="another process, which has only just begun"):
            filled.remove(["r1"])


def test_the_lock_is_let_go_of_after_an_error(tmp_path):
    def fail():
        with writer_lock(tmp_path):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with writer_lock(tmp_path):
        pass


@contextmanager
def read_only(path):
    """A directory that nobody can write to: root neither, for whom permissions do not hold."""
    if os.geteuid() != 0:
        for directory in (path, *(p for p in path.rglob("*") if p.is_dir())):
            directory.chmod(0o555)
        try:
            yield
        finally:
            for directory in (path, *(p for p in path.rglob("*") if p.is_dir())):
                directory.chmod(0o755)
        return
    bind = subprocess.run(["mount", "--bind", path, path], capture_output=True)
    if bind.returncode:
        pytest.skip("root may write anywhere, and cannot mount anything here")
    try:
        again = ["mount", "-o", "remount,bind,ro", path]
        if subprocess.run(again, capture_output=True).returncode:
            pytest.skip("root may write anywhere, and cannot mount anything read-only here")
        yield
    finally:
        subprocess.run(["umount", path], check=True)


def test_an_index_that_cannot_be_written_to_says_so_and_is_read(built_index, tmp_path):

    path = shutil.copytree(built_index, tmp_path / "index")
    (path / LOCK).unlink(missing_ok=True)
    with read_only(path), ValuationIndex.open(path) as index:
        assert len(index) == 30
        assert index.query(rows(1), top=3).searched == 30
        assert index.check().findings == ()
        for write in (lambda: index.remove(["r1"]), lambda: index.add(rows(3)), index.compact):
            with pytest.raises(ForValueError, match=f"{path} cannot be written to"):
                write()
