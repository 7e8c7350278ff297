"""What a chat template leaves out of a conversation: refused where the model would miss it."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import SENTINEL, Chat, ChatTemplate
from forvalue_index.model.marked_turns import (
    BEGINNING,
    CALLS,
    CONTENT,
    FIRST_MARK,
    NAME,
    REASONING_FIELDS,
    THOUGHT,
    Places,
    Slot,
    marked,
    slots_of,
    text_of,
    with_arguments,
)
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.training_marks import TRAINING_MARKS

# Of these roles a name only says which tool it is.
TOOL_ROLES = ("tool", "function")
# Fields that are looked after here, or that data weigh turns by.
NOT_SAID = {"role", CONTENT, CALLS, *TRAINING_MARKS, *REASONING_FIELDS}


def refuse_left_out(template: ChatTemplate, chat: Chat, text: str, places: Places) -> None:
    """Raise BadSampleError where a template leaves out what is said, called, thought or offered."""
    for slot in slots_of(chat):
        if _is_left_out(template, chat, text, places, slot):
            raise BadSampleError(_leaves_out(chat, slot))
    for number, turn in enumerate(chat.turns):
        other = _with_other_arguments(chat, number) if turn.get(CALLS) else chat
        if other != chat and _renders(template, other, text):
            raise BadSampleError(_leaves_out(chat, Slot(number, CALLS)))
        if turn.get("tools") and _renders(template, _without(chat, number, {"tools"}), text):
            raise BadSampleError(
                f"the chat template leaves out the tools of turn {number + 1}; give them in a "
                "column tools, give a template that renders them with --chat-template, or leave "
                "them out on purpose with --ignore tools"
            )
    if chat.tools is not None and _renders(template, chat._replace(tools=None), text):
        raise BadSampleError(
            "the chat template leaves out the tools; use a model whose template renders them, give "
            "one with --chat-template, or leave them out on purpose with --ignore tools"
        )


def unrendered_fields(
    template: ChatTemplate, chat: Chat, text: str, places: Places
) -> Iterator[str]:
    """The fields of turns that the template does not render, and that are no reason to refuse."""
    for slot, positions in places.positions.items():
        if not positions and slot.field in (NAME, THOUGHT, *REASONING_FIELDS):
            yield slot.field
    for number, turn in enumerate(chat.turns):
        others = {name for name in turn.keys() - NOT_SAID if not _says_by(name, places, number)}
        maybe = {name for name in others if template.mentions(name)}
        yield from others - maybe
        # A word that the template has may be there for something else.
        if maybe and _renders(template, _without(chat, number, maybe), text):
            yield from maybe


def _says_by(name: str, places: Places, turn: int) -> bool:
    return bool(places.positions.get(Slot(turn, name)))


def _is_left_out(template: ChatTemplate, chat: Chat, text: str, places: Places, slot: Slot) -> bool:
    """Whether what a slot holds is missing, and the model is to read or say it."""
    turn = chat.turns[slot.turn]
    if places.positions.get(slot):
        return False
    if slot.field == NAME and turn["role"] in TOOL_ROLES:
        return False
    if slot not in places.marks:
        return text_of(chat, slot).strip() not in text
    if slot.field == BEGINNING:
        return bool(places.positions.get(Slot(slot.turn, CONTENT)))
    if slot.field in (THOUGHT, *REASONING_FIELDS):
        return _is_never_thought(template, chat, places, slot)
    return slot.field != CALLS or _renders(template, _without_call(chat, slot), text)


def _renders(template: ChatTemplate, chat: Chat, text: str) -> bool:
    """Whether a conversation is rendered to a text all the same."""
    try:
        return template.rendered(chat) == text
    except BadSampleError:
        return False


def _without(chat: Chat, turn: int, names: Collection[str]) -> Chat:
    """A conversation that lacks some fields of a turn."""
    turns = list(chat.turns)
    turns[turn] = {name: value for name, value in turns[turn].items() if name not in names}
    return chat._replace(turns=turns)


def _with_other_arguments(chat: Chat, turn: int) -> Chat:
    """A conversation in which those calls of a turn that have arguments have others."""
    turns = list(chat.turns)
    calls = [with_arguments(call, {SENTINEL: SENTINEL}) for call in turns[turn][CALLS]]
    turns[turn] = {**turns[turn], CALLS: calls}
    return chat._replace(turns=turns)


def _without_call(chat: Chat, slot: Slot) -> Chat:
    """A conversation that lacks a call; some templates write its id in place of its name."""
    turns = list(chat.turns)
    calls = turns[slot.turn][CALLS]
    others = [call for number, call in enumerate(calls) if number != slot.number]
    turns[slot.turn] = {**turns[slot.turn], CALLS: others}
    return chat._replace(turns=turns)


def _is_never_thought(template: ChatTemplate, chat: Chat, places: Places, slot: Slot) -> bool:
    """Whether a thought is left out although nothing follows its turn.

    Many templates leave out the thoughts of earlier turns on purpose, as the model never sees
    them.
    """
    if chat.turns[slot.turn]["role"] != ASSISTANT or slot.turn + 1 == len(chat.turns):
        return True
    ended = marked(chat.until(slot.turn + 1), [places.marks[slot]])
    try:
        return chr(FIRST_MARK) not in template.rendered(ended)
    except BadSampleError:
        return True


def _leaves_out(chat: Chat, slot: Slot) -> str:
    role = chat.turns[slot.turn]["role"]
    where = f"turn {slot.turn + 1}"
    if slot.field == THOUGHT:
        return (
            f"the chat template leaves out the thought of {where} ({role}); give a template that "
            "renders it with --chat-template, or take it out of what is said"
        )
    if slot.field in (CONTENT, BEGINNING):
        part = "what" if slot.field == CONTENT else "the beginning of what"
        return (
            f"the chat template leaves out {part} the role {role} says in {where}; use a model "
            "whose template renders it, give one with --chat-template, or leave that turn out"
        )
    return (
        f"the chat template leaves out {slot.field} of {where} ({role}); use a model whose "
        "template renders it, give one with --chat-template, or leave it out on purpose with "
        f"--ignore {slot.field}"
    )
