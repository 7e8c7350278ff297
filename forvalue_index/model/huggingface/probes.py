"""Tokens that a model is tried with. Nothing is taken for granted of what they stand for."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from itertools import cycle
from typing import Any

from forvalue_index.exceptions import ModelError


def plain_tokens(vocab_size: int, avoided: Collection[int] = ()) -> Iterator[int]:
    """Token ids from all over a vocabulary, again and again, none of them one of those avoided."""
    step = 7 if vocab_size % 7 else 1
    wanted = (i * step % vocab_size for i in range(1, vocab_size + 1))
    return cycle(i for i in wanted if i not in avoided)


@contextmanager
def probe_errors(name: str, model: Any) -> Iterator[None]:
    """Turn what a model raises at a few plain tokens into one line."""
    try:
        yield
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        raise ModelError(
            f"{name}: {type(model).__name__} does not read tokens alone, or not as its "
            f"configuration says: {' '.join(str(error).split())}; use another model"
        ) from error
