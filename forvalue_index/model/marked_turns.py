"""Where a chat template puts what each turn says: by characters of private use among it.

A mark stands in what somebody says, in a thought or in the name of a function that is called. It
counts only where the rest of the text is what it is without marks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import Chat, ChatTemplate

# A plane of Unicode that has private characters alone, and what is left of it for other marks.
FIRST_MARK, MARKS = 0xF0000, re.compile("[\U000f0000-\U000ffffd]")
OPENING, CLOSING = "\U000ffffc", "\U000ffffd"
CONTENT, NAME, CALLS = "content", "name", "tool_calls"
# A mark behind the first letter of content, too: some templates render the end of it alone.
BEGINNING = "beginning"
# The thought with which content may begin, up to this tag.
THOUGHT, THOUGHT_ENDS = "thought", "</think>"
IN_CONTENT = (BEGINNING, THOUGHT)
# Under these names data hold thoughts, and transformers hands each of them on as the others.
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")


class Slot(NamedTuple):
    """A text that a turn brings: under a field, and at a number where the field holds several."""

    turn: int
    field: str
    number: int = 0


class Mark(NamedTuple):
    """A place for a mark in the text of a slot: behind its last letter, or in its middle.

    Behind it, white space at the end is treated as ever; in the middle, what text ends with is.
    """

    slot: Slot
    in_middle: bool = False


class Places(NamedTuple):
    """Where in a rendered conversation the marks of slots stand: [] where a slot is left out.

    `marks` are those that leave the rest as it is; there is none for a slot that no mark leaves so.
    """

    marks: dict[Slot, Mark]
    positions: dict[Slot, list[int]]

    def of_turn(self, turn: int) -> Iterator[tuple[Mark, int]]:
        """The marks of a turn that stand at one place, last first, with their places."""
        for slot, mark in reversed(self.marks.items()):
            if slot.turn == turn and len(self.positions[slot]) == 1:
                yield mark, self.positions[slot][0]


def find_places(template: ChatTemplate, chat: Chat, text: str) -> Places:
    """Where what each turn of a conversation says stands in the text that it is rendered to.

    Raises BadSampleError where the text holds marks already.
    """
    if MARKS.search(text):
        raise BadSampleError(
            "its text holds characters of a plane of private use (U+F0000 to U+FFFFD), by which "
            "turns are found; take them out"
        )
    slots = list(slots_of(chat))
    for in_middle in (False, True):
        marks = [Mark(slot, in_middle) for slot in slots]
        positions = _positions(template, chat, text, marks)
        if positions is not None:
            return Places(dict(zip(slots, marks, strict=True)), positions)
    return _one_by_one(template, chat, text, slots)


def _one_by_one(template: ChatTemplate, chat: Chat, text: str, slots: Sequence[Slot]) -> Places:
    """The places of slots of which some change what else is rendered, wherever they are marked."""
    marks: dict[Slot, Mark] = {}
    places: dict[Slot, list[int]] = {}
    for mark in (Mark(slot, in_middle) for slot in slots for in_middle in (False, True)):
        if mark.slot not in marks:
            positions = _positions(template, chat, text, [mark])
            if positions is not None:
                marks[mark.slot] = mark
                places |= positions
    return Places(marks, places)


def slots_of(chat: Chat) -> Iterator[Slot]:
    """The texts of all turns that may be marked, in the order in which they are said."""
    for number, turn in enumerate(chat.turns):
        for name in (NAME, *_thoughts(turn)):
            if _says(turn.get(name)):
                yield Slot(number, name)
        content = turn.get(CONTENT)
        if isinstance(content, str) and _says(content.rpartition(THOUGHT_ENDS)[0]):
            yield Slot(number, THOUGHT)
        elif isinstance(content, str) and len(content.strip()) > 1:
            yield Slot(number, BEGINNING)
        parts = content if isinstance(content, list) else [{"text": content}]
        for part_number, part in enumerate(parts):
            if _says(part.get("text")):
                yield Slot(number, CONTENT, part_number)
        calls = turn.get(CALLS)
        for call_number, call in enumerate(calls if isinstance(calls, list) else ()):
            if _says(_function(call).get(NAME)):
                yield Slot(number, CALLS, call_number)


def _thoughts(turn: Mapping[str, Any]) -> list[str]:
    """The fields that hold different thoughts."""
    by_text = {str(turn[name]): name for name in reversed(REASONING_FIELDS) if turn.get(name)}
    return list(by_text.values())


def text_of(chat: Chat, slot: Slot) -> str:
    """What a slot holds."""
    value = chat.turns[slot.turn][CONTENT if slot.field in IN_CONTENT else slot.field]
    if isinstance(value, str):
        return value
    entry = value[slot.number]
    return str(entry["text"] if slot.field == CONTENT else _function(entry)[NAME])


def marked(chat: Chat, marks: Sequence[Mark]) -> Chat:
    """A conversation with marks: the first is FIRST_MARK, each following one the next character."""
    turns = list(chat.turns)
    for number, mark in enumerate(marks):
        slot = mark.slot
        text = text_of(chat._replace(turns=turns), slot)
        at = _place(text, mark)
        said = text[:at] + chr(FIRST_MARK + number) + text[at:]
        turns[slot.turn] = _saying(turns[slot.turn], slot, said)
    return chat._replace(turns=turns)


def _positions(
    template: ChatTemplate, chat: Chat, text: str, marks: Sequence[Mark]
) -> dict[Slot, list[int]] | None:
    """Where the marks stand in the text, or None where they change what else is rendered."""
    try:
        found = template.rendered(marked(chat, marks))
    except BadSampleError:
        return None
    if MARKS.sub("", found) != text:
        return None
    positions: dict[Slot, list[int]] = {mark.slot: [] for mark in marks}
    for before, match in enumerate(MARKS.finditer(found)):
        slot = marks[ord(match.group()) - FIRST_MARK].slot
        positions[slot].append(match.start() - before)
    return positions


def _place(text: str, mark: Mark) -> int:
    """Where in the text of a slot its mark stands."""
    part = text.partition(THOUGHT_ENDS)[0] if mark.slot.field == THOUGHT else text
    if mark.in_middle:
        return len(part) // 2
    if mark.slot.field == BEGINNING:
        return len(text) - len(text.lstrip()) + 1
    return len(part.rstrip())


def _saying(turn: dict[str, Any], slot: Slot, text: str) -> dict[str, Any]:
    """A turn with another text in a slot."""
    field = CONTENT if slot.field in IN_CONTENT else slot.field
    value = turn[field]
    if isinstance(value, str):
        return {**turn, field: text}
    entries = list(value)
    entry = entries[slot.number]
    if slot.field == CONTENT:
        changed = {**entry, "text": text}
    elif _function(entry) is entry:
        changed = {**entry, NAME: text}
    else:
        changed = {**entry, "function": {**entry["function"], NAME: text}}
    entries[slot.number] = changed
    return {**turn, slot.field: entries}


def _function(call: Any) -> Mapping[str, Any]:
    """What a call says of its function, whether in an object of its own or not."""
    if not isinstance(call, Mapping):
        return {}
    inner = call.get("function")
    return inner if isinstance(inner, Mapping) else call


def with_written_arguments(chat: Chat) -> Chat:
    """A conversation with the arguments of calls as JSON text."""

    def written(call: Any) -> Any:
        arguments = _function(call).get("arguments")
        if not isinstance(arguments, Mapping):
            return call
        return with_arguments(call, json.dumps(arguments, ensure_ascii=False))

    turns = [
        {**turn, CALLS: list(map(written, turn[CALLS]))} if turn.get(CALLS) else turn
        for turn in chat.turns
    ]
    return chat._replace(turns=turns)


def with_arguments(call: Any, arguments: Any) -> Any:
    """A call with other arguments, text where those that it has are; as it is where it has none."""
    function = _function(call)
    before = function.get("arguments")
    if not before:
        return call
    if isinstance(before, str) and not isinstance(arguments, str):
        arguments = json.dumps(arguments)
    changed = {**function, "arguments": arguments}
    return changed if function is call else {**call, "function": changed}


def _says(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())
