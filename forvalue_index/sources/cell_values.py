"""Single values of a row: text, and what of the rest JSON and databases can hold."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from decimal import Decimal
from numbers import Integral
from typing import Any, TypeGuard

from forvalue_index.exceptions import BadSampleError

# Where cells come from: of Arrow, objects have all fields of all objects, and of CSV, all is text.
JSON, ARROW, CSV = "json", "arrow", "csv"
LARGEST = 2**63 - 1
# NUL is refused by PostgreSQL, half a surrogate pair by every UTF-8 encoder.
UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def text_of(value: Any, location: str) -> str:
    """A value that is text. Raises BadSampleError, naming its location, for any other."""
    if not isinstance(value, str):
        raise BadSampleError(f"{location} is {kind_of(value)}, wanted text")
    if UNSTORABLE.search(value):
        raise BadSampleError(f"{location} holds a NUL or something that is not UTF-8; clean it")
    return value


def kind_of(value: Any) -> str:
    """What messages call the type of a value."""
    name = type(value).__name__
    return {"str": "text", "dict": "object", "NoneType": "null"}.get(name, name)


def is_whole_number(value: Any) -> bool:
    """Whether a value is an integer, of Python or of numpy. True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_absent(value: Any) -> bool:
    """Whether a cell holds nothing: null, or what pandas writes for it."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def is_empty(value: Any) -> bool:
    """Whether a cell holds nothing, or text or a list or an object with nothing in it."""
    return is_absent(value) or (isinstance(value, str | list | tuple | Mapping) and not value)


def are_integers(values: Collection[Any]) -> bool:
    """Whether all are integers of 64 bits: token ids beside a text, of which no single one matters.

    Telling so takes a twentieth of the time of looking at each in Python.
    """
    return set(map(type, values)) == {int} and min(values) >= -LARGEST and max(values) <= LARGEST


def is_list(value: Any) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    """Whether a value is a list, as JSON or as Python has it."""
    return isinstance(value, list | tuple)


def parsed(value: Any, opening: str = "[{") -> Any:
    """What JSON text holds that begins with one of `opening`; any other value as it is.

    The arrays in which pandas has lists become lists.
    """
    if hasattr(value, "tolist"):
        return value.tolist()
    if not isinstance(value, str) or value.lstrip()[:1] not in set(opening):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def without_nulls(value: Any) -> Any:
    """A value without the null fields of its objects, which a struct of Arrow has for all rows."""
    if isinstance(value, Mapping):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return [without_nulls(item) for item in value] if is_list(value) else value


def storable(value: Any) -> Any:
    """Convert to what JSON can hold; what is not finite becomes None."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float | Decimal):
        number = float(value)  # Of a large Decimal that is infinite.
        return number if math.isfinite(number) else None
    if isinstance(value, Mapping):
        return {storable(str(name)): storable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return list(value) if are_integers(value) else [storable(item) for item in value]
    return _told(value)


def _told(value: Any) -> Any:
    """What is said of a value of a type that JSON lacks: text, a date, an image, an array."""
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return storable(text) if "\ufffd" not in text else f"<{len(value)} bytes>"
    if hasattr(value, "width") and hasattr(value, "height"):
        return f"<image {value.width} x {value.height}>"
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return storable(value.tolist()) if hasattr(value, "tolist") else storable(str(value))
