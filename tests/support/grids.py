"""Values of parameters, of which an ordinary run takes as many as it needs.

The rest is marked `thorough`: it runs with `--thorough` alone.
"""

from collections.abc import Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*axes: Iterable[Any]) -> list[Any]:
    """The whole product; in an ordinary run so many that any two values of two axes meet."""
    values = [[*axis] for axis in axes]
    choices = [*product(*(range(len(axis)) for axis in values))]
    chosen = set()
    missing = {pair for choice in choices for pair in _pairs_of(choice)}
    while missing:
        best = max(choices, key=lambda choice: len(missing & _pairs_of(choice)))
        chosen.add(best)
        missing -= _pairs_of(best)
    return [
        pytest.param(
            *(axis[i] for axis, i in zip(values, choice, strict=True)),
            marks=() if choice in chosen else pytest.mark.thorough,
        )
        for choice in choices
    ]


def rarely(*choices: Any) -> list[Any]:
    """Values of one parameter that only `--thorough` tries."""
    return [pytest.param(choice, marks=pytest.mark.thorough) for choice in choices]


def _pairs_of(choice: tuple[int, ...]) -> set[Any]:
    return {*combinations(enumerate(choice), 2)}
