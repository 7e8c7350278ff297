import signal
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from forvalue_index.store import durable
from forvalue_index.store.durable import interrupts_held, replacing, whole_name, write_durably

pytestmark = pytest.mark.usefixtures("interruptible")


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "index.json"
    write_durably(path, b"one, a longer text")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def test_where_writing_fails_all_is_as_it_was(tmp_path):
    path = tmp_path / "values.csv"
    path.write_text("before")

    def fail():
        with replacing(path) as partial:
            partial.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_nobody_foresees_the_name_of_what_is_half_written(tmp_path, monkeypatch):
    """Else a link of that name would be followed, and another file written over."""
    names = set()
    for _ in range(3):
        with replacing(tmp_path / "values.csv") as partial:
            names.add(partial.name)
            assert whole_name(partial.name) == "values.csv"
    assert len(names) == 3
    monkeypatch.setattr(durable.uuid, "uuid4", lambda: uuid.UUID(int=1))
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / f"values.csv.{uuid.UUID(int=1).hex}.partial").symlink_to(mine)
    with pytest.raises(FileExistsError), replacing(tmp_path / "values.csv"):
        pass
    assert mine.read_text() == "mine"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    path = tmp_path / f"{250 * 'x'}.csv"
    write_durably(path, b"content")
    assert path.read_bytes() == b"content"


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        (f"index.json.{32 * 'a'}.partial", "index.json"),
        ("index.json.partial", "index.json"),
        ("index.json", None),
        (".partial", None),
    ],
)
def test_a_half_written_file_says_what_it_would_have_been(name, whole):
    assert whole_name(name) == whole


def test_an_interrupt_waits_for_the_end():
    steps, handler = [], signal.getsignal(signal.SIGINT)

    def work():
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
            steps.append("whole")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["whole"]
    assert signal.getsignal(signal.SIGINT) is handler


def test_without_an_interrupt_nothing_happens():
    handler = signal.getsignal(signal.SIGINT)
    with interrupts_held():
        assert signal.getsignal(signal.SIGINT) is not handler
    assert signal.getsignal(signal.SIGINT) is handler


def test_one_within_another_waits_for_the_outer_one():
    steps = []

    def work():
        with interrupts_held():
            with interrupts_held():
                signal.raise_signal(signal.SIGINT)
                steps.append("inner")
            steps.append("outer")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert steps == ["inner", "outer"]


def test_an_error_within_is_not_lost():
    def work():
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
            raise ZeroDivisionError

    with pytest.raises(KeyboardInterrupt) as caught:
        work()
    assert isinstance(caught.value.__context__, ZeroDivisionError)


def test_a_caller_that_ignores_interrupts_is_left_to_it():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupts_held():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_other_threads_have_no_signals_to_hold():
    def work():
        with interrupts_held():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(work).result() is signal.getsignal(signal.SIGINT)
