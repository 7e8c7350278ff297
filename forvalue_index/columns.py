"""From a row's columns to a sample: which column plays which part, and what makes a row unusable.

`layout_of` finds, once per set of columns, which column holds which field. `to_sample` checks one
row and converts it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from functools import lru_cache
from numbers import Integral
from typing import Any

from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.records import TEXT_ROLE, Message, Sample

FIELDS = ("prompt", "response", "messages", "text", "id")
# Field -> lower-case column, in order of preference.
CONVENTIONS: tuple[dict[str, str], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "prompt", "response": "completion"},
    {"prompt": "question", "response": "answer"},
    {"prompt": "instruction", "input": "input", "response": "output"},
    {"text": "text"},
)
OPTIONAL = {"input"}
SHAREGPT_ROLES = {"human": "user", "gpt": "assistant"}
# NUL is refused by PostgreSQL, half a surrogate pair by every UTF-8 encoder.
UNSTORABLE = re.compile(r"[\x00\ud800-\udfff]")


def parse_columns(text: str) -> dict[str, str]:
    """Read `prompt=Q,response=A` as field -> column in the data."""
    columns: dict[str, str] = {}
    for part in text.split(","):
        field, equals, column = (piece.strip() for piece in part.partition("="))
        if not (field and equals and column) or field in columns:
            raise UsageError(
                f"'{part}' in columns '{text}' is malformed or repeated: write FIELD=COLUMN,... "
                f"with fields {', '.join(FIELDS)}"
            )
        columns[field] = column
    return checked_columns(columns)


def to_sample(
    row: Mapping[Any, Any],
    columns: Mapping[str, str] | None = None,
    *,
    source: str = "",
    position: int = 0,
) -> Sample:
    """Convert one row. The BadSampleError of a bad one gives the reason, not the place."""
    row = {str(name): value for name, value in row.items()}
    layout = layout_of(tuple(row), tuple((columns or {}).items()))
    cells = {field: row[column] for field, column in layout.items()}
    metadata = {name: value for name, value in row.items() if name not in layout.values()}
    return Sample(
        messages=_messages(cells, layout),
        source=source,
        position=position,
        own_id=_own_id(cells.get("id")),
        metadata=_storable(metadata),
    )


def checked_columns(columns: Mapping[str, str]) -> dict[str, str]:
    """A mapping of fields to columns, as it is. Raises UsageError for a field there is not."""
    unknown = sorted(columns.keys() - set(FIELDS))
    if unknown:
        raise UsageError(
            f"columns names unknown fields: {', '.join(unknown)}; use {', '.join(FIELDS)}"
        )
    return dict(columns)


@lru_cache(maxsize=1024)
def layout_of(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Field -> column. A mapped field wins over, and else completes, the first convention met."""
    columns = dict(mapped)
    listing = ", ".join(names[:20]) or "(none)"
    for field, column in mapped:
        if column not in names:
            raise BadSampleError(f"no column '{column}' for {field}; the row has: {listing}")
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    for convention in CONVENTIONS:
        found = {
            field: columns.get(field, by_name.get(name, ""))
            for field, name in (convention | {"id": "id"}).items()
            if field in columns or name in by_name
        }
        if (columns.keys() - {"id"}) <= convention.keys() <= found.keys() | OPTIONAL:
            return found
    raise BadSampleError(
        f"no messages, no prompt with response, and no text among the columns: {listing}; "
        "map them with --columns, as in prompt=QUESTION,response=REPLY"
    )


def _messages(cells: Mapping[str, Any], layout: Mapping[str, str]) -> tuple[Message, ...]:
    if "text" in layout:
        text = _text(cells["text"], f"'{layout['text']}'")
        return _complete((Message(TEXT_ROLE, text),), layout["text"])
    if "messages" in layout:
        column = layout["messages"]
        if not isinstance(cells["messages"], list | tuple):
            raise BadSampleError(f"'{column}' is {kind_of(cells['messages'])}, wanted a list")
        return _complete(_turns(cells["messages"], column, "user"), column)
    prompt, more = cells["prompt"], cells.get("input")
    if more not in (None, ""):
        prompt = _text(prompt, f"'{layout['prompt']}'")
        prompt = f"{prompt}\n\n{_text(more, repr(layout['input']))}"
    turns = _turns(prompt, layout["prompt"], "user")
    answer = _turns(cells["response"], layout["response"], "assistant")
    return _complete(turns + answer, layout["response"])


def _turns(value: Any, column: str, role: str) -> tuple[Message, ...]:
    """Read a cell as turns: text is one turn of `role`, a list is a list of messages."""
    if not isinstance(value, list | tuple):
        return (Message(role, _text(value, f"'{column}'")),)
    return tuple(_turn(turn, f"turn {n} of '{column}'") for n, turn in enumerate(value, 1))


def _turn(turn: Any, place: str) -> Message:
    if not isinstance(turn, Mapping):
        raise BadSampleError(f"{place} is {kind_of(turn)}, wanted an object with role and content")
    sharegpt = "from" in turn and "role" not in turn
    names = ("from", "value") if sharegpt else ("role", "content")
    missing = [name for name in names if name not in turn]
    role = turn.get(names[0])
    # A null extra is how Parquet spells an absent one: dropping it keeps hashes equal over formats.
    extra = {k: _storable(v) for k, v in turn.items() if k not in names and v is not None}
    calls_tools = role == "assistant" and bool(extra.get("tool_calls"))
    if missing and not (calls_tools and missing == ["content"]):
        raise BadSampleError(f"{place} has no {' and no '.join(missing)}")
    role = _text(role, f"the role of {place}")
    if role in ("", TEXT_ROLE):
        raise BadSampleError(f"the role of {place} is '{role}', wanted user, assistant, ...")
    content = turn.get(names[1])
    if content is None and calls_tools:
        content = ""
    role = SHAREGPT_ROLES.get(role, role) if sharegpt else role
    return Message(role, _text(content, f"the content of {place}"), extra)


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


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str):
        raise BadSampleError(f"{place} is {kind_of(value)}, wanted text")
    if UNSTORABLE.search(value):
        raise BadSampleError(f"{place} holds a NUL or something that is not UTF-8; clean it")
    return value


def _own_id(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return _text(value, "the id") if value else None
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise BadSampleError(f"the id is {kind_of(value)}, wanted text or int")
    return str(int(value))


def kind_of(value: Any) -> str:
    """What messages call the type of a value."""
    name = type(value).__name__
    return {"str": "text", "dict": "object", "NoneType": "null"}.get(name, name)


def _storable(value: Any) -> Any:
    """Convert to what JSON can hold; what is not finite becomes None."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return UNSTORABLE.sub("\ufffd", value)
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, bytes):
        text = value.decode("utf-8", "replace")
        return _storable(text) if "\ufffd" not in text else f"<{len(value)} bytes>"
    if isinstance(value, Mapping):
        return {_storable(str(name)): _storable(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    if hasattr(value, "isoformat"):
        return value.isoformat()
    return _storable(value.tolist()) if hasattr(value, "tolist") else _storable(str(value))
