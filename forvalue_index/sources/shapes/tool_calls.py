"""Tool calls and tools in one shape, whatever brought them.

A call is `{"type": "function", "function": {"name", "arguments"}}` with arguments as an object,
as chat templates take it. OpenAI writes arguments as JSON text, and wrote one `function_call`;
others leave out the outer object; Anthropic has parts `tool_use` in the content.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import (
    is_absent,
    is_empty,
    is_list,
    kind_of,
    parsed,
    storable,
    without_nulls,
)

CALLS, LEGACY_CALL = "tool_calls", "function_call"
LEGACY_TOOLS = "functions"
WANTED = "wanted a function with name and arguments"
# What data sets call the arguments; Llama 3 writes `parameters`.
ARGUMENTS = ("arguments", "parameters", "args", "input")
OF_CALLS = {"id", "type", "function", "index", "call_id", "tool_call_id"}
OF_FUNCTIONS = {"name", *ARGUMENTS}


def with_calls(extra: dict[str, Any], location: str) -> dict[str, Any]:
    """The fields of a turn with its calls in one shape. Raises BadSampleError where it cannot be.

    An empty list stays, and an empty `function_call` is none.
    """
    if legacy := extra.pop(LEGACY_CALL, None):
        if extra.get(CALLS):
            raise BadSampleError(f"{location} has {CALLS} and {LEGACY_CALL}; use one of them")
        extra[CALLS] = [legacy]
    calls = extra.get(CALLS, [])
    if calls in ("", {}):
        del extra[CALLS]
    elif calls != []:
        extra[CALLS] = calls_of(calls, location)
    return extra


def calls_of(value: Any, location: str) -> list[dict[str, Any]]:
    """Calls as a list, from a list, one object, or JSON text of either."""
    calls = _listed(parsed(value))
    return [_call(call, f"call {n} of {location}") for n, call in enumerate(calls, 1)]


def calls_in(value: Any, location: str) -> list[dict[str, Any]] | None:
    """The calls that JSON text holds, or an object; None where it is text of another kind."""
    found = parsed(value)
    return calls_of(found, location) if _all_named(found) else None


def are_calls(value: Any) -> bool:
    """Whether JSON text, or objects, are calls with nothing beside them."""
    found = parsed(value)
    return _all_named(found) and all(
        not _unknown(call, OF_CALLS | OF_FUNCTIONS) for call in _listed(found)
    )


def _listed(value: Any) -> list[Any]:
    return list(value) if is_list(value) else [value]


def _all_named(value: Any) -> bool:
    calls = _listed(value)
    named = (isinstance(call, Mapping) and isinstance(call.get("name"), str) for call in calls)
    return bool(calls) and all(named)


def _call(call: Any, location: str) -> dict[str, Any]:
    call = parsed(call)
    if not isinstance(call, Mapping):
        raise BadSampleError(f"{location} is {kind_of(call)}, {WANTED}")
    if "function" not in call:
        function = {k: v for k, v in call.items() if k in OF_FUNCTIONS}
        others = {k: v for k, v in call.items() if k not in function}
        call = {**others, "type": "function", "function": function}
    function = parsed(call["function"])
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise BadSampleError(f"{location} has no name, {WANTED}")
    if unknown := [*_unknown(call, OF_CALLS), *_unknown(function, OF_FUNCTIONS)]:
        raise BadSampleError(
            f"{location} has {', '.join(map(repr, unknown))}, which is no part of a call; write "
            "what is said into the content of the turn, and leave out the rest"
        )
    given = [name for name in ARGUMENTS if not is_empty(function.get(name))]
    if len(given) > 1:
        raise BadSampleError(f"{location} has {' and '.join(given)}; use one of them")
    arguments = _arguments(function.get((given or ARGUMENTS)[0]))
    others = {k: v for k, v in function.items() if k not in ARGUMENTS}
    return {**storable(call), "function": {**storable(others), "arguments": arguments}}


def _unknown(value: Mapping[Any, Any], known: set[str]) -> list[str]:
    """The fields that hold something and are none of those known."""
    return [str(k) for k, v in value.items() if k not in known and not is_empty(v)]


def _arguments(value: Any) -> Any:
    """Arguments as an object; text that is no JSON of one stays text."""
    if is_absent(value):
        return {}
    found = parsed(value, "{")
    return storable(found if isinstance(found, Mapping) else value)


def tools_of(value: Any, column: str, *, of_arrow: bool) -> tuple[Mapping[str, Any], ...]:
    """What a column says of tools: a list of descriptions, or JSON text of it; () of none.

    Descriptions stay as they are, for templates render them so; those of OpenAI's `functions` and
    of Anthropic get the outer object of their successor. Raises BadSampleError for what is none.
    """
    if is_empty(value):
        return ()
    found = parsed(without_nulls(value) if of_arrow else value)
    found = [found] if isinstance(found, Mapping) else found
    if not is_list(found):
        told = "text that is no JSON" if isinstance(found, str) else kind_of(found)
        raise BadSampleError(
            f"'{column}' is {told}, wanted a list of tools as a chat template takes them; mend it, "
            f"or leave it out with --ignore {column}"
        )
    legacy = column.lower() == LEGACY_TOOLS
    return tuple(_tool(tool, f"tool {n} of '{column}'", legacy) for n, tool in enumerate(found, 1))


def _tool(tool: Any, location: str, legacy: bool) -> Mapping[str, Any]:
    tool = parsed(tool, "{")
    if not isinstance(tool, Mapping) or not tool:
        raise BadSampleError(
            f"{location} is {kind_of(tool) if tool else 'empty'}, wanted an object with name and "
            "parameters"
        )
    if "input_schema" in tool and "name" in tool:  # Anthropic's
        kept = {k: tool[k] for k in ("name", "description") if k in tool}
        return _wrapped({**kept, "parameters": tool["input_schema"]})
    if legacy and "function" not in tool:
        return _wrapped(tool)
    function = parsed(tool.get("function"), "{")
    if isinstance(function, Mapping):
        return _storable(tool) | {"function": _with_parameters(function)}
    return _with_parameters(tool)


def _wrapped(function: Mapping[str, Any]) -> Mapping[str, Any]:
    return {"type": "function", "function": _with_parameters(function)}


def _with_parameters(function: Mapping[str, Any]) -> dict[str, Any]:
    """A description whose schema is an object, where it was JSON text."""
    known = {k: parsed(v, "{") if k == "parameters" else v for k, v in function.items()}
    return _storable(known)


def _storable(value: Mapping[str, Any]) -> dict[str, Any]:
    return {str(k): storable(v) for k, v in value.items()}
