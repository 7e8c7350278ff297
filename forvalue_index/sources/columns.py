"""From a row's columns to a sample: which column plays which part, and what makes a row unusable.

`find_columns` says, once per set of columns, which column holds which field. `to_sample` checks
one row and converts it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from numbers import Real
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.sources.cell_values import is_whole_number, kind_of, storable, text_of
from forvalue_index.sources.images import ImageFiles
from forvalue_index.sources.messages import holds_nothing, messages_of
from forvalue_index.sources.sample import Sample

FIELDS = ("prompt", "response", "messages", "text", "images", "id")
# Field -> lower-case column, in order of preference.
CONVENTIONS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "prompt", "response": "completion"},
    {"prompt": "question", "response": "answer"},
    {"prompt": "instruction", "input": "input", "response": "output"},
    {"text": "text"},
)
OPTIONAL = {"input"}
# Whole numbers as pandas writes floats to CSV.
WHOLE_FLOAT = re.compile(r"(0|-?[1-9][0-9]{0,15})\.0\Z")
# Floats up to here have a neighbour on each side at a distance of 1 or less.
MOST_EXACT = 2**53
# How a mapping says that no column is the id.
NO_ID = ("id", "")
# Fields that go with every convention.
BESIDE = {"id": ("id",), "images": ("images", "image")}


def parse_columns(text: str) -> dict[str, str]:
    """Read `prompt=Q,response=A` as field -> column in the data."""
    columns: dict[str, str] = {}
    for part in text.split(","):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        given = column or field == "id"  # id= says that no column is the id
        if not (field and equals and given) or field in columns:
            raise UsageError(
                f"'{part}' in columns '{text}' is malformed or repeated: write FIELD=COLUMN,... "
                f"with fields {', '.join(FIELDS)}"
            )
        columns[field] = column
    return checked_columns(columns)


def to_sample(
    row: Mapping[Any, Any],
    columns: Mapping[str, str] | None = None,
    *,
    images: ImageFiles | None = None,
    source: str = "",
    position: int = 0,
    typed: bool = True,
) -> Sample:
    """Convert one row; `images` opens its images, by default those below the working directory.

    Of a format that is not `typed`, as CSV, the text 1.0 may be a number.
    The BadSampleError of a bad one gives the reason, not the place.
    """
    row = {str(name): value for name, value in row.items()}
    layout = dict(find_columns(tuple(row), tuple((columns or {}).items())))
    images = images or ImageFiles(Path.cwd())
    layout = _with_filled_images(layout, row, columns or {})
    if "images" in layout and not images.concern(row[layout["images"]]):
        del layout["images"]
    cells = {field: row[column] for field, column in layout.items()}
    return Sample(
        messages=messages_of(cells, layout, images.read),
        source=source,
        position=position,
        own_id=_own_id(cells.get("id"), typed=typed),
        metadata=storable(_beside_fields(row, layout)),
    )


def _beside_fields(row: Mapping[str, Any], layout: Mapping[str, str]) -> dict[str, Any]:
    """What a row holds in columns that play no part."""
    used = layout.values()
    others = {name: value for name, value in row.items() if name not in used}
    return {name: value for name, value in others.items() if not _is_empty_image(name, value)}


def _with_filled_images(
    layout: dict[str, str], row: Mapping[str, Any], columns: Mapping[str, str]
) -> dict[str, str]:
    """The layout with that column of images which holds some, where there are two."""
    usual = [name for name in row if name.lower() in BESIDE["images"]]
    if len(usual) < 2 or "images" in columns:
        return layout
    filled = [name for name in usual if not holds_nothing(row[name])]
    if len(filled) > 1:
        raise BadSampleError(
            f"the columns {' and '.join(filled)} both hold images; say which one is meant with "
            f"--columns images={filled[0]}"
        )
    return layout | {"images": (filled or usual)[0]}


def _is_empty_image(name: str, value: Any) -> bool:
    return name.lower() in BESIDE["images"] and holds_nothing(value)


def checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """A mapping of fields to columns, as it is. Raises UsageError for a field there is not."""
    unknown = sorted(columns.keys() - set(FIELDS))
    if unknown:
        raise UsageError(
            f"columns names unknown fields: {', '.join(unknown)}; use {', '.join(FIELDS)}"
        )
    return dict(columns)


@lru_cache(maxsize=1024)
def find_columns(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Field -> column. A mapped field wins over, and else completes, the first convention met."""
    chosen = dict(mapped)
    listing = ", ".join(names[:20]) or "(none)"
    for field, column in mapped:
        if column not in names and (field, column) != NO_ID:
            raise BadSampleError(f"no column '{column}' for {field}; the row has: {listing}")
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    for convention in CONVENTIONS:
        columns = _met(convention, chosen, by_name)
        if columns is not None:
            found = columns | _beside(chosen, by_name)
            return {field: column for field, column in found.items() if (field, column) != NO_ID}
    raise BadSampleError(
        f"no messages, no prompt with response, and no text among the columns: {listing}; "
        "map them with --columns, as in prompt=QUESTION,response=REPLY"
    )


def _met(
    convention: Mapping[str, str], chosen: Mapping[str, str], by_name: Mapping[str, str]
) -> dict[str, str] | None:
    """Field -> column by a convention, or None where fields are chosen or lack that it has not."""
    columns = {
        field: chosen.get(field, by_name.get(name, ""))
        for field, name in convention.items()
        if field in chosen or name in by_name
    }
    met = (chosen.keys() - BESIDE.keys()) <= convention.keys() <= columns.keys() | OPTIONAL
    return columns if met else None


def _beside(chosen: Mapping[str, str], by_name: Mapping[str, str]) -> dict[str, str]:
    """Field -> column of the fields that go with every convention."""
    usual = {
        field: by_name[name]
        for field, names in BESIDE.items()
        for name in reversed(names)
        if name in by_name
    }
    return usual | {field: chosen[field] for field in BESIDE if field in chosen}


def _own_id(value: Any, *, typed: bool) -> str | None:
    """The id as text. pandas makes floats of integers where one is missing, and NaN of that one."""
    if value is None or isinstance(value, str):
        text = text_of(value, "the id") if value else None
        return text.removesuffix(".0") if text and not typed and WHOLE_FLOAT.match(text) else text
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
