"""Products of parameters, of which an ordinary run takes as many as it needs.

The rest is marked `thorough`: it runs with `--thorough` alone.
"""

from collections.abc import Callable, Iterable
from itertools import combinations, product
from typing import Any

import pytest


def pairs(*axes: Iterable[Any], keep: Callable[..., bool] = lambda *_: False) -> list[Any]:
    """All choices; ordinary are as many that any two values of two axes meet, and what `keep` says.

    With two axes that is all of them.
    """
    values = [[*axis] for axis in axes]
    choices = [*product(*(range(len(axis)) for axis in values))]
    chosen = {c for c in choices if keep(*_at(values, c))}
    missing = {pair for choice in choices for pair in _pairs_of(choice)}
    missing -= {pair for choice in chosen for pair in _pairs_of(choice)}
    while missing:
        best = max(choices, key=lambda choice: len(missing & _pairs_of(choice)))
        chosen.add(best)
        missing -= _pairs_of(best)
    return _marked(values, choices, chosen)


def rarely(*choices: Any) -> list[Any]:
    """Values of one parameter that only `--thorough` tries."""
    return [pytest.param(choice, marks=pytest.mark.thorough) for choice in choices]


def _at(values: list[list[Any]], choice: tuple[int, ...]) -> tuple[Any, ...]:
    return tuple(axis[i] for axis, i in zip(values, choice, strict=True))


def _pairs_of(choice: tuple[int, ...]) -> set[Any]:
    return {*combinations(enumerate(choice), 2)}


def _marked(
    values: list[list[Any]], choices: list[tuple[int, ...]], chosen: set[tuple[int, ...]]
) -> list[Any]:
    return [
        pytest.param(*_at(values, c), marks=() if c in chosen else pytest.mark.thorough)
        for c in choices
    ]
