"""Conversations of every kind, as rows of a data set, and other ways to spell the same row."""

import json

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}


def asked(text):
    return {"role": "user", "content": text}


def said(text, thought=None, **fields):
    fields |= {} if thought is None else {"reasoning_content": thought}
    return {"role": "assistant", "content": text, **fields}


def call(*cities):
    calls = [
        {
            "type": "function",
            "id": f"call{number:05}",
            "function": {"name": "weather", "arguments": {"city": city}},
        }
        for number, city in enumerate(cities, 1)
    ]
    return said(None, tool_calls=calls)


def result(number, text):
    return {"role": "tool", "tool_call_id": f"call{number:05}", "name": "weather", "content": text}


ROME = [asked("Rome?"), call("Rome"), result(1, "sunny"), said("It is sunny.")]
EASY = [asked("2+2?"), said("4")]
ROWS = {
    "single": {"messages": EASY},
    "multi": {"messages": [*EASY, asked("1+3?"), said("4")]},
    "untrained": {"messages": [asked("2+2?"), said("4", weight=0), asked("1+3?"), said("4")]},
    "system": {"messages": [{"role": "system", "content": "Be brief."}, *EASY]},
    "assistant-first": {"messages": [said("Hello."), *EASY]},
    "consecutive": {"messages": [asked("2+2?"), said("Let me see."), said("4")]},
    "thought": {"messages": [asked("3*3?"), said("9", "3+3+3")]},
    "thoughts": {
        "messages": [asked("2+2?"), said("4", "1+1+2"), asked("3*3?"), said("9", "3+3+3")]
    },
    "thought-text": {"messages": [asked("3*3?"), said("<think>\n3+3+3\n</think>\n\n9")]},
    "tools": {"messages": ROME, "tools": [WEATHER]},
    "tools-later": {"messages": [*EASY, *ROME], "tools": [WEATHER]},
    "two-calls": {
        "messages": [
            *(asked("Rome, Oslo?"), call("Rome", "Oslo"), result(1, "sunny"), result(2, "snow")),
            said("Sun and snow."),
        ]
    },
    "call-last": {"messages": ROME[:2]},
}


def with_text_arguments(message):
    """Arguments of calls as JSON text, as many files have them."""
    calls = [
        c | {"function": c["function"] | {"arguments": json.dumps(c["function"]["arguments"])}}
        for c in message.get("tool_calls", ())
    ]
    return message | ({"tool_calls": calls} if calls else {})


def with_nulls(message):
    """Every field in every message, as Arrow writes rows."""
    fields = ("content", "reasoning_content", "tool_calls", "tool_call_id", "name")
    nulls = dict.fromkeys(fields) | message
    calls = [
        c | {"function": c["function"] | {"arguments": c["function"]["arguments"] | {"unit": None}}}
        for c in nulls["tool_calls"] or ()
    ]
    return nulls | {"tool_calls": calls or None}


def with_thoughts_as(name):
    """Thoughts in the field that gpt-oss, or that some servers call them."""
    return lambda message: {
        (name if field == "reasoning_content" else field): value for field, value in message.items()
    }
