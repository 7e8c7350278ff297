"""From the cells of a row to messages: turns of text, with images at their places."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_absent, kind_of, parsed, text_of
from forvalue_index.sources.sample import ASSISTANT, TEXT_ROLE, Image, Message
from forvalue_index.sources.shapes.dialogues import alternating_turns, best_path
from forvalue_index.sources.shapes.image_places import Turn, fill, image_values
from forvalue_index.sources.shapes.pairs import Cells, Columns, pair_turns
from forvalue_index.sources.shapes.preferences import continued, preference_turns
from forvalue_index.sources.shapes.roles import SYSTEM, USER
from forvalue_index.sources.shapes.tokens import IDS, token_message
from forvalue_index.sources.shapes.tool_calls import CALLS
from forvalue_index.sources.shapes.turns import Reading, read_turns

OpenImage = Callable[[Any, str], Image]
# The field whose column a conversation ends in, by what makes a row what it is.
ENDS_IN = ("text", "messages", "texts", "tree", "chosen", "response")
MESSAGES = "messages"


def messages_of(
    cells: Cells, columns: Columns, open_image: OpenImage, how: Reading
) -> tuple[tuple[Message, ...], int]:
    """The messages of a row whose fields are in `cells`, and how many turns are cut at its end.

    `columns` has the names of their columns. Raises BadSampleError, with the reason, where there
    is nothing to score or an image is missing.
    """
    if IDS in columns:
        return (_tokens(cells, columns),), 0
    if "text" in columns:
        turns = [Turn(TEXT_ROLE, [text_of(cells["text"], f"'{columns['text']}'")])]
    else:
        turns = _turns_of(cells, columns, how)
    if "system" in cells:
        turns = _with_system(turns, cells["system"], columns["system"])
    images = image_values(cells["images"], columns["images"]) if "images" in cells else []
    fill(turns, images, columns.get("images", ""))
    column = next(columns[field] for field in ENDS_IN if field in columns)
    return _complete([_message(turn, open_image) for turn in turns], column)


def _tokens(cells: Cells, columns: Columns) -> Message:
    if "images" in cells and image_values(cells["images"], columns["images"]):
        raise BadSampleError(
            f"'{columns['images']}' holds images, and a row of {columns[IDS]} is read without; use "
            "messages, or prompt and response"
        )
    return token_message(cells, columns)


def _turns_of(cells: Cells, columns: Columns, how: Reading) -> list[Turn]:
    """The turns of a row that is a conversation."""
    if "messages" in columns:
        return continued(
            _messages(cells["messages"], columns["messages"], how), cells, columns, how
        )
    if "texts" in columns:
        return alternating_turns(cells["texts"], columns["texts"])
    if "tree" in columns:
        return best_path(cells["tree"], columns["tree"])
    if "chosen" in columns:
        return preference_turns(cells, columns, how)
    return pair_turns(cells, columns, how)


def _messages(value: Any, column: str, how: Reading) -> list[Turn]:
    value = parsed(value, "[")
    if isinstance(value, list | tuple):
        return read_turns(value, column, USER, how)
    told = kind_of(value)
    if isinstance(value, str) and value.lstrip().startswith("["):
        told = "text that is no JSON"
    usual = column.lower() in (MESSAGES, "conversations")
    hint = "" if usual else "; map columns with --columns, as in prompt=QUESTION,response=REPLY"
    raise BadSampleError(f"'{column}' is {told}, wanted a list{hint}")


def _with_system(turns: list[Turn], value: Any, column: str) -> list[Turn]:
    """The turns after the system turn of a column of its own, which may repeat theirs."""
    if is_absent(value):
        return turns
    text = text_of(value, f"'{column}'")
    if not text.strip():
        return turns
    said = ["".join(p for p in t.parts if isinstance(p, str)) for t in turns if t.role == SYSTEM]
    if not said:
        return [Turn(SYSTEM, [text]), *turns]
    if text.strip() not in {one.strip() for one in said}:
        raise BadSampleError(
            f"'{column}' is not what the system turn of the conversation says; leave one out, as "
            f"with --ignore {column}"
        )
    return turns


def _message(turn: Turn, open_image: OpenImage) -> Message:
    content, images = "", []
    for part in turn.parts:
        if isinstance(part, str):
            content += part
        else:
            image = open_image(part.value, part.location)
            images.append(replace(image, at=len(content)))
    return Message(turn.role, content, turn.extra, tuple(images))


def _complete(messages: list[Message], column: str) -> tuple[tuple[Message, ...], int]:
    """Pass the messages on up to their last that can be scored, with how many come after it."""
    if not messages:
        raise BadSampleError(f"'{column}' is empty; wanted turns that end with the assistant's")
    read = len(messages)
    while read and messages[read - 1].role not in (ASSISTANT, TEXT_ROLE):
        read -= 1
    if not read:
        raise BadSampleError(
            f"'{column}': no assistant turn; wanted turns that end with the assistant's"
        )
    last = messages[read - 1]
    if not last.content.strip() and not last.extra.get(CALLS):
        raise BadSampleError(f"'{column}' is empty or blank at its end; nothing there to score")
    if last.role == ASSISTANT and not last.is_trained and not any(m.is_trained for m in messages):
        raise BadSampleError(
            f"'{column}': the data say of each assistant turn that it is no label; nothing to score"
        )
    return tuple(messages[:read]), len(messages) - read
