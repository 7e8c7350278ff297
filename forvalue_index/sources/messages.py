"""From the cells of a row to messages: turns of text, with images at their places.

Images stand in a row in one of three ways: as parts of a turn's content that hold them; in a
column of their own with places for them, which are empty image parts or `<image>` in the text; or
in a column alone, and then come before the first words of the user.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_whole_number, kind_of, storable, text_of
from forvalue_index.sources.images import is_nothing
from forvalue_index.sources.sample import IMAGE_MARK, TEXT_ROLE, Image, Message

OpenImage = Callable[[Any, str], Image]

SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
# Fields of a turn that hold its images.
TURN_IMAGES = ("images", "image")
IMAGE_PARTS = {"image", "image_url", "input_image"}
NOT_OF_IMAGES = {"type", "text", "index"}
TEXT_PARTS = {"text", "input_text", "output_text"}


@dataclass
class _Slot:
    """A place for an image; `value` is None until it is known what the row says of it.

    `index` says which one of the row's column it is, where the row says so.
    """

    location: str
    value: Any = None
    index: int | None = None


@dataclass
class _Turn:
    role: str
    parts: list[str | _Slot]
    extra: Mapping[str, Any] = field(default_factory=dict)


def messages_of(
    cells: Mapping[str, Any], layout: Mapping[str, str], open_image: OpenImage
) -> tuple[Message, ...]:
    """The messages of a row whose fields are in `cells`; `layout` has the names of their columns.

    Raises BadSampleError, with the reason, where there is nothing to score or an image is missing.
    """
    turns, last_column = _turns_of(cells, layout)
    images = _image_values(cells.get("images"), layout.get("images", ""))
    _fill(turns, images, layout.get("images", ""))
    return _complete(tuple(_message(turn, open_image) for turn in turns), last_column)


def _turns_of(cells: Mapping[str, Any], layout: Mapping[str, str]) -> tuple[list[_Turn], str]:
    """The turns of a row, and the column that the last one stands in."""
    if "text" in layout:
        text = text_of(cells["text"], f"'{layout['text']}'")
        return [_Turn(TEXT_ROLE, [text])], layout["text"]
    if "messages" in layout:
        column = layout["messages"]
        if not isinstance(cells["messages"], list | tuple):
            raise BadSampleError(f"'{column}' is {kind_of(cells['messages'])}, wanted a list")
        return _turns(cells["messages"], column, "user"), column
    prompt, more = cells["prompt"], cells.get("input")
    if more not in (None, ""):
        prompt = text_of(prompt, f"'{layout['prompt']}'")
        prompt = f"{prompt}\n\n{text_of(more, repr(layout['input']))}"
    turns = _turns(prompt, layout["prompt"], "user")
    answer = _turns(cells["response"], layout["response"], "assistant")
    return turns + answer, layout["response"]


def _turns(value: Any, column: str, role: str) -> list[_Turn]:
    """Read a cell as turns: text is one turn of `role`, a list is a list of messages."""
    if not isinstance(value, list | tuple):
        return [_Turn(role, [text_of(value, f"'{column}'")])]
    return [_turn(turn, f"turn {n} of '{column}'") for n, turn in enumerate(value, 1)]


def _turn(turn: Any, location: str) -> _Turn:
    """One message of a list, as OpenAI spells it or as ShareGPT does."""
    if not isinstance(turn, Mapping):
        raise BadSampleError(
            f"{location} is {kind_of(turn)}, wanted an object with role and content"
        )
    sharegpt = "from" in turn and "role" not in turn
    names = ("from", "value") if sharegpt else ("role", "content")
    # A null extra is how Parquet spells an absent one: dropping it keeps hashes equal over formats.
    others = {k: v for k, v in turn.items() if k not in names and v is not None}
    images = _taken_images(others, location)
    extra = {k: storable(v) for k, v in others.items()}
    calls_tools = turn.get(names[0]) == "assistant" and bool(extra.get("tool_calls"))
    role, content = _role_and_content(turn, names, location, calls_tools=calls_tools)
    role = SHAREGPT_ROLES.get(role, role) if sharegpt else role
    parts = _parts(content, location)
    return _Turn(role, _with_images(parts, images, location) if images else parts, extra)


def _taken_images(others: dict[str, Any], location: str) -> list[tuple[str, Any]]:
    """The images that a turn has beside its text, taken out of its other fields."""
    cells = {name: _image_values(others.get(name), f"{name} of {location}") for name in TURN_IMAGES}
    filled = [name for name, images in cells.items() if images]
    if len(filled) > 1:
        raise BadSampleError(f"{location} has images and image; use one of them")
    for name in filled:
        del others[name]
    return [image for name in filled for image in cells[name]]


def _role_and_content(
    turn: Mapping[Any, Any], names: tuple[str, str], location: str, *, calls_tools: bool
) -> tuple[str, Any]:
    """What a turn has under two names; one that calls tools need not say anything."""
    missing = [name for name in names if name not in turn]
    if missing and not (calls_tools and missing == ["content"]):
        raise BadSampleError(f"{location} has no {' and no '.join(missing)}")
    role = text_of(turn[names[0]], f"the role of {location}")
    if role in ("", TEXT_ROLE):
        raise BadSampleError(f"the role of {location} is '{role}', wanted user, assistant, ...")
    content = turn.get(names[1])
    return role, "" if content is None and calls_tools else content


def _parts(content: Any, location: str) -> list[str | _Slot]:
    """What a turn says: text alone, or a list of parts that are text or images."""
    if not isinstance(content, list | tuple):
        return [text_of(content, f"the content of {location}")]
    return [_part(part, f"part {n} of {location}") for n, part in enumerate(content, 1)]


def _part(part: Any, location: str) -> str | _Slot:
    if isinstance(part, str):
        return text_of(part, location)
    if not isinstance(part, Mapping):
        raise BadSampleError(f"{location} is {kind_of(part)}, wanted text or an image")
    kind = part.get("type") or ("text" if part.get("text") is not None else "image")
    known = kind if isinstance(kind, str) else None
    if known in TEXT_PARTS:
        return text_of(part.get("text"), f"the text of {location}")
    if known in IMAGE_PARTS:
        return _image_slot(part, location)
    raise BadSampleError(f"{location} has the type {kind!r}, and only text and images are read")


def _image_slot(part: Mapping[Any, Any], location: str) -> _Slot:
    """A part that holds an image, or is a place for one of the row's column."""
    held = {k: v for k, v in part.items() if k not in NOT_OF_IMAGES and not is_nothing(v)}
    index = part.get("index")
    if index is not None and not is_whole_number(index):
        raise BadSampleError(f"the index of {location} is {kind_of(index)}, wanted a number")
    return _Slot(location, held or None, None if held or index is None else int(index))


def _image_values(value: Any, column: str) -> list[tuple[str, Any]]:
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
    return not _image_values(value, "")


def _with_images(
    parts: list[str | _Slot], images: list[tuple[str, Any]], location: str
) -> list[str | _Slot]:
    """A turn that has its images beside its text, `at` a place in it or before all of it."""
    text = parts[0]
    if len(parts) != 1 or not isinstance(text, str):
        raise BadSampleError(f"{location} has images, and more among its parts; use one of these")
    placed: list[str | _Slot] = []
    start = 0
    for where, value in images:
        at = value.get("at", 0) if isinstance(value, Mapping) else 0
        if isinstance(at, bool) or not isinstance(at, int) or not start <= at <= len(text):
            raise BadSampleError(f"{where} is at {at!r}, wanted {start} to {len(text)}, in order")
        placed += [text[start:at], _Slot(where, value)]
        start = at
    return [*placed, text[start:]]


def _fill(turns: list[_Turn], images: list[tuple[str, Any]], column: str) -> None:
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


def _indices(slots: list[_Slot]) -> list[int]:
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


def _empty_slots(turns: list[_Turn]) -> list[_Slot]:
    slots = [part for turn in turns for part in turn.parts if isinstance(part, _Slot)]
    return [slot for slot in slots if slot.value is None]


def _marked(turns: list[_Turn]) -> list[_Slot]:
    """Make places of the marks in texts; returns them."""
    for turn in turns:
        parts: list[str | _Slot] = []
        for part in turn.parts:
            if not isinstance(part, str):
                parts.append(part)
                continue
            first, *others = part.split(IMAGE_MARK)
            parts.append(first)
            for other in others:
                parts += [_Slot(""), other]
        turn.parts = parts
    return _empty_slots(turns)


def _at_the_front(turns: list[_Turn], count: int) -> list[_Slot]:
    """Make places before the first words of the user, or else of whoever begins."""
    asking = [turn for turn in turns if turn.role == "user"] or turns[:1]
    slots = [_Slot("") for _ in range(count)]
    for turn in asking[:1]:
        turn.parts = [*slots, *turn.parts]
    return slots


def _message(turn: _Turn, open_image: OpenImage) -> Message:
    content, images = "", []
    for part in turn.parts:
        if isinstance(part, str):
            content += part
        else:
            image = open_image(part.value, part.location)
            images.append(replace(image, at=len(content)))
    return Message(turn.role, content, turn.extra, tuple(images))


def _complete(messages: tuple[Message, ...], column: str) -> tuple[Message, ...]:
    """Pass the messages on if there is something to score at their end."""
    roles = [message.role for message in messages]
    if not messages:
        raise BadSampleError(f"'{column}' is empty; wanted turns that end with the assistant's")
    if roles[-1] not in ("assistant", TEXT_ROLE):
        told = f"the last turn is '{roles[-1]}'" if "assistant" in roles else "no assistant turn"
        raise BadSampleError(f"'{column}': {told}; wanted turns that end with the assistant's")
    if not messages[-1].content.strip() and not messages[-1].extra.get("tool_calls"):
        raise BadSampleError(f"'{column}' is empty or blank at its end; nothing there to score")
    return messages
