"""Conversations in one cell: a list of messages, JSON text of it, one message, or a transcript."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from forvalue_index.sources.cell_values import text_of
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.image_places import Turn
from forvalue_index.sources.shapes.roles import USER
from forvalue_index.sources.shapes.turns import Reading, is_message, read_turns, turns_in

# How Anthropic's HH-RLHF writes conversations.
SPEAKER = re.compile(r"\n\n(Human|Assistant):")
# How text begins that may be more than one turn; telling so is quick, and most text is none.
MAY_BE_MORE = re.compile(rf"\s*\[|{SPEAKER.pattern}")
ROLES = {"Human": USER, "Assistant": ASSISTANT}


def conversation(value: Any, column: str, role: str, how: Reading) -> list[Turn]:
    """The turns of a cell: one of `role` where it is text of no conversation.

    Raises BadSampleError, with the turn and the reason, where one is none.
    """
    if isinstance(value, str) and not MAY_BE_MORE.match(value):
        return [Turn(role, [text_of(value, f"'{column}'")])]
    value = [value] if isinstance(value, Mapping) and is_message(value) else turns_in(value)
    if isinstance(value, str) and SPEAKER.match(value):
        return _transcript(text_of(value, f"'{column}'"))
    return read_turns(value, column, role, how)


def _transcript(text: str) -> list[Turn]:
    """Turns of a text in which each begins with its speaker; one left open at the end is none."""
    _, *pieces = SPEAKER.split(text)
    said = [
        (ROLES[who], words.strip()) for who, words in zip(pieces[::2], pieces[1::2], strict=True)
    ]
    open_end = said and said[-1] == (ASSISTANT, "")
    return [Turn(role, [words]) for role, words in (said[:-1] if open_end else said)]
