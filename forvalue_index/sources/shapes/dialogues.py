"""Conversations that are no list of messages: alternating texts, and trees of replies."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_list, kind_of, parsed, text_of
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.image_places import Turn
from forvalue_index.sources.shapes.roles import USER, role_of

SPEAKERS = (USER, ASSISTANT)


def alternating_turns(value: Any, column: str) -> list[Turn]:
    """Turns of a list of texts, the user's first (UltraChat), or of `{user, assistant}` (Cauldron).

    Raises BadSampleError for any other.
    """
    value = parsed(value)
    if not is_list(value):
        raise BadSampleError(f"'{column}' is {kind_of(value)}, wanted a list of texts")
    turns: list[Turn] = []
    for n, one in enumerate(value, 1):
        where = f"turn {n} of '{column}'"
        if isinstance(one, Mapping):
            turns += [
                Turn(role, [text_of(one.get(role), f"the {role} of {where}")]) for role in SPEAKERS
            ]
        else:
            turns.append(Turn(SPEAKERS[len(turns) % 2], [text_of(one, where)]))
    return turns


def beside_texts(value: Any) -> list[dict[str, Any]]:
    """What turns of `{user, assistant}` hold beside what is said; nothing of texts."""
    turns = [turn for turn in parsed(value) if isinstance(turn, Mapping)]
    others = [{k: v for k, v in turn.items() if k not in SPEAKERS} for turn in turns]
    return others if any(others) else []


def alternates(value: Any) -> bool:
    """Whether a cell is what `alternating_turns` reads."""
    value = parsed(value)
    return (
        is_list(value)
        and bool(value)
        and (
            all(isinstance(one, str) for one in value)
            or all(isinstance(one, Mapping) and one.keys() >= set(SPEAKERS) for one in value)
        )
    )


def best_path(tree: Any, column: str) -> list[Turn]:
    """The turns of an OpenAssistant message tree, along the best-ranked replies.

    Rank 0 is best; replies without ranks come in their order after those with, and deleted ones
    never. Raises BadSampleError.
    """
    turns: list[Turn] = []
    message = parsed(tree)
    while message is not None or not turns:
        where = f"message {len(turns) + 1} of '{column}'"
        if not isinstance(message, Mapping) or not {"text", "role"} <= message.keys():
            raise BadSampleError(f"{where} is {kind_of(message)}, wanted an object with text, role")
        role = text_of(message["role"], f"the role of {where}")
        text = text_of(message["text"], f"the text of {where}")
        turns.append(Turn(role_of(role, where, sharegpt=False), [text]))
        replies = message.get("replies")
        counted = [one for one in (replies if is_list(replies) else []) if _counts(one)]
        message = min(counted, key=_rank, default=None)
    return turns


def _counts(reply: Any) -> bool:
    return isinstance(reply, Mapping) and not reply.get("deleted")


def _rank(reply: Mapping[str, Any]) -> int | float:
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else math.inf
