"""Libraries that only `forvalue evaluate` needs: where one is missing, say how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from forvalue_index.exceptions import MissingDependencyError


@contextmanager
def evaluation_extra() -> Iterator[None]:
    """Import optional libraries within. Raises MissingDependencyError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"forvalue evaluate needs {error.name}, which is not installed; "
            "pip install 'forvalue-index[evaluate]'"
        ) from error
