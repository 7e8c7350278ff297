"""A second record of the last change that was committed, beside the catalog.

SQLite leaves out all of its log that follows a damaged place, and a log that is lost is one that
never was: the catalog is sound then, and lacks what was committed last. This file tells.
"""

from __future__ import annotations

import errno
import json
from pathlib import Path

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.store.durable import write_durably
from forvalue_index.store.permissions import read_document

WITNESS = "committed.json"
VERSION = "version"


class Witness:
    """Keeps the version of the catalog of the index at `path`; without one, nothing is kept."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = None if path is None else path / WITNESS

    def version(self) -> int:
        """The last version that was committed; 0 in an index from before there was a witness.

        Raises BrokenIndexError where the file is damaged.
        """
        if self._path is None:
            return 0
        try:
            return int(read_document(self._path)[VERSION])
        except FileNotFoundError:
            return 0
        except PermissionError as error:
            raise BrokenIndexError(
                f"{self._path} cannot be read for lack of permission. Have its owner give you the "
                "right to read it"
            ) from error
        except (OSError, ValueError, LookupError, TypeError, ArithmeticError) as error:
            raise BrokenIndexError(
                f"{self._path} is damaged ({error}), and it says what was committed last. Restore "
                "it from a backup, or delete it and run: forvalue check INDEX"
            ) from error

    def keep(self, version: int) -> None:
        """Note a version that was committed."""
        if self._path is None:
            return
        try:
            write_durably(self._path, json.dumps({VERSION: version}).encode())
        except OSError as error:
            # What is committed stays so, though there is no room to note it.
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise

    def refuse_older(self, version: object, witnessed: int, catalog: str) -> None:
        """Raise BrokenIndexError where the catalog is of an older version than was witnessed."""
        if not isinstance(version, int) or version < witnessed:
            raise BrokenIndexError(
                f"{catalog} is at change {version!r}, and {witnessed:,} were committed: its log "
                "was damaged or lost, or an older copy was put here. Restore it from a backup. Or, "
                f"to go on without these changes, delete {self._path}, run: forvalue check INDEX "
                "--repair, then add and remove again what is missing"
            )


NO_WITNESS = Witness()
