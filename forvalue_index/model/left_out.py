"""What a chat template leaves out of a conversation: refused where the model would miss it."""

from __future__ import annotations

from collections.abc import Iterator

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import Chat, ChatTemplate
from forvalue_index.model.marked_turns import (
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
)
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.training_marks import TRAINING_MARKS

# Fields of turns by which data link them or weigh them; none of them is said by anybody.
TOOL_ROLES = ("tool", "function")
NOT_SAID = {"role", CONTENT, CALLS, *TRAINING_MARKS, *REASONING_FIELDS}


def refuse_left_out(template: ChatTemplate, chat: Chat, text: str, places: Places) -> None:
    """Raise BadSampleError where a template leaves out what is said, called, thought or offered."""
    for slot in slots_of(chat):
        if _is_left_out(template, chat, text, places, slot):
            raise BadSampleError(_leaves_out(chat, slot))
    if chat.tools is not None and _renders(template, chat._replace(tools=None), text):
        raise BadSampleError(
            "the chat template leaves out the tools; use a model whose template renders them, give "
            "one with --chat-template, or leave them out on purpose with --ignore tools"
        )


def unrendered_fields(template: ChatTemplate, chat: Chat, places: Places) -> Iterator[str]:
    """The fields of turns that the template does not render, and that are no reason to refuse."""
    for slot, positions in places.positions.items():
        if not positions and slot.field in (NAME, THOUGHT, *REASONING_FIELDS):
            yield slot.field
    for turn in chat.turns:
        yield from (name for name in turn.keys() - NOT_SAID if not template.mentions(name))


def _is_left_out(template: ChatTemplate, chat: Chat, text: str, places: Places, slot: Slot) -> bool:
    """Whether what a slot holds is missing, and the model is to read or say it."""
    turn = chat.turns[slot.turn]
    if places.positions.get(slot):
        return False
    if slot.field == NAME and turn["role"] in TOOL_ROLES:
        return False
    if slot not in places.marks:
        return text_of(chat, slot).strip() not in text
    if slot.field in (THOUGHT, *REASONING_FIELDS):
        return _is_never_thought(template, chat, places, slot)
    return slot.field != CALLS or _renders(template, _without_call(chat, slot), text)


def _renders(template: ChatTemplate, chat: Chat, text: str) -> bool:
    """Whether a conversation is rendered to a text all the same."""
    try:
        return template.rendered(chat) == text
    except BadSampleError:
        return False


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
    if slot.field == CONTENT:
        return (
            f"the chat template leaves out what the role {role} says in {where}; use a model whose "
            "template renders it, give one with --chat-template, or leave that turn out"
        )
    return (
        f"the chat template leaves out {slot.field} of {where} ({role}); use a model whose "
        "template renders it, give one with --chat-template, or leave it out on purpose with "
        f"--ignore {slot.field}"
    )
