"""Ids of rows: text, or whole numbers in any type that data come in."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from numbers import Real
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_whole_number, kind_of, text_of

# Whole numbers as pandas writes floats to CSV.
WHOLE_FLOAT = re.compile(r"(0|-?[1-9][0-9]{0,15})\.0\Z")
# Floats up to here have a neighbour on each side at a distance of 1 or less.
MOST_EXACT = 2**53


def own_id(value: Any, *, is_text: bool = False) -> str | None:
    """The id of a row as text. pandas makes floats of integers where one is missing, and NaN of it.

    In a format where everything `is_text`, 1.0 may be such a number. Raises BadSampleError.
    """
    if value is None or isinstance(value, str):
        text = text_of(value, "the id") if value else None
        return text.removesuffix(".0") if text and is_text and WHOLE_FLOAT.match(text) else text
    if is_whole_number(value):
        return str(int(value))
    if not isinstance(value, Real | Decimal) or isinstance(value, bool):
        raise BadSampleError(f"the id is {kind_of(value)}, wanted text or int")
    number = value if isinstance(value, Decimal) else float(value)
    if math.isnan(number):
        return None
    if math.isinf(number) or number != int(number):
        raise BadSampleError(f"the id is {number}, wanted text or a whole number")
    if isinstance(number, float) and abs(number) > MOST_EXACT:
        raise BadSampleError(
            f"the id is {number}, a float too large to tell whole numbers apart; write ids as "
            "integers or text, or read with --columns id= (no column is the id then)"
        )
    return str(int(number))
