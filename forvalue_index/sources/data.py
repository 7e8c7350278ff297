"""What a user passes as data."""

from __future__ import annotations

from typing import Any

Data = Any
"""A path, a glob, `-` for standard input, a list of paths, a `datasets.Dataset`, or dicts."""
