"""An index that belongs to another user, for real: readers give up their rights in a fork."""

import multiprocessing
import os
import shutil
import tempfile
import threading
import time
import traceback
from pathlib import Path

import pytest
import torch
from catalogs import UID, Now, commit, sample

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.records import StoredSegment
from forvalue_index.store.rows import quantized
from forvalue_index.store.segments import SegmentStore

NOBODY = 65534
OVERTAKEN = "was written to by another user while it was read"
FORK = multiprocessing.get_context("fork")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "setuid") or os.getuid() != 0, reason="only root can become another user"
)


@pytest.fixture
def owned():
    """A directory that others may read and not write; pytest's own are private."""
    place = Path(tempfile.mkdtemp(prefix="forvalue-owned-"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def address(owned):
    address = owned / "catalog.sqlite"
    with Catalog.create(address, UID, "print") as catalog:
        commit(catalog, [sample(n) for n in range(50)])
    return address


class Nobody:
    """A process of another user which runs a function with a pipe to this one."""

    def __init__(self, act, *arguments):
        self.pipe, theirs = FORK.Pipe()
        self.process = FORK.Process(target=self._run, args=(act, theirs, arguments))
        self.process.start()
        theirs.close()

    @staticmethod
    def _run(act, pipe, arguments):
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        try:
            pipe.send(act(pipe, *arguments))
        except Exception:
            pipe.send(traceback.format_exc())

    def answer(self):
        assert self.pipe.poll(60), "the other user's process does not answer"
        return self.pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_error):
        self.process.join(60)
        assert self.process.exitcode == 0


def said(act, *arguments):
    """What another user is told."""

    def told(_pipe):
        try:
            return act(*arguments)
        except (CatalogError, BrokenIndexError) as error:
            return f"{type(error).__name__}: {error}"

    with Nobody(told) as nobody:
        return nobody.answer()


def count(address):
    with Catalog.open(address, UID) as catalog:
        return Now(catalog).count()


def read_when_told(pipe, address):
    """Open, and look before and after the owner writes, within one snapshot and in a new one."""
    with Catalog.open(address, UID) as catalog:
        try:
            with catalog.snapshot() as snapshot:
                pipe.send(snapshot.count())
                pipe.recv()
                snapshot.count()
        except CatalogError as error:
            pipe.send(str(error))
        else:
            pipe.send("nothing was said")
        return Now(catalog).count()


def test_what_nobody_writes_to_is_read_and_left_as_it_is(address, owned):
    assert said(count, address) == 50
    assert [file.name for file in owned.iterdir()] == ["catalog.sqlite"]


@pytest.mark.parametrize("close", [True, False], ids=["closed", "still-open"])
def test_a_write_during_a_read_is_said_and_the_next_read_is_of_it(address, close):
    with Nobody(read_when_told, address) as nobody:
        assert nobody.answer() == 50
        catalog = Catalog.open(address, UID)
        commit(catalog, [sample(n) for n in range(50, 60)])
        if close:
            catalog.close()
        nobody.pipe.send("written")
        message = nobody.answer()
        assert OVERTAKEN in message
        assert message.startswith(str(address))
        assert message.endswith("Run the same again")
        assert nobody.answer() == 60
        catalog.close()


def test_an_owner_who_only_reads_overtakes_nobody(address):
    with Nobody(read_when_told, address) as nobody:
        assert nobody.answer() == 50
        with Catalog.open(address, UID) as catalog:
            assert Now(catalog).count() == 50
            nobody.pipe.send("read")
            assert nobody.answer() == "nothing was said"
            assert nobody.answer() == 50


def test_what_a_torn_state_leads_to_is_said_to_be_one(address):
    """The file as a reader finds it whom a checkpoint overtook."""

    def told(pipe):
        with Catalog.open(address, UID) as catalog:
            pipe.send("opened")
            pipe.recv()
            try:
                with catalog.snapshot() as snapshot:
                    pipe.send("begun")
                    pipe.recv()
                    list(snapshot.samples(range(50)).values())
            except CatalogError as error:
                return str(error)
        return "nothing was said"

    with Nobody(told) as nobody:
        assert nobody.answer() == "opened"
        nobody.pipe.send("begin")
        assert nobody.answer() == "begun"
        content = address.read_bytes()
        with address.open("r+b") as file:
            file.seek(4096)
            file.write(b"\xff" * (len(content) - 4096))
        nobody.pipe.send("torn")
        message = nobody.answer()
    assert OVERTAKEN in message
    assert "backup" not in message


def read_until(pipe, address):
    """Count right answers, the one error, and all else. The owner adds 50 and then removes 5."""
    right, overtaken, wrong = 0, 0, []
    while not pipe.poll():
        try:
            with Catalog.open(address, UID) as catalog:
                for _ in range(3):
                    with catalog.snapshot() as snapshot:
                        live, removed = len(snapshot.live_ids()), len(snapshot.removed_ids())
                        texts = {id_: s.sample for id_, s in snapshot.samples(range(5)).items()}
                    if (live + removed) % 50 or removed % 5 or texts[4] != sample(4):
                        wrong.append((live, removed))
                    right += 1
        except CatalogError as error:
            if OVERTAKEN not in str(error):
                wrong.append(traceback.format_exc())
            overtaken += 1
        except Exception:
            wrong.append(traceback.format_exc())
    return right, overtaken, wrong


def test_beside_an_owner_who_writes_all_answers_are_right_or_the_one_error(address):
    with Nobody(read_until, address) as nobody:
        until, rounds = time.monotonic() + 6, 0
        while time.monotonic() < until:
            rounds += 1
            with Catalog.open(address, UID) as catalog:
                start = 50 * rounds
                commit(catalog, [sample(n) for n in range(start, start + 50)])
                catalog.remove(range(start, start + 5))
            time.sleep(0.02 * (rounds % 3))
        nobody.pipe.send("stop")
        right, overtaken, wrong = nobody.answer()
    assert wrong[:3] == []
    assert right > 20
    assert rounds > 20
    assert overtaken < 10 * right


def test_several_readers_of_one_catalog_object_see_the_same(address):
    def read(_pipe):
        with Catalog.open(address, UID) as catalog:
            found = []
            threads = [
                threading.Thread(target=lambda: found.append(Now(catalog).count()))
                for _ in range(4)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            return found

    with Nobody(read) as nobody:
        assert nobody.answer() == [50] * 4


@pytest.mark.parametrize("log", [False, True], ids=["catalog", "log"])
def test_a_catalog_that_may_not_be_read_says_so(address, log):
    with Catalog.open(address, UID) as catalog:
        Now(catalog).count()  # there is a log now
        hidden = address.with_name("catalog.sqlite-wal") if log else address
        hidden.chmod(0o600)
        message = said(count, address)
    assert message.startswith(f"CatalogError: {hidden} cannot be read for lack of permission")
    assert "backup" not in message


def test_a_refused_change_names_the_plain_path(address):
    def change():
        with Catalog.open(address, UID) as catalog:
            catalog.remove([0])

    message = said(change)
    assert message.startswith(f"CatalogError: {address} does not do what was asked")
    assert "file%3A" not in message
    assert "immutable" not in message


def test_a_segment_that_may_not_be_read_says_so(owned):
    store = SegmentStore(owned / "segments")
    record = store.write({"raw": quantized(torch.ones(3, 4), "float32")})
    opened = StoredSegment(0, record)

    def read():
        return len(store.open(opened).ids)

    assert said(read) == 3
    for hidden in (store.path(record.uid), owned / "segments"):
        hidden.chmod(0o600)
        message = said(read)
        hidden.chmod(0o755)
        assert message.startswith("UnreadableSegmentError: ")
        assert f"{store.path(record.uid)} cannot be read for lack of permission" in message
        assert "--repair" not in message
