"""An ingestion that is stopped anywhere loses nothing that was finished, and goes on from there.

The first one of an index calibrates it: all of its rows are those of the calibration that was
written first, and that is the same whenever it is made from the same data.
"""

import random
import re
import shutil
from dataclasses import dataclass

import pytest
from rows import rows, write_jsonl

from forvalue_index.store.catalog.witness import WITNESS

pytest_plugins = ("tiny", "databases", "faults")

# What a stop may leave behind: files of segments that no transaction recorded.
LEFT_OVER = {"orphan file"}
ROUND = 5
RECORD = ("write", "catalog.sqlite-wal")
CALIBRATION = "calibration.safetensors"
EXAMINE, REPAIR = ("examine", {}), ("repair", {})


@dataclass(frozen=True)
class Work:
    """A data set, an index without it, and what an uninterrupted ingestion makes of both."""

    data: str
    count: int
    empty: object
    filled: object
    found: dict
    seconds: float
    calls: list

    @property
    def add(self):
        return ("add", {"data": self.data})


def work(drivers, directory, model, count):
    data = write_jsonl(directory / "data.jsonl", rows(count, words=4))
    empty, filled, log = directory / "empty", directory / "filled", directory / "log"
    drivers.run(empty, ("create", {"model": str(model)}))
    shutil.copytree(empty, filled)
    add = ("add", {"data": str(data)})
    done = drivers.run(filled, add, log=log)
    assert done.result["added"] == done.result["embedded"] == count, done
    found = drivers.run(filled, EXAMINE).result["found"]
    assert len(found) == count
    return Work(str(data), count, empty, filled, found, done.seconds, calls_of(log, filled))


@pytest.fixture(scope="module")
def small(drivers, tmp_path_factory, model_dir):
    """Two commits."""
    return work(drivers, tmp_path_factory.mktemp("small").resolve(), model_dir, 4)


@pytest.fixture(scope="module")
def large(drivers, tmp_path_factory, model_dir):
    """About a dozen commits."""
    return work(drivers, tmp_path_factory.mktemp("large").resolve(), model_dir, 24)


@dataclass(frozen=True)
class Call:
    """One counted call; `begun` and `ended` are line numbers of the log."""

    op: str
    path: str
    to: str
    begun: int
    ended: int

    def __str__(self):
        return f"{self.op} {self.path} {self.to}".rstrip()


def calls_of(log, root):
    """The calls in a log, in the order in which they began, with paths relative to `root`."""
    begun, ended = {}, {}
    for number, line in enumerate(log.read_text().splitlines()):
        kind, n, *rest = line.split("\t")
        (begun if kind == "begin" else ended)[int(n)] = (number, rest)
    assert begun.keys() == ended.keys()
    return [
        Call(op, *(p.removeprefix(f"{root}").lstrip("/") for p in paths), number, ended[n][0])
        for n, (number, (op, *paths)) in sorted(begun.items())
    ]


def explained(trial):
    """Say in a failure which trial it was."""

    def run(item):
        try:
            trial(item)
        except BaseException as error:
            error.add_note(f"trial: {item}")
            raise

    return run


def assert_goes_on(drivers, path, work):
    """Everything that must hold for an index whose ingestion was stopped; returns what it held."""
    held, report = finish(drivers, path, work.add, work.found)
    assert held.items() <= work.found.items()
    assert (report["read"], report["known"]) == (work.count, len(held))
    assert report["added"] == report["embedded"] == work.count - len(held)
    return held


def finish(drivers, path, step, found):
    """What a stopped index holds, and what the same step then returns; it ends with `found`.

    A repair leaves nothing over: each segment has its file, and there is no other.
    """
    after = drivers.run(path, EXAMINE, step, REPAIR, EXAMINE)
    assert (after.code, after.error) == (0, None), after
    before, report, repaired, complete = after.results
    assert {kind for kind, *_ in before["findings"]} <= LEFT_OVER, before
    assert {kind for kind, *_ in repaired} <= LEFT_OVER, repaired
    assert all(mended for *_, mended in repaired), repaired
    assert complete["found"] == found
    assert complete["findings"] == []
    files = [file.name for file in (path / "segments").iterdir()]
    assert sorted(files) == sorted(f"{uid}.safetensors" for uid in complete["files"])
    return before["found"], report


def kill_at_random(drivers, work, points, fresh, seconds):
    """Kill ingestions at random moments, check what they leave; how much each had stored.

    `seconds` is how long one takes, to begin with.
    """
    held, late = [], []
    dice = random.Random(0)

    @explained
    def trial(point):
        number, delay = point
        path = fresh(number)
        stopped = drivers.run(path, work.add, kill_after=max(1e-4, delay))
        assert stopped.killed or stopped.result["added"] == work.count, stopped
        stored = assert_goes_on(drivers, path, work)
        (held if stopped.killed else late).append(len(stored))
        shutil.rmtree(path)

    while len(held) < points:
        begun, late_before = len(held) + len(late), len(late)
        assert begun < 4 * points + 40, f"{len(late)} of {begun} ended before they were killed"
        some = range(begun, begun + min(ROUND, points - len(held)))
        # Late moments twice as often as early ones: most of the time passes before a first commit.
        moments = [max(dice.random(), dice.random()) for _ in some]
        drivers.each(trial, [*zip(some, (seconds * at for at in moments), strict=True)])
        # A machine that is busy with other things takes longer than it took at first. Some come
        # too late where the moments cover all of an ingestion.
        late_share = (len(late) - late_before) / len(some)
        seconds *= 1.5 if late_share < 0.2 else 0.7 if late_share > 0.5 else 1
    return held


def test_an_ingestion_killed_at_random_points_goes_on(request, drivers, large, tmp_path, thorough):
    points = request.config.getoption("--fault-points") or (50 if thorough else 12)

    def fresh(number):
        return shutil.copytree(large.empty, tmp_path.resolve() / str(number))

    held = kill_at_random(drivers, large, points, fresh, large.seconds)
    # The kills struck early, late and in between.
    assert len(set(held)) >= min(max(points // 10, 2), 5)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_so_does_one_with_its_catalog_in_postgresql(
    drivers, large, tmp_path, model_dir, database_url, thorough
):
    def fresh(number):
        path = tmp_path.resolve() / str(number)
        made = ("create", {"model": str(model_dir), "catalog": database_url})
        assert drivers.run(path, made).error is None
        return path

    first = fresh("first")  # which makes the tables, before two could do so at the same time
    seconds = drivers.run(first, large.add, log=tmp_path / "log").seconds
    held = kill_at_random(drivers, large, 10 if thorough else 6, fresh, seconds)
    assert len(set(held)) >= 2


def test_an_ingestion_killed_again_and_again_comes_to_its_end(drivers, large, tmp_path):
    path = shutil.copytree(large.empty, tmp_path.resolve() / "index")
    dice = random.Random(0)
    held = kills = 0
    while held < large.count:
        kills += drivers.run(path, large.add, fault=(dice.randrange(1, 120), "kill")).killed
        before, held = held, len(drivers.run(path, EXAMINE).result["found"])
        assert held >= before
        assert kills < 100
    assert kills >= 3
    assert assert_goes_on(drivers, path, large) == large.found


# ---- every call of the commit path ----


def at_every_call(drivers, calls, trial, thorough):
    """Run a trial with every kind of fault at every call; only a call that writes can be torn.

    In an ordinary run, of calls that do the same to the same kind of file the first and the last.
    """
    places = [n for n, _ in enumerate(calls, start=1)] if thorough else ends_of_kinds(calls)
    points = [
        (n, mode)
        for mode in ("kill", "torn", "enospc", "eio")
        for n in places
        if mode != "torn" or calls[n - 1].op == "write"
    ]
    drivers.each(explained(trial), points)


def ends_of_kinds(calls):
    """The numbers of the first and the last call of each kind, in order."""
    kinds = {}
    for n, call in enumerate(calls, start=1):
        kind = [re.sub(r"[0-9a-f]{32}", "*", part) for part in (call.op, call.path, call.to)]
        kinds.setdefault(tuple(kind), []).append(n)
    return sorted({n for numbers in kinds.values() for n in (numbers[0], numbers[-1])})


def ended_as_it_should(stopped, mode):
    """Whether it ended well; a process that is not killed ends well or says what failed."""
    if mode in ("kill", "torn"):
        assert stopped.killed, stopped
        return False
    assert stopped.code == 0, stopped
    assert stopped.op, stopped
    if stopped.error is None:
        return True
    assert {"ForValueError", "OSError"} & set(stopped.error["kinds"]), stopped
    return False


def last_record(calls):
    """The number of the last write to SQLite's log; the next call flushes it."""
    return max(n for n, c in enumerate(calls, 1) if (c.op, c.path) == RECORD)


def test_an_ingestion_stopped_at_any_call_goes_on(drivers, small, tmp_path, thorough):
    last_commit = last_record(small.calls)

    def trial(point):
        n, mode = point
        path = shutil.copytree(small.empty, tmp_path.resolve() / f"{mode}-{n}")
        add = ("command", {"arguments": ["add", "INDEX", small.data]})
        stopped = drivers.run(path, add, fault=point)
        if mode in ("kill", "torn"):
            assert stopped.killed, stopped
        else:
            said = stopped.result["said"].splitlines()
            assert stopped.op, stopped
            assert stopped.result["code"] in (0, 1), stopped
            errors = [line for line in said if line.startswith("Error: ")]
            assert len(errors) == stopped.result["code"], said
            assert "Traceback" not in stopped.result["said"]
        held = assert_goes_on(drivers, path, small)
        if mode in ("enospc", "eio") and stopped.result["code"] == 0:
            # A directory that is there need not be made, nor is the name of the lock's holder
            # needed, nor room to copy the log, or to note a change, after a commit. Else SQLite
            # alone may go on: with what follows the last commit, its shared memory, and the flush
            # of the name of its log.
            assert held == small.found
            harmless = (
                stopped.op == "mkdir"
                or stopped.path.endswith(("-shm", "writer.lock"))
                or (stopped.op, stopped.path) == ("fsync", str(path))
                or (mode == "enospc" and stopped.path.endswith("/catalog.sqlite"))
                or (mode == "enospc" and f"/{WITNESS}." in stopped.path)
            )
            assert n > last_commit + 1 or harmless, stopped
        shutil.rmtree(path)

    at_every_call(drivers, small.calls, trial, thorough)
    path = shutil.copytree(small.empty, tmp_path.resolve() / "index")
    beyond = drivers.run(path, small.add, fault=(len(small.calls) + 1, "kill"))
    assert beyond.result["added"] == small.count


def test_a_calibration_that_was_cut_off_is_made_again(drivers, small, tmp_path):
    """It is the first thing that an `add` writes; what is half a file has another name."""
    writes = [n for n, c in enumerate(small.calls, 1) if c.op == "write" and CALIBRATION in c.path]
    assert writes
    rows_first = next(n for n, c in enumerate(small.calls, 1) if c.path.startswith("segments/"))
    assert max(writes) < rows_first
    whole = (small.filled / CALIBRATION).stat().st_size
    for n in writes:
        path = shutil.copytree(small.empty, tmp_path.resolve() / str(n))
        assert drivers.run(path, small.add, fault=(n, "torn")).killed
        assert not (path / CALIBRATION).exists()
        (half,) = path.glob(f"{CALIBRATION}.*.partial")
        assert half.stat().st_size < whole
        assert assert_goes_on(drivers, path, small) == {}
        assert not half.exists(), "a repair deletes it"


def test_a_calibration_stays_though_no_row_was_stored(drivers, small, tmp_path):
    """Its data may have been changed when the `add` is run again: what is there counts."""
    n = next(n for n, c in enumerate(small.calls, 1) if c.path.startswith("segments/"))
    path = shutil.copytree(small.empty, tmp_path.resolve() / "index")
    assert drivers.run(path, small.add, fault=(n, "kill")).killed
    kept = (path / CALIBRATION).read_bytes()
    assert assert_goes_on(drivers, path, small) == {}
    assert (path / CALIBRATION).read_bytes() == kept


def test_a_torn_write_leaves_half(drivers, small, tmp_path):
    """What the tests above rely on."""
    path = shutil.copytree(small.empty, tmp_path.resolve() / "index")
    n = next(n for n, c in enumerate(small.calls, 1) if c.op == "write" and "segments" in c.path)
    assert drivers.run(path, small.add, fault=(n, "torn")).killed
    (torn,) = (path / "segments").iterdir()
    whole = {file.stat().st_size for file in (small.filled / "segments").iterdir()}
    assert torn.stat().st_size in {size // 2 for size in whole}


def test_an_ingestion_that_fails_and_is_killed_before_it_closes_goes_on(
    drivers, small, tmp_path, thorough
):
    """What a failed transaction left in the write-ahead log is then recovered, or not."""

    @explained
    def trial(n):
        path = shutil.copytree(small.empty, tmp_path.resolve() / str(n))
        add = ("add", {"data": small.data, "close": False})
        ended_as_it_should(drivers.run(path, add, fault=(n, "eio")), "eio")
        assert_goes_on(drivers, path, small)
        shutil.rmtree(path)

    log = [n for n, c in enumerate(small.calls, 1) if c.path == "catalog.sqlite-wal"]
    points = log[: log.index(last_record(small.calls)) + 2]
    drivers.each(trial, points if thorough else sorted({*points[::3], *points[-3:]}))


@pytest.fixture
def logged(drivers, tmp_path):
    """The calls of one step on a copy of an index."""

    def run(index, step):
        path = shutil.copytree(index, tmp_path.resolve() / "logged")
        assert drivers.run(path, step, log=tmp_path / "log").error is None
        return calls_of(tmp_path / "log", path)

    return run


def test_a_removal_stopped_at_any_call_is_done_or_not(drivers, small, tmp_path, logged, thorough):
    names = ["r0", "r3"]
    remove = ("remove", {"names": names})
    rest = {key: found for key, found in small.found.items() if key not in names}

    def trial(point):
        n, mode = point
        path = shutil.copytree(small.filled, tmp_path.resolve() / f"{mode}-{n}")
        stopped = drivers.run(path, remove, fault=point)
        if ended_as_it_should(stopped, mode):
            assert stopped.result == len(names)
        held, removed = finish(drivers, path, remove, rest)
        assert held in (small.found, rest)
        assert removed == len(held) - len(rest)
        shutil.rmtree(path)

    at_every_call(drivers, logged(small.filled, remove), trial, thorough)


def test_a_compaction_stopped_at_any_call_loses_nothing(drivers, small, tmp_path, logged, thorough):
    holed = shutil.copytree(small.filled, tmp_path.resolve() / "holed")
    drivers.run(holed, ("remove", {"names": ["r0", "r3"]}))
    found = drivers.run(holed, EXAMINE).result["found"]
    compact = ("compact", {})

    def trial(point):
        n, mode = point
        path = shutil.copytree(holed, tmp_path / f"{mode}-{n}")
        ended_as_it_should(drivers.run(path, compact, fault=point), mode)
        held, _ = finish(drivers, path, compact, found)
        assert held == found
        shutil.rmtree(path)

    at_every_call(drivers, logged(holed, compact), trial, thorough)


# ---- the order of calls, which decides what a power cut leaves ----


def assert_in_order(calls):
    """Rows are on the disk before the catalog says so, and the catalog before rows are deleted."""
    records = [c for c in calls if (c.op, c.path) == RECORD]
    renames = [c for c in calls if c.op == "rename" and c.to.startswith("segments/")]
    for rename in renames:
        name_flush = flushed(calls, rename, "segments")
        assert name_flush.ended < first(calls, *RECORD, after=rename.begun).begun
    deletions = [c for c in calls if c.op == "unlink" and c.path.startswith("segments/")]
    for record in records:
        flush = first(calls, "fsync", "catalog.sqlite-wal", after=record.ended)
        follows = [c.begun for c in renames + deletions if c.begun > record.begun]
        assert flush.ended < min(follows, default=flush.ended + 1)
    return renames, deletions


def flushed(calls, rename, directory):
    """The flush of a new file's name, which follows that of its contents."""
    assert rename.path != rename.to
    written = [c for c in calls if c.path == rename.path and c is not rename]
    last = max(c.ended for c in written if c.op == "write")
    flush = first(calls, "fsync", rename.path, after=last)
    assert flush.ended < rename.begun
    assert all(c.ended < rename.begun for c in written)
    return first(calls, "fsync", directory, after=rename.ended)


def first(calls, op, path, *, after):
    later = [c for c in calls if (c.op, c.path) == (op, path) and c.begun > after]
    assert later, f"no {op} of {path} follows"
    return later[0]


def test_rows_are_on_the_disk_before_the_catalog_says_so(large):
    renames, deletions = assert_in_order(large.calls)
    assert len(renames) >= 5
    files = [f"segments/{file.name}" for file in (large.filled / "segments").iterdir()]
    assert sorted(rename.to for rename in renames) == sorted(files)
    assert deletions == []


def test_a_calibration_is_on_the_disk_before_the_first_rows_are_written(large):
    (rename,) = [c for c in large.calls if c.op == "rename" and c.to == CALIBRATION]
    name_flush = flushed(large.calls, rename, "")
    first_rows = next(c for c in large.calls if c.path.startswith("segments/"))
    assert name_flush.ended < first_rows.begun


def test_rows_are_deleted_when_the_catalog_no_longer_needs_them(drivers, large, logged):
    renames, deletions = assert_in_order(logged(large.filled, ("compact", {})))
    assert len(renames) == 1
    assert len(deletions) == len(list((large.filled / "segments").iterdir()))


def test_the_lock_of_a_killed_process_is_free(drivers, small, tmp_path):
    path = shutil.copytree(small.empty, tmp_path.resolve() / "index")
    (n,) = [n for n, call in enumerate(small.calls, 1) if call.op == "rename"][:1]
    assert drivers.run(path, small.add, fault=(n, "kill")).killed
    assert (path / "writer.lock").exists()
    assert drivers.run(path, small.add).result["added"] == small.count
