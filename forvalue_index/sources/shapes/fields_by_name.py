"""Columns that have the name of a field and may be something else: told by what they hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forvalue_index.sources.cell_values import is_absent, is_list, parsed
from forvalue_index.sources.shapes.tool_calls import LEGACY_TOOLS


def may_be_another(field: str, column: str) -> bool:
    """Whether a column may be something else than the field of its name."""
    if field == "tools":
        return column.lower() == LEGACY_TOOLS
    return field in ("system", "history", "choices") or column.lower() == "context"


def fits(field: str, value: Any) -> bool:
    """Whether a cell is what a field that was found by its name holds."""
    if is_absent(value):
        return True
    if field == "system":
        return isinstance(value, str)
    if field == "input":
        return isinstance(value, str) or _texts(value)
    found = parsed(value)
    if field == "choices":
        return isinstance(found, Mapping) or _texts(found)
    if field == "tools":
        return is_list(found) and all(isinstance(one, Mapping) and "name" in one for one in found)
    return is_list(found)


def _texts(value: Any) -> bool:
    return is_list(value) and all(isinstance(one, str) for one in value)
