"""Lists of messages, however they are spelled."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import ARROW
from forvalue_index.sources.columns import to_sample

ASKED = {"role": "user", "content": "Q"}


def read(*turns, **options):
    messages = to_sample({"messages": list(turns)}, **options).messages
    return [(m.role, m.content, dict(m.extra)) for m in messages]


def text(words):
    return {"type": "text", "text": words}


def call(name, **arguments):
    return {"id": "t1", "type": "function", "function": {"name": name, "arguments": arguments}}


USE = {"type": "tool_use", "id": "t1", "name": "w", "input": {"city": "Oslo"}}
RESULT = {"type": "tool_result", "tool_use_id": "t1", "content": "21"}


def test_messages_of_anthropic():
    turns = [
        ASKED,
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "T"}, text("A"), USE]},
        {"role": "user", "content": [RESULT, text("and?")]},
        {"role": "assistant", "content": [USE]},
        {
            "role": "user",
            "content": [{**RESULT, "content": [text("2"), text("2")], "is_error": True}],
        },
        {"role": "assistant", "content": "B"},
    ]
    assert read(*turns) == [
        ("user", "Q", {}),
        (
            "assistant",
            "A",
            {"tool_calls": [call("w", city="Oslo")], "reasoning_content": "T"},
        ),
        ("tool", "21", {"tool_call_id": "t1"}),
        ("user", "and?", {}),
        ("assistant", "", {"tool_calls": [call("w", city="Oslo")]}),
        ("tool", "22", {"tool_call_id": "t1", "is_error": True}),
        ("assistant", "B", {}),
    ]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (
            [text("x"), RESULT],
            "part 2 of turn 1 of 'messages' comes too late: results of tools come",
        ),
        ([USE, text("x")], "part 2 of turn 1 of 'messages' comes too late: results of tools come"),
        (
            [{"type": "tool_use", "input": {}}],
            "call 1 of part 1 of turn 1 of 'messages' has no name",
        ),
        (
            [{"type": "thinking"}],
            "the thought of part 1 of turn 1 of 'messages' is null, wanted text",
        ),
        (
            [{**RESULT, "content": 7}],
            "the content of part 1 of turn 1 of 'messages' is int, wanted",
        ),
        ([RESULT, {"type": "document"}], "part 1 of turn 1 of 'messages' has the type 'document'"),
    ],
)
def test_parts_that_cannot_be_read(content, told):
    with pytest.raises(BadSampleError) as error:
        read({"role": "user", "content": content}, {"role": "assistant", "content": "A"})
    assert str(error.value).startswith(told)


def test_turns_as_text_of_json():
    turns = [ASKED, {"role": "assistant", "content": None, "tool_calls": [call("w", city=None)]}]
    expected = read(*turns)
    assert read(*map(json.dumps, turns)) == expected
    found = to_sample({"messages": json.dumps(turns)}).messages
    assert [(m.role, m.content, dict(m.extra)) for m in found] == expected
    assert to_sample({"messages": " " + json.dumps(turns)}).messages == found


def test_fields_that_are_null_are_absent():
    turn = {"role": None, "content": None, "from": "human", "value": "Q", "name": None}
    assert read(turn, {**turn, "from": "gpt", "value": "A"}) == [
        ("user", "Q", {}),
        ("assistant", "A", {}),
    ]


def test_null_fields_of_objects_are_absent_where_they_come_from_arrow():
    turn = {"role": "assistant", "content": "A", "facts": {"a": None, "b": [{"c": None}, None]}}
    assert read(turn)[0][2] == {"facts": turn["facts"]}
    assert read(turn, origin=ARROW)[0][2] == {"facts": {"b": [{}, None]}}


def test_fields_of_turns_can_be_ignored():
    turn = {"role": "assistant", "content": "A", "name": "x", "Reasoning_Content": "y", "kept": 1}
    ignore = {"ignore": "name,reasoning_content"}
    assert read(turn, columns=ignore) == [("assistant", "A", {"kept": 1})]
    sharegpt = {"conversations": [{"from": "gpt", "value": "A", "name": "x"}]}
    assert to_sample(sharegpt, ignore).messages[0].extra == {}


def test_the_text_of_a_part_may_be_its_value():
    turn = {"role": "user", "content": [{"type": "text", "value": "Q"}]}
    assert read(turn, {"role": "assistant", "content": "A"})[0] == ("user", "Q", {})


@pytest.mark.parametrize("column", ["turns", "dialogue", "messages", "utterances"])
def test_a_dialogue_with_names_of_speakers_is_refused(column):
    row = {"id": 1, column: [{"speaker": "A", "text": "hello"}, {"speaker": "B", "text": "hi"}]}
    with pytest.raises(BadSampleError) as error:
        to_sample(row)
    assert str(error.value) == (
        f"turn 1 of '{column}' has the speaker 'A' and no role; give each turn a role, user or "
        "assistant, and content"
    )


def test_keys_of_fields_become_text():
    found = to_sample({"messages": [{"role": "assistant", "content": "A", 1: 2, "b": 3}]})
    assert found.messages[0].extra == {"1": 2, "b": 3}
    assert found.content_hash


def test_lists_as_pandas_has_them(tmp_path):
    turns = [ASKED, {"role": "assistant", "content": "A", "tool_calls": [call("w", city="Oslo")]}]
    pq.write_table(pa.Table.from_pylist([{"messages": turns}]), tmp_path / "x.parquet")
    (row,) = pd.read_parquet(tmp_path / "x.parquet").to_dict("records")
    assert to_sample(row) == to_sample({"messages": turns})
