"""From a list of messages, as OpenAI, ShareGPT or Anthropic spell them, to turns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import (
    is_list,
    kind_of,
    parsed,
    storable,
    text_of,
    without_nulls,
)
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.image_places import (
    Slot,
    Turn,
    image_slot,
    taken_images,
    with_images,
)
from forvalue_index.sources.shapes.roles import CALL, TOOL, role_of
from forvalue_index.sources.shapes.tool_calls import CALLS, calls_in, calls_of, with_calls
from forvalue_index.sources.shapes.training_marks import context_only, with_training_marks

OPENAI, SHAREGPT = ("role", "content"), ("from", "value")
MESSAGES = (set(OPENAI), set(SHAREGPT), {"role", CALLS})
IMAGE_PARTS = {"image", "image_url", "input_image"}
TEXT_PARTS = {"text", "input_text", "output_text"}
USE, RESULT, THOUGHT = "tool_use", "tool_result", "thinking"


@dataclass(frozen=True)
class Reading:
    """How rows are read: `ignore` names fields, in lower case, that are left out of turns.

    Rows `of_arrow` have null fields for whatever another row's object holds.
    """

    ignore: frozenset[str] = frozenset()
    of_arrow: bool = False


def read_turns(value: Any, column: str, role: str, how: Reading) -> list[Turn]:
    """Read a cell as turns: text is one turn of `role`, a list is a list of messages.

    Raises BadSampleError, with the turn and the reason, where one is none.
    """
    if not isinstance(value, list | tuple):
        return [Turn(role, [text_of(value, f"'{column}'")])]
    turns: list[Turn] = []
    for n, turn in enumerate(value, 1):
        turns += _turns(turn, f"turn {n} of '{column}'", how)
    return turns


def turns_in(value: Any) -> Any:
    """The list of messages that JSON text holds; any other value as it is.

    A list in which none says anything is another one, as of edges of a graph.
    """
    found = parsed(value, "[")
    named = is_list(found) and all(
        isinstance(one, Mapping) and ("role" in one or "from" in one) for one in found
    )
    return found if named and any(is_message(one) for one in found) else value


def is_message(value: Mapping[Any, Any]) -> bool:
    """Whether an object has what a message cannot do without."""
    return any(names <= value.keys() for names in MESSAGES)


def as_context(turns: list[Turn]) -> list[Turn]:
    """Turns of a prompt: what the assistant says there is no label."""
    return [
        replace(turn, extra=context_only(turn.extra)) if turn.role == ASSISTANT else turn
        for turn in turns
    ]


def _turns(turn: Any, location: str, how: Reading) -> list[Turn]:
    """One message of a list: a turn, or several where it holds results of tools."""
    turn = parsed(turn, "{")  # as datasets.Json keeps them
    if not isinstance(turn, Mapping):
        raise BadSampleError(
            f"{location} is {kind_of(turn)}, wanted an object with role and content"
        )
    sharegpt = "from" in turn and turn.get("role") is None
    names = SHAREGPT if sharegpt else OPENAI
    is_plain = len(turn) == 2 and names[0] in turn and names[1] in turn
    extra = {} if is_plain else _fields(turn, names, how)
    images = taken_images(extra, location) if extra else []
    if extra:
        extra = with_calls(storable(extra), location)
    missing = [name for name in names if name not in turn]
    if missing and not (missing == ["content"] and extra.get(CALLS)):
        raise BadSampleError(_told_of_missing(turn, missing, location))
    role = role_of(text_of(turn[names[0]], f"the role of {location}"), location, sharegpt=sharegpt)
    content = turn.get(names[1])
    if how.of_arrow and not isinstance(content, str):
        content = without_nulls(content)
    if role == CALL:
        role, content, extra = _call_of(content, extra, location)
    if extra:
        extra = with_training_marks(extra, role, location)
        if content is None and role == ASSISTANT and extra.get(CALLS):
            content = ""
    if isinstance(content, list | tuple) and any(map(_is_anthropic, content)):
        if images:
            raise BadSampleError(f"{location} has images beside parts that are calls; use parts")
        return list(_anthropic(role, content, extra, location))
    parts = _parts(content, location)
    return [Turn(role, with_images(parts, images, location) if images else parts, extra)]


def _fields(turn: Mapping[Any, Any], names: tuple[str, str], how: Reading) -> dict[str, Any]:
    """The other fields of a turn.

    A null one is how Parquet spells an absent one: dropping it keeps hashes equal over formats.
    """
    found = {str(k): v for k, v in turn.items() if k not in names and v is not None}
    if how.ignore:
        found = {k: v for k, v in found.items() if k.lower() not in how.ignore}
    if how.of_arrow:
        found = {k: without_nulls(v) for k, v in found.items()}
    return found


def _told_of_missing(turn: Mapping[Any, Any], missing: list[str], location: str) -> str:
    told = f"{location} has no {' and no '.join(missing)}"
    if "speaker" in turn:
        name = storable(turn["speaker"])
        told = (
            f"{location} has the speaker {name!r} and no role; give each turn a role, user or "
            "assistant, and content"
        )
    return told


def _call_of(content: Any, extra: dict[str, Any], location: str) -> tuple[str, Any, dict[str, Any]]:
    """A turn that is a call, as one of the assistant: its text where that is no JSON of a call."""
    calls = calls_in(content, location)
    return (
        (ASSISTANT, content, extra) if calls is None else (ASSISTANT, "", {**extra, CALLS: calls})
    )


def _is_anthropic(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in (USE, RESULT, THOUGHT)


def _anthropic(
    role: str, content: Sequence[Any], extra: Mapping[str, Any], location: str
) -> Iterator[Turn]:
    """The turns of a message with parts for calls, their results and thoughts (Anthropic).

    Results come before what the user says, calls after what the assistant says.
    """
    others: list[Any] = []
    calls: list[dict[str, Any]] = []
    thoughts: list[str] = []
    results = 0
    for n, part in enumerate(content, 1):
        where = f"part {n} of {location}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if (kind == RESULT and others) or (kind not in (USE, RESULT) and calls):
            raise BadSampleError(
                f"{where} comes too late: results of tools come first, and calls last; reorder it"
            )
        if kind == RESULT:
            results += 1
            yield _result(part, where)
        elif kind == USE:
            call = {"name": part.get("name"), "arguments": part.get("input")}
            known = {} if part.get("id") is None else {"id": part["id"]}
            calls += calls_of([known | call], where)
        elif kind == THOUGHT:
            thoughts.append(text_of(part.get(THOUGHT), f"the thought of {where}"))
        else:
            others.append(part)
    if calls:
        extra = {**extra, CALLS: calls}
    if thoughts:
        extra = {**extra, "reasoning_content": "\n\n".join(thoughts)}
    if others or calls or thoughts or not results:
        yield Turn(role, _parts(others or "", location), extra)


def _result(part: Mapping[Any, Any], location: str) -> Turn:
    """What a tool answered, as a turn of its own."""
    known = {"tool_call_id": part.get("tool_use_id"), "is_error": part.get("is_error") or None}
    extra = {name: storable(value) for name, value in known.items() if value is not None}
    content = part.get("content")
    return Turn(TOOL, _parts("" if content is None else content, location), extra)


def _parts(content: Any, location: str) -> list[str | Slot]:
    """What a turn says: text alone, or a list of parts that are text or images."""
    if not isinstance(content, list | tuple):
        return [text_of(content, f"the content of {location}")]
    return [_part(part, f"part {n} of {location}") for n, part in enumerate(content, 1)]


def _part(part: Any, location: str) -> str | Slot:
    if isinstance(part, str):
        return text_of(part, location)
    if not isinstance(part, Mapping):
        raise BadSampleError(f"{location} is {kind_of(part)}, wanted text or an image")
    kind = part.get("type") or ("text" if part.get("text") is not None else "image")
    known = kind if isinstance(kind, str) else None
    if known in TEXT_PARTS:
        text = part.get("text")
        text = part.get("value") if text is None else text  # as LLaMA-Factory v1 has it
        return text_of(text, f"the text of {location}")
    if known in IMAGE_PARTS:
        return image_slot(part, location)
    raise BadSampleError(f"{location} has the type {kind!r}, and only text and images are read")
