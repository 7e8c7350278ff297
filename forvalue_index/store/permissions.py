"""What of an index one may read."""

from __future__ import annotations

import os
from pathlib import Path


def is_unreadable(path: Path) -> bool:
    """Whether the right to read a file is lacking."""
    # Not by opening it: to close a database would let go of all locks of this process on it.
    try:
        path.stat()
    except OSError as error:
        return isinstance(error, PermissionError)
    return not os.access(path, os.R_OK)
