"""Work of several threads: order, errors, and who waits for whom."""

import threading
import time

import pytest

from forvalue_index.threads import MOST_THREADS, n_threads, parallel_map, prefetched


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_come_in_order(count):
    assert list(prefetched(iter(range(count)))) == list(range(count))


def test_nothing_is_an_item_as_well():
    assert list(prefetched(iter([None, False, None]))) == [None, False, None]


def test_the_next_item_is_made_while_one_is_at_work():
    """And no other one before it is asked for."""
    made, second = [], threading.Event()

    def items():
        for number in range(4):
            made.append((number, threading.current_thread() is threading.main_thread()))
            if number == 1:
                second.set()
            yield number

    coming = prefetched(items())
    assert next(coming) == 0
    assert second.wait(10)
    assert made == [(0, False), (1, False)]
    assert list(coming) == [1, 2, 3]


def test_an_error_comes_in_its_turn():
    def items():
        yield 1
        raise ValueError("two")

    coming = prefetched(items())
    assert next(coming) == 1
    with pytest.raises(ValueError, match="two"):
        next(coming)


def test_closing_waits_for_the_item_in_the_making():
    started, go, made = threading.Event(), threading.Event(), []
    before = threading.active_count()

    def items():
        yield 1
        started.set()
        go.wait(10)
        made.append(2)
        yield 2

    coming = prefetched(items())
    next(coming)
    assert started.wait(10)
    threading.Timer(0.05, go.set).start()
    coming.close()
    assert made == [2]
    assert threading.active_count() <= before + 1  # the timer may still end


def test_results_come_in_the_order_of_items():
    def slower_first(number):
        time.sleep(0.02 / (1 + number))
        return number * number

    assert parallel_map(slower_first, range(20)) == [number**2 for number in range(20)]
    assert parallel_map(slower_first, []) == []


def test_items_are_worked_on_at_once(monkeypatch):
    monkeypatch.setattr("forvalue_index.threads.n_threads", lambda: 3)
    meeting = threading.Barrier(3, timeout=10)  # which nobody leaves alone
    assert sorted(parallel_map(lambda _: meeting.wait(), range(6))) == [0, 0, 1, 1, 2, 2]


def test_one_item_is_worked_on_by_the_caller():
    assert parallel_map(lambda _: threading.current_thread(), [0]) == [threading.current_thread()]


def test_the_error_of_the_first_item_is_raised_when_all_are_done():
    done = []

    def fail(number):
        if number in (1, 2):
            raise ValueError(str(number))
        time.sleep(0.01)
        done.append(number)

    with pytest.raises(ValueError, match="1"):
        parallel_map(fail, range(5))
    assert sorted(done) == [0, 3, 4]


@pytest.mark.parametrize(("usable", "expected"), [(1, 1), (3, 3), (64, MOST_THREADS)])
def test_there_are_as_many_threads_as_processors_up_to_a_limit(usable, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(usable)), raising=False)
    assert n_threads() == expected
    monkeypatch.delattr("os.sched_getaffinity")
    monkeypatch.setattr("os.cpu_count", lambda: usable)
    assert n_threads() == expected
