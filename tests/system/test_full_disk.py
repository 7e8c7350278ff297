"""Disks that are full or read-only, for real: a small file system is mounted for each test."""

import gc
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest
from commands import run
from grids import rarely
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.ingest import planning, storing
from forvalue_index.store.catalog.database import CatalogError, NoRoomError

pytest_plugins = ("tiny",)

MAIN = "from forvalue_index.cli import main; main()"
REMEMBER_KEYS = """
from forvalue_index.ingest.seen_keys import SeenKeys
from forvalue_index.sources.sample import Message, Sample
seen = SeenKeys()
try:
    for i in range(200_000):
        seen.note(Sample((Message("text", ""),), own_id=str(i)))
except Exception as error:
    print(repr(error))
"""
KB = 1024
PAGE = 4 * KB
SIZE_KB, ENOUGH_KB = 2048, 700
FIRST, ALL = 40, 240
VALIDATION = rows(2, seed=1, words=1, prefix="v")


def mount(*arguments):
    """Whether it was mounted, and why not."""
    try:
        done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return False, "there is no mount command"
    return not done.returncode, done.stderr.strip()


@pytest.fixture
def disk(tmp_path):
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted, reason = mount("-t", "tmpfs", "-o", f"size={SIZE_KB}k", "forvalue-test", str(place))
    if not mounted:
        pytest.skip(f"no file system can be mounted here, which takes root: {reason}")
    yield place
    gc.collect()  # what a failed test still holds is mapped
    subprocess.run(["umount", str(place)], check=True)


@contextmanager
def filled(disk, *, but=0):
    """A disk with this many bytes of room left."""
    ballast = disk / "ballast"
    size = (shutil.disk_usage(disk).free - but) // PAGE * PAGE
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(PAGE, size))
    try:
        yield
    finally:
        ballast.unlink()


@pytest.fixture(scope="module", autouse=True)
def many_commits():
    """A segment every few samples, so that a disk fills in the middle of an `add`."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(planning, "WINDOW_ROWS", 16 / 2048)
        patched.setattr(storing, "COMMIT_BYTES", 1)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """The first samples, all of them, and a validation set, as files on another disk."""
    place = tmp_path_factory.mktemp("data")
    return (
        write_jsonl(place / "first.jsonl", rows(FIRST)),
        write_jsonl(place / "all.jsonl", rows(ALL)),
        write_jsonl(place / "validation.jsonl", VALIDATION),
    )


@pytest.fixture(scope="module")
def built(tmp_path_factory, many_commits, model_dir, data):
    """Where there is room: an index of the first samples, one of all, and what that holds."""
    place = tmp_path_factory.mktemp("built")
    with ValuationIndex.create(
        place / "first", str(model_dir), dim=256, geometry="fisher"
    ) as created:
        created.add(str(data[0]))
    shutil.copytree(place / "first", place / "all")
    with ValuationIndex.open(place / "all") as opened:
        opened.add(str(data[1]))
        return place / "first", place / "all", held(opened)


@pytest.fixture
def index(disk, built):
    """An index of the first samples on the small disk."""
    return shutil.copytree(built[0], disk / "index")


@pytest.fixture
def whole(disk, built):
    """An index of all samples but one on the small disk."""
    path = shutil.copytree(built[1], disk / "index")
    with ValuationIndex.open(path) as opened:
        opened.remove(["r7"])
    return path


@pytest.fixture(scope="module")
def roomy(built):
    """The rows of an index that had room for all samples."""
    return built[2]


def held(index):
    """Rows by key, bit for bit, of an index that fits together."""
    (geometry,) = index.manifest.settings.geometries
    with index.storage.view() as view:
        stored = view.catalog.samples(view.catalog.live_ids())
        found = {
            stored[id_].sample.key: row.numpy().tobytes()
            for block in view.blocks(geometry)
            for id_, row in zip(block.ids.tolist(), block.rows, strict=True)
        }
        assert len(found) == len(stored) == view.catalog.count()
    return found


def answers(path, validation):
    """That an index answers in every way; returns what it holds."""
    with ValuationIndex.open(path) as opened:
        found = held(opened)
        assert opened.info().samples == len(opened) == len(found)
        assert len(opened.list_samples(limit=ALL)) == len(found)
        assert len(opened.values(validation).ids) == len(found)
        assert opened.query(validation).searched == len(found)
        assert opened.check().findings == ()
    return found


def complaint(done):
    """The one line on standard error, apart from progress, of a command that failed."""
    assert done.exit_code == 1, done.output
    assert done.stdout == ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert done.stderr.count("Error") == len(lines) == 1, done.stderr
    assert done.stderr.endswith(lines[0] + "\n")
    assert "Traceback" not in done.stderr
    return lines[0]


def out_of_room(done):
    line = complaint(done)
    assert ("No space left on device" in line) or ("has no room to write" in line), line
    assert "room on" in line, line
    return line


ROOM_LEFT = [0, 100, 200, *rarely(4, 32, 36, 60, 80, 140, 300)]


@pytest.mark.parametrize("room_kb", ROOM_LEFT)
def test_an_add_on_a_disk_that_fills_says_so_and_goes_on_when_there_is_room(
    index, disk, data, roomy, room_kb
):
    _, everything, validation = data
    with filled(disk, but=room_kb * KB):
        out_of_room(run("add", index, everything))
        stored = answers(index, validation)
        assert FIRST <= len(stored) < ALL
        assert all(row == roomy[key] for key, row in stored.items())
        # A second try, as from a script that does not know.
        out_of_room(run("add", index, everything))
        assert answers(index, validation).items() >= stored.items()
    assert not [*disk.rglob("*.partial")]
    done = run("add", index, everything, "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["read"] == ALL
    assert answers(index, validation) == roomy


@pytest.mark.parametrize("room_kb", [0, 40, *rarely(4, 8, 36, 44, 48, 60, 100)])
def test_a_first_add_without_room_calibrates_and_goes_on_when_there_is(
    disk, data, roomy, model_dir, room_kb
):
    """Nothing half is left of a calibration, and rows are those of the first one."""
    index = disk / "index"
    with ValuationIndex.create(index, str(model_dir), dim=256, geometry="fisher"):
        pass
    with filled(disk, but=room_kb * KB):
        out_of_room(run("add", index, data[0]))
        assert len(answers(index, data[2])) < FIRST
        out_of_room(run("add", index, data[0]))
    assert not [*disk.rglob("*.partial")]
    assert run("add", index, data[0]).exit_code == 0
    stored = answers(index, data[2])
    assert len(stored) == FIRST
    assert all(row == roomy[key] for key, row in stored.items())


def test_keys_that_do_not_fit_into_the_temporary_directory_are_an_error_that_says_so(disk):
    # A process of its own, because SQLite asks for the directory once.
    with filled(disk):
        done = subprocess.run(
            [sys.executable, "-c", REMEMBER_KEYS],
            capture_output=True,
            text=True,
            env=os.environ | {"SQLITE_TMPDIR": str(disk)},
            check=False,
        )
    assert "ForValueError" in done.stdout, done.stderr
    assert "temporary file (database or disk is full)" in done.stdout
    assert "set SQLITE_TMPDIR" in done.stdout


def test_more_room_lets_more_be_stored(index, disk, data):
    counts = []
    for room_kb in (60, 120, 180):
        with filled(disk, but=room_kb * KB), ValuationIndex.open(index) as opened:
            with pytest.raises((OSError, CatalogError), match=r"No space left|no room to write"):
                opened.add(str(data[1]))
            counts.append(len(opened))
    assert FIRST <= counts[0] < counts[1] < counts[2] < ALL


def test_a_full_disk_as_a_user_meets_it(index, disk, data, tmp_path):
    roomy = shutil.copytree(index, tmp_path / "roomy")

    def forvalue(*arguments):
        return subprocess.run(
            [sys.executable, "-c", MAIN, *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
        )

    with filled(disk, but=150 * KB):
        done = forvalue("add", index, data[1])
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.count("Error: ") == 1
        assert done.stderr.splitlines()[-1].startswith("Error: ")
        assert "Traceback" not in done.stderr
        assert "room on" in done.stderr
        assert len(answers(index, data[2])) >= FIRST
    for path in (index, roomy):
        done = forvalue("add", path, data[1])
        assert done.returncode == 0, done.stderr
    assert answers(index, data[2]) == answers(roomy, data[2])


def test_an_index_that_cannot_be_made_for_want_of_room_is_made_when_there_is(
    disk, model_dir, data, thorough
):
    made = False
    for room_kb in range(0, 400, 40 if thorough else 90):
        path = disk / f"index-{room_kb}"
        with filled(disk, but=room_kb * KB):
            done = run("init", path, "--model", model_dir, "--dim", "256")
            if done.exit_code:
                out_of_room(done)
                assert not made, "less room was enough"
            made = done.exit_code == 0
        again = run("init", path, "--model", model_dir, "--dim", "256")
        assert again.exit_code == 0, again.output
        assert run("add", path, data[0]).exit_code == 0
        assert len(answers(path, data[2])) == FIRST
        shutil.rmtree(path)
    assert made


@pytest.mark.parametrize("room_kb", [64, ENOUGH_KB, *rarely(0, 32, 96, 128, 160, 256)])
def test_a_compaction_without_room_for_the_new_segment_loses_nothing(index, disk, data, room_kb):
    with ValuationIndex.open(index) as opened:
        opened.add(str(data[1]))
        opened.remove(where="id IN (3, 5, 100, 101, 239)")
        before = held(opened)
    with filled(disk, but=room_kb * KB):
        done = run("compact", index)
        if room_kb < 100:
            out_of_room(done)
        if room_kb == ENOUGH_KB:
            assert done.exit_code == 0, done.output
        assert answers(index, data[2]) == before
        if done.exit_code:
            out_of_room(done)
    assert run("compact", index).exit_code == 0
    assert answers(index, data[2]) == before
    with ValuationIndex.open(index) as opened:
        assert (opened.info().segments, opened.info().removed) == (1, 0)
        assert len(opened.storage.segments.files()) == 1


@pytest.mark.parametrize("room_kb", [0, 36, 60, *rarely(4, 32, 40)])
def test_a_removal_on_a_full_disk_is_done_or_not(index, disk, data, room_kb):
    with filled(disk, but=room_kb * KB):
        done = run("remove", index, "--where", "id < 20", "--yes")
        if done.exit_code:
            out_of_room(done)
        left = FIRST if done.exit_code else FIRST - 20
        assert len(answers(index, data[2])) == left
    assert room_kb or done.exit_code
    done = run("remove", index, "--where", "id < 20", "--yes")
    assert len(answers(index, data[2])) == FIRST - 20, done.output


def test_a_log_that_cannot_grow_leaves_readers_and_the_last_commit_alone(index, disk, data):
    with (
        ValuationIndex.open(index) as writer,
        ValuationIndex.open(index) as reader,
        filled(disk, but=200 * KB),
        reader.storage.view() as view,
    ):
        # While a state is being read, the log is not folded back and only grows.
        for marks in range(1000):
            try:
                writer.add([row | {"mark": marks} for row in rows(FIRST)])
            except NoRoomError as error:
                said = str(error)
                break
        assert "Make room on its disk, then run the same again" in said
        assert marks > 2
        assert (index / "catalog.sqlite-wal").stat().st_size > 100 * KB
        assert all("mark" not in one.sample.metadata for one in view.catalog.list_samples(limit=99))
        assert len([i for block in view.blocks("fisher") for i in block.ids]) == FIRST
        # The metadata may have been the last that had room, before the note that all is stored.
        stored = {one.sample.metadata["mark"] for one in reader.list_samples(limit=99)}
        assert stored in ({marks - 1}, {marks})
        with ValuationIndex.open(index) as late:
            assert {one.sample.metadata["mark"] for one in late.list_samples(limit=99)} == stored
    with ValuationIndex.open(index) as writer:
        assert writer.add([row | {"mark": -1} for row in rows(FIRST)]).updated == FIRST
    assert len(answers(index, data[2])) == FIRST


def test_readers_of_a_full_disk_do_not_lock_each_other_out(index, disk):
    with (
        filled(disk),
        ValuationIndex.open(index) as first,
        ValuationIndex.open(index) as second,
    ):
        for _ in range(3):
            assert first.query(VALIDATION).searched == len(second) == FIRST
            assert second.info().samples == len(first.values(VALIDATION).ids)


@pytest.fixture
def read_only(whole, disk):
    """The index on a disk that is mounted read-only."""
    done, reason = mount("-o", "remount,ro", str(disk))
    assert done, reason
    return whole


def reading(index, data, tmp_path, n):
    """Every command that reads, with what it must print of an index of n samples."""
    return {
        ("query", index, data[2], "--json"): f'"searched": {n}',
        ("values", index, data[2], "-o", tmp_path / "values.csv"): f"{n} values written",
        ("list", index, "--where", "metadata.topic = 'law'"): "r3",
        ("info", index, "--json"): f'"samples": {n}',
        ("show", index, "r8"): "r8",
        ("check", index): "",
        ("remove", index, "r9", "--dry-run"): "would be removed",
    }


def assert_readable(index, data, tmp_path, n=ALL - 1):
    for arguments, said in reading(index, data, tmp_path, n).items():
        done = run(*arguments)
        assert done.exit_code == 0, (arguments, done.output)
        assert said in done.stdout, (arguments, done.output)


def leave_as_killed(index, tmp_path):
    """An index as a process leaves it that is killed after a removal: with a log beside it."""
    with ValuationIndex.open(index) as opened:
        opened.remove(["r10"])
        for suffix in ("", "-wal", "-shm"):
            shutil.copy(index / f"catalog.sqlite{suffix}", tmp_path)
    for suffix in ("", "-wal", "-shm"):
        shutil.copy(tmp_path / f"catalog.sqlite{suffix}", index)


def test_a_read_only_disk_can_be_read(read_only, data, tmp_path):
    assert_readable(read_only, data, tmp_path)


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "INDEX", "DATA"),
        ("add", "INDEX", "DATA", "--wait"),
        ("remove", "INDEX", "r9", "--yes"),
        ("compact", "INDEX"),
        ("check", "INDEX", "--repair"),
        ("migrate", "INDEX"),
    ],
)
def test_whatever_writes_to_a_read_only_disk_says_that_it_is_one(read_only, data, arguments):
    places = {"INDEX": read_only, "DATA": data[1]}
    line = complaint(run(*(places.get(part, part) for part in arguments)))
    assert "Read-only file system" in line
    assert str(read_only) in line


def test_what_a_killed_process_left_is_read_from_a_read_only_disk(whole, disk, data, tmp_path):
    leave_as_killed(whole, tmp_path)
    assert mount("-o", "remount,ro", str(disk)) == (True, "")
    assert_readable(whole, data, tmp_path, ALL - 2)


def test_a_log_that_cannot_be_read_from_a_read_only_disk_is_not_passed_over(
    whole, disk, data, tmp_path
):
    leave_as_killed(whole, tmp_path)
    (whole / "catalog.sqlite-shm").unlink()
    assert mount("-o", "remount,ro", str(disk)) == (True, "")
    for arguments in reading(whole, data, tmp_path, ALL - 2):
        line = complaint(run(*arguments))
        assert "unable to open database file" in line
        assert "written to" in line


def test_what_a_full_disk_left_is_read_when_it_became_read_only(whole, disk, data, tmp_path):
    with filled(disk):
        out_of_room(run("remove", whole, "r9", "--yes"))
    assert mount("-o", "remount,ro", str(disk)) == (True, "")
    assert_readable(whole, data, tmp_path)
