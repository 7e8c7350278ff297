"""From a row's columns to a sample: which column plays which part, and what makes a row unusable.

`conventions` says, once per set of columns, which column holds which field. `to_sample` checks
one row and converts it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.sources.cell_values import (
    ARROW,
    CSV,
    JSON,
    is_empty,
    storable,
)
from forvalue_index.sources.images import ImageFiles
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.sources.shapes.conventions import FIELDS, IGNORED, Layout, layout_of
from forvalue_index.sources.shapes.dialogues import beside_texts
from forvalue_index.sources.shapes.image_places import holds_nothing
from forvalue_index.sources.shapes.messages import messages_of
from forvalue_index.sources.shapes.own_ids import own_id
from forvalue_index.sources.shapes.tool_calls import tools_of
from forvalue_index.sources.shapes.turns import Reading

# What a turn cannot do without.
NEEDED = {"role", "content", "from", "value"}
# Text that is longer than this is named where it is not read.
LONG_TEXT = 200


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
    return _known(columns, FIELDS)


def checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """A mapping of fields to columns, as it is. Raises UsageError for a field there is not."""
    return _known(columns, (*FIELDS, IGNORED))


def _known(columns: Mapping[str, str], fields: tuple[str, ...]) -> dict[str, str]:
    unknown = sorted(columns.keys() - set(fields))
    if unknown:
        raise UsageError(
            f"columns names unknown fields: {', '.join(unknown)}; use {', '.join(FIELDS)}"
        )
    field_of: dict[str, str] = {}
    for field, column in columns.items():
        if field in ("id", IGNORED):  # what is said may be the key, too
            continue
        if (other := field_of.setdefault(column, field)) != field:
            raise UsageError(
                f"columns names '{column}' as {other} and as {field}; give each a column of its own"
            )
    return dict(columns)


def ignoring(columns: Mapping[str, str] | None, names: str | Iterable[str]) -> dict[str, str]:
    """A mapping that leaves out the columns, and fields of turns, of some names, listed or in text.

    Raises UsageError for a name that is none, and for what a turn cannot do without.
    """
    listed = names.split(",") if names and isinstance(names, str) else names
    lower = [name.strip().lower() for name in listed]
    for name in lower:
        if not name or "," in name or name in NEEDED:
            raise UsageError(
                f"--ignore cannot leave out '{name}': name columns, or fields of turns other than "
                f"{', '.join(sorted(NEEDED))}"
            )
    return {**(columns or {}), **({IGNORED: ",".join(lower)} if lower else {})}


def to_sample(
    row: Mapping[Any, Any],
    columns: Mapping[str, str] | None = None,
    *,
    images: ImageFiles | None = None,
    source: str = "",
    position: int = 0,
    origin: str = JSON,
) -> Sample:
    """Convert one row; `images` opens its images, by default those below the working directory.

    Of rows of ARROW, a null field of an object is one that it has not; of CSV, where all is text,
    the id 1.0 is a number. The BadSampleError of a bad row gives the reason, not the place.
    """
    row = {str(name): value for name, value in row.items()}
    columns = columns or {}
    layout = layout_of(row, tuple(columns.items()))
    images = images or ImageFiles(Path.cwd())
    if layout.images or "images" in columns:
        layout = _with_filled_images(layout, row, columns)
        if "images" in layout.columns and not images.concern(row[layout.columns["images"]]):
            layout = layout.without(["images"])
    cells = {field: row[column] for field, column in layout.columns.items()}
    how = _reading(columns.get(IGNORED, ""), origin == ARROW)
    messages, cut_turns = messages_of(cells, layout.columns, images.read, how)
    return Sample(
        messages=messages,
        source=source,
        position=position,
        own_id=own_id(cells.get("id"), is_text=origin == CSV),
        metadata=storable(_beside_fields(row, layout)),
        tools=tools_of(cells["tools"], layout.columns["tools"], of_arrow=how.of_arrow)
        if "tools" in cells
        else (),
        cut_turns=cut_turns,
        unread=_unread(row, layout, messages) if layout.beside else (),
    )


@lru_cache(maxsize=64)
def _reading(ignored: str, of_arrow: bool) -> Reading:
    return Reading(frozenset(filter(None, ignored.split(","))), of_arrow)


def _beside_fields(row: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """What a row holds in columns that play no part."""
    named = layout.images
    found = {n: row[n] for n in layout.beside if n not in named or not holds_nothing(row[n])}
    texts = layout.columns.get("texts")
    if texts is not None and (beside := beside_texts(row[texts])):
        found[texts] = beside
    return found


def _unread(row: Mapping[str, Any], layout: Layout, messages: Iterable[Message]) -> tuple[str, ...]:
    """The columns beside that hold long text, or what prompts are made of, and are not read.

    Text that a turn repeats as a whole is none.
    """
    found = []
    for name in layout.beside:
        value = row[name]
        is_text = isinstance(value, str)
        if not (is_text and len(value) > LONG_TEXT) and name not in layout.typical:
            continue
        nothing = not value.strip() if is_text else is_empty(value)
        said = is_text and any(value == message.content for message in messages)
        if not nothing and not said and name not in layout.silent:
            found.append(name)
    return tuple(found)


def _with_filled_images(
    layout: Layout, row: Mapping[str, Any], columns: Mapping[str, str]
) -> Layout:
    """The layout with that column of images which holds some, where there are two."""
    usual = layout.images
    if len(usual) < 2 or "images" in columns:
        return layout
    filled = [name for name in usual if not holds_nothing(row[name])]
    if len(filled) > 1:
        raise BadSampleError(
            f"the columns {' and '.join(filled)} both hold images; say which one is meant with "
            f"--columns images={filled[0]}"
        )
    read = (filled or usual)[0]
    before = layout.columns.get("images", read)
    others = tuple(name for name in (*layout.beside, before) if name != read)
    return replace(layout, columns={**layout.columns, "images": read}, beside=others)
