from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.ingest.planning import windows
from forvalue_index.sources.sample import BadRow, Message, Sample


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
