"""Single values of a row: text, and what of the rest JSON and databases can hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from numbers import Integral
from typing import Any

from forvalue_index.exceptions import BadSampleError

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
        return [storable(item) for item in value]
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
