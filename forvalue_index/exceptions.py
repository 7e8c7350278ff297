"""Every error a caller can cause or meet. Messages say what, with which values, and what to do.

And the one way to say that an optional library is missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class ForValueError(Exception):
    """Base of all errors raised on purpose. `exit_code` is what the command line returns for it."""

    exit_code = 1


class UsageError(ForValueError):
    """An argument has a value that can never work, whatever the state of the index."""

    exit_code = 2


class FilterError(UsageError):
    """A `--where` expression is malformed, or names what there is not or what is not allowed."""


class BadSampleError(ForValueError):
    """A row of a source is not a usable sample. The message names file, line and reason."""


class SourceError(ForValueError):
    """A source cannot be read at all: missing, unreadable, of an unknown format, or empty."""


class ModelError(ForValueError):
    """A model, adapter or tokenizer cannot be loaded, or does not do what the index needs."""


class BrokenIndexError(ForValueError):
    """A directory is not an index, is of another version, or is damaged."""


class SettingsMismatchError(ForValueError):
    """An index was built with other settings, or another model, than the ones given now."""


class MissingDependencyError(ForValueError):
    """An optional library is needed for what was asked and is not installed."""


class BusyIndexError(ForValueError):
    """Another process writes to the index. The message names it."""


class ReadOnlyIndexError(ForValueError):
    """The directory of an index cannot be written to."""


def missing_extra(need: str, extra: str) -> MissingDependencyError:
    """The error of a library that comes with an extra; `need`, to its full stop, says what for."""
    return MissingDependencyError(f"{need} pip install 'forvalue-index[{extra}]'")


@contextmanager
def evaluation_extra() -> Iterator[None]:
    """Import optional libraries within. Raises MissingDependencyError where one is missing."""
    try:
        yield
    except ModuleNotFoundError as error:
        need = f"forvalue evaluate needs {error.name}, which is not installed;"
        raise missing_extra(need, "evaluate") from error
