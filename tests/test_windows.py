import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.records import BadRow, Message, Sample
from forvalue_index.windows import one_ahead, windows


def row(length):
    if length < 0:
        return BadRow("s", 1, "bad")
    return Sample((Message("user", "a" * length), Message("assistant", "b")), "s", 1)


@given(st.lists(st.integers(-1, 12), max_size=30), st.integers(1, 7), st.integers(1, 30))
def test_windows_hold_all_rows_in_order_and_end_where_they_are_full(lengths, rows, characters):
    given_rows = [row(length) for length in lengths]
    found = list(windows(given_rows, most_rows=rows, most_characters=characters))
    assert [r for window in found for r in window] == given_rows

    def size(window):
        return sum(len(m.content) for r in window if isinstance(r, Sample) for m in r.messages)

    def full(window):
        return len(window) == rows or size(window) >= characters

    assert all(full(window) and not full(window[:-1]) for window in found[:-1])
    assert all(found)


def test_no_row_makes_no_window():
    assert list(windows([], most_rows=3, most_characters=3)) == []


@pytest.mark.parametrize("count", [0, 1, 5])
def test_items_come_in_order(count):
    assert list(one_ahead(iter(range(count)))) == list(range(count))


def test_nothing_is_an_item_as_well():
    assert list(one_ahead(iter([None, False, None]))) == [None, False, None]


def test_the_next_item_is_made_while_one_is_at_work():
    """And no other one before it is asked for."""
    made, second = [], threading.Event()

    def items():
        for number in range(4):
            made.append((number, threading.current_thread() is threading.main_thread()))
            if number == 1:
                second.set()
            yield number

    coming = one_ahead(items())
    assert next(coming) == 0
    assert second.wait(10)
    assert made == [(0, False), (1, False)]
    assert list(coming) == [1, 2, 3]


def test_an_error_comes_in_its_turn():
    def items():
        yield 1
        raise ValueError("two")

    coming = one_ahead(items())
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

    coming = one_ahead(items())
    next(coming)
    assert started.wait(10)
    threading.Timer(0.05, go.set).start()
    coming.close()
    assert made == [2]
    assert threading.active_count() <= before + 1  # the timer may still end
