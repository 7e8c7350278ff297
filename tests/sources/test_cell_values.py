"""Values of cells that need no look at each of their parts."""

import numpy as np
import pytest

from forvalue_index.sources.cell_values import are_integers, storable


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1, -2, 0], True),
        ((1,), True),
        ([2**63 - 1, 1 - 2**63], True),
        ([], False),
        ([1, 2**63], False),
        ([-(2**63)], False),
        ([1, True], False),
        ([1, 2.0], False),
        ([1, None], False),
        ([1, "2"], False),
        ([1, [2]], False),
        ([np.int64(1)], False),
        ({"a": 1}.values(), True),
    ],
)
def test_integers_of_64_bits(values, expected):
    assert are_integers(values) is expected


def test_lists_of_integers_are_stored_as_they_are():
    given = {"a": [1, 2], "b": (3, 4), "c": [[5, 6], [7, None]], "d": [8, float("nan")]}
    expected = {"a": [1, 2], "b": [3, 4], "c": [[5, 6], [7, None]], "d": [8, None]}
    assert storable(given) == expected
    assert storable(given)["a"] is not given["a"]
