"""The places of images in a conversation, and which image of a row belongs to each.

Images stand in a row in one of three ways: as parts of a turn's content that hold them; in a
column of their own with places for them, which are empty image parts or `<image>` in the text; or
in a column alone, and then come before the first words of the user.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_whole_number, kind_of
from forvalue_index.sources.images import is_nothing
from forvalue_index.sources.sample import IMAGE_MARK

# Fields of a turn that hold its images.
TURN_IMAGES = ("images", "image")
NOT_OF_IMAGES = {"type", "text", "index"}


@dataclass
class Slot:
    """A place for an image; `value` is None until it is known what the row says of it.

    `index` says which one of the row's column it is, where the row says so.
    """

    location: str
    value: Any = None
    index: int | None = None


@dataclass
class Turn:
    """A message in the making: its parts are text, and places for images."""

    role: str
    parts: list[str | Slot]
    extra: Mapping[str, Any] = field(default_factory=dict)


def image_slot(part: Mapping[Any, Any], location: str) -> Slot:
    """A part that holds an image, or is a place for one of the row's column."""
    held = {k: v for k, v in part.items() if k not in NOT_OF_IMAGES and not is_nothing(v)}
    index = part.get("index")
    if index is not None and not is_whole_number(index):
        raise BadSampleError(f"the index of {location} is {kind_of(index)}, wanted a number")
    return Slot(location, held or None, None if held or index is None else int(index))


def image_values(value: Any, column: str) -> list[tuple[str, Any]]:
    """What a cell holds of images, each with its location: nothing, one, or a list."""
    values = _listed(value)
    named = [(f"image {n} of '{column}'", one) for n, one in enumerate(values, 1)]
    if len(values) == 1:
        named = [(f"'{column}'", values[0])]
    return [(location, one) for location, one in named if not is_nothing(one)]


def _listed(value: Any) -> list[Any]:
    """What a cell holds, as a list: arrays of objects and of images are lists, too."""
    if isinstance(value, str) and value.startswith("["):  # a list in a cell of a CSV file
        with suppress(ValueError):
            value = json.loads(value)
    many = isinstance(value, list | tuple) or (
        isinstance(value, np.ndarray) and (value.dtype == object or value.ndim == 4)
    )
    return list(value) if many else [value]


def holds_nothing(value: Any) -> bool:
    """Whether a cell for images holds none."""
    return not image_values(value, "")


def taken_images(others: dict[str, Any], location: str) -> list[tuple[str, Any]]:
    """The images that a turn has beside its text, taken out of its other fields."""
    cells = {name: image_values(others.get(name), f"{name} of {location}") for name in TURN_IMAGES}
    filled = [name for name, images in cells.items() if images]
    if len(filled) > 1:
        raise BadSampleError(f"{location} has images and image; use one of them")
    for name in filled:
        del others[name]
    return [image for name in filled for image in cells[name]]


def with_images(
    parts: list[str | Slot], images: list[tuple[str, Any]], location: str
) -> list[str | Slot]:
    """A turn that has its images beside its text, `at` a place in it or before all of it."""
    text = parts[0]
    if len(parts) != 1 or not isinstance(text, str):
        raise BadSampleError(f"{location} has images, and more among its parts; use one of these")
    placed: list[str | Slot] = []
    start = 0
    for where, value in images:
        at = value.get("at", 0) if isinstance(value, Mapping) else 0
        if isinstance(at, bool) or not isinstance(at, int) or not start <= at <= len(text):
            raise BadSampleError(f"{where} is at {at!r}, wanted {start} to {len(text)}, in order")
        placed += [text[start:at], Slot(where, value)]
        start = at
    return [*placed, text[start:]]


def fill(turns: list[Turn], images: list[tuple[str, Any]], column: str) -> None:
    """Put the images of a row's column where its turns have places for them."""
    empty = _empty_slots(turns)
    if images and not empty:
        empty = _marked(turns) or _at_the_front(turns, len(images))
    if len(empty) != len(images):
        held = f"'{column}' holds {len(images)}" if column else "no column holds any"
        raise BadSampleError(
            f"there are {len(empty)} places for images, as parts of type image or {IMAGE_MARK}, "
            f"and {held}; give each place one"
        )
    for slot, index in zip(empty, _indices(empty), strict=True):
        slot.location, slot.value = images[index]


def _indices(slots: list[Slot]) -> list[int]:
    """Which image belongs to each of some places: as they say, or in order where none says."""
    indices = [slot.index for slot in slots]
    known = [index for index in indices if index is not None]
    in_order = list(range(len(slots)))
    if not known:
        return in_order
    if sorted(known) != in_order:
        raise BadSampleError(
            f"its image parts have the indices {indices}, wanted each of 0 to {len(slots) - 1} "
            "once, or none"
        )
    return known


def _empty_slots(turns: list[Turn]) -> list[Slot]:
    slots = [part for turn in turns for part in turn.parts if isinstance(part, Slot)]
    return [slot for slot in slots if slot.value is None]


def _marked(turns: list[Turn]) -> list[Slot]:
    """Make places of the marks in texts; returns them."""
    for turn in turns:
        parts: list[str | Slot] = []
        for part in turn.parts:
            if not isinstance(part, str):
                parts.append(part)
                continue
            first, *others = part.split(IMAGE_MARK)
            parts.append(first)
            for other in others:
                parts += [Slot(""), other]
        turn.parts = parts
    return _empty_slots(turns)


def _at_the_front(turns: list[Turn], count: int) -> list[Slot]:
    """Make places before the first words of the user, or else of whoever begins."""
    asking = [turn for turn in turns if turn.role == "user"] or turns[:1]
    slots = [Slot("") for _ in range(count)]
    for turn in asking[:1]:
        turn.parts = [*slots, *turn.parts]
    return slots
