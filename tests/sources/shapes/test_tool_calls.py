"""Calls and tools are one shape, whatever brought them."""

import json

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.source import open_sources

CALL = {"type": "function", "function": {"name": "w", "arguments": {"city": "Oslo", "n": None}}}
ARGUMENTS = CALL["function"]["arguments"]
OTHER_NAMES = ("parameters", "args", "input")


def sample(answer, **row):
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", **answer}]
    return to_sample({"messages": turns, **row})


@pytest.mark.parametrize(
    "fields",
    [
        {"tool_calls": [CALL]},
        {"tool_calls": CALL},
        {"tool_calls": json.dumps([CALL])},
        {"tool_calls": [json.dumps(CALL)]},
        {"tool_calls": [{"name": "w", "arguments": ARGUMENTS}]},
        {"tool_calls": [{"name": "w", "arguments": json.dumps(ARGUMENTS)}]},
        {"tool_calls": [CALL | {"function": {"name": "w", "arguments": json.dumps(ARGUMENTS)}}]},
        {"tool_calls": [CALL | {"function": json.dumps(CALL["function"])}]},
        *({"tool_calls": [{"name": "w", name: ARGUMENTS}]} for name in OTHER_NAMES),
        *(
            {"tool_calls": [{"type": "function", "function": {"name": "w", name: ARGUMENTS}}]}
            for name in OTHER_NAMES
        ),
        {"tool_calls": [{"name": "w", "arguments": None, "parameters": json.dumps(ARGUMENTS)}]},
        {"function_call": {"name": "w", "arguments": json.dumps(ARGUMENTS)}},
        {"function_call": CALL["function"], "tool_calls": []},
        {"content": [{"type": "tool_use", "name": "w", "input": ARGUMENTS}]},
    ],
)
def test_calls_are_one_shape(fields):
    message = sample({"content": None, **fields}).messages[1]
    assert (message.role, message.content, message.extra) == (
        "assistant",
        "",
        {"tool_calls": [CALL]},
    )


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("{not json", "{not json"),
        ("", ""),
        ('"Oslo"', '"Oslo"'),
        (None, {}),
        ("{}", {}),
        ([1], [1]),
        ({"x": float("nan")}, {"x": None}),
    ],
)
def test_arguments_that_are_no_object_stay(given, kept):
    call = {"id": "c1", "function": {"name": "w", "arguments": given}}
    (found,) = sample({"content": "", "tool_calls": [call]}).messages[1].extra["tool_calls"]
    assert found == {"id": "c1", "function": {"name": "w", "arguments": kept}}


def test_nothing_called():
    assert sample({"content": "A", "tool_calls": []}).messages[1].extra == {"tool_calls": []}
    for empty in ({"tool_calls": ""}, {"tool_calls": {}}, {"function_call": {}}):
        assert sample({"content": "A", **empty}).messages[1].extra == {}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"tool_calls": [7]}, "call 1 of turn 2 of 'messages' is int, wanted a function with name"),
        ({"tool_calls": "now"}, "call 1 of turn 2 of 'messages' is text, wanted a function"),
        ({"tool_calls": [{"x": 1}]}, "call 1 of turn 2 of 'messages' has no name, wanted"),
        ({"tool_calls": [CALL, {"name": 3}]}, "call 2 of turn 2 of 'messages' has no name, wanted"),
        (
            {"tool_calls": [CALL], "function_call": CALL["function"]},
            "turn 2 of 'messages' has tool_calls and function_call; use one of them",
        ),
        (
            {"tool_calls": [{"name": "w", "arguments": {}, "thought": "T", "result": 1}]},
            "call 1 of turn 2 of 'messages' has 'thought', 'result', which is no part of a call;",
        ),
        (
            {"tool_calls": [{"function": {"name": "w", "arguments": {}, "thought": "T"}}]},
            "call 1 of turn 2 of 'messages' has 'thought', which is no part of a call; write",
        ),
        (
            {"tool_calls": [{"name": "w", "arguments": {"x": 1}, "input": {"x": 1}}]},
            "call 1 of turn 2 of 'messages' has arguments and input; use one of them",
        ),
    ],
)
def test_calls_that_are_none_are_refused(fields, expected):
    with pytest.raises(BadSampleError) as error:
        sample({"content": "", **fields})
    assert str(error.value).startswith(expected)


def sharegpt(call, **row):
    turns = [("human", "Q"), ("function_call", call), ("observation", "21"), ("gpt", "A")]
    return to_sample({"conversations": [{"from": f, "value": v} for f, v in turns], **row})


@pytest.mark.parametrize(
    "call",
    [
        CALL["function"],
        json.dumps(CALL["function"]),
        json.dumps([CALL["function"]]),
        json.dumps({"name": "w", "arguments": json.dumps(ARGUMENTS)}),
        *(json.dumps({"name": "w", name: ARGUMENTS}) for name in OTHER_NAMES),
    ],
)
def test_a_function_call_of_sharegpt(call):
    found = sharegpt(call)
    assert [(m.role, m.content) for m in found.messages] == [
        ("user", "Q"),
        ("assistant", ""),
        ("tool", "21"),
        ("assistant", "A"),
    ]
    assert found.messages[1].extra == {"tool_calls": [CALL]}


def test_a_function_call_of_sharegpt_with_more_than_a_call_is_refused():
    with pytest.raises(BadSampleError, match="call 1 of turn 2 of 'conversations' has 'thought'"):
        sharegpt(json.dumps({"name": "w", "arguments": {}, "thought": "T"}))


def test_empty_fields_beside_a_call_stay():
    call = {**CALL, "result": None, "id": "c"}
    assert sample({"content": "", "tool_calls": [call]}).messages[1].extra == {"tool_calls": [call]}


@pytest.mark.parametrize("call", ["CALL weather", '{"city": "Oslo"}', "[1]", "{", "[]"])
def test_a_function_call_of_sharegpt_in_words(call):
    message = sharegpt(call).messages[1]
    assert (message.role, message.content, message.extra) == ("assistant", call, {})


SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
TOOL = {"type": "function", "function": {"name": "w", "description": "d", "parameters": SCHEMA}}


@pytest.mark.parametrize(
    ("column", "value", "tools"),
    [
        ("tools", [TOOL], (TOOL,)),
        ("tools", json.dumps([TOOL]), (TOOL,)),
        ("tools", [json.dumps(TOOL)], (TOOL,)),
        ("tools", TOOL, (TOOL,)),
        ("Tools", [TOOL["function"]], (TOOL["function"],)),
        (
            "tools",
            [TOOL | {"function": {**TOOL["function"], "parameters": json.dumps(SCHEMA)}}],
            (TOOL,),
        ),
        ("tools", [{"name": "w", "description": "d", "input_schema": SCHEMA}], (TOOL,)),
        ("functions", [TOOL["function"]], (TOOL,)),
        *(("tools", value, ()) for value in (None, [], "", "[]", {}, float("nan"))),
    ],
)
def test_tools(column, value, tools):
    found = sample({"content": "A"}, **{column: value})
    assert found.tools == tools
    assert found.metadata == {}
    assert to_sample({"prompt": "Q", "response": "A", column: value}).tools == tools


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("hammer", "'tools' is text that is no JSON, wanted a list of tools"),
        (7, "'tools' is int, wanted a list of tools"),
        (["hammer"], "tool 1 of 'tools' is text, wanted an object with name and parameters"),
        ([TOOL, {}], "tool 2 of 'tools' is empty, wanted an object"),
    ],
)
def test_tools_that_are_none_are_refused_and_can_be_ignored(value, told):
    with pytest.raises(BadSampleError) as error:
        sample({"content": "A"}, tools=value)
    assert str(error.value).startswith(told)
    found = to_sample({"prompt": "Q", "response": "A", "tools": value}, {"ignore": "tools"})
    assert (found.tools, found.metadata, found.unread) == ((), {"tools": value}, ())


def test_functions_of_another_kind_are_metadata_and_named():
    found = to_sample({"prompt": "Q", "response": "A", "functions": ["f", "g"]})
    assert (found.tools, found.metadata) == ((), {"functions": ["f", "g"]})
    assert found.unread == ("functions",)


def test_calls_as_the_answers_of_a_query():
    """As Salesforce/xlam-function-calling-60k has them."""
    found = to_sample(
        {
            "id": 0,
            "query": "Q",
            "answers": json.dumps([CALL["function"]]),
            "tools": json.dumps([TOOL]),
        }
    )
    assert found.messages[1].extra == {"tool_calls": [CALL]}
    assert found.tools == (TOOL,)


@pytest.mark.parametrize("answers", [[CALL["function"]], CALL["function"]])
def test_calls_as_the_answers_of_a_query_as_objects(answers):
    assert to_sample({"query": "Q", "answers": answers}).messages[1].extra == {"tool_calls": [CALL]}


def test_answers_that_have_a_name_and_more_are_text():
    answers = json.dumps({"name": "Ada", "born": 1815})
    assert to_sample({"query": "Q", "answers": answers}).response == answers


# Objects that differ from row to row, as tools and their arguments do.
ROWS = [
    {
        "id": name,
        "messages": [
            {"role": "user", "content": "Q"},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c", "type": "function", "function": {"name": name, "arguments": given}}
                ],
            },
            {"role": "tool", "content": "21", "tool_call_id": "c"},
            {"role": "assistant", "content": "A", "weight": 1},
        ],
        "tools": [
            {
                "type": "function",
                "function": {
                    "name": name,
                    "parameters": {
                        "type": "object",
                        "properties": {k: {"type": kind} for k in given},
                    },
                },
            }
        ],
    }
    for name, kind, given in [
        ("w", "string", {"city": "Oslo"}),
        ("z", "integer", {"zip": 5}),
        ("n", "string", {"names": ["a", None], "deep": {"x": 1}}),
    ]
]
ROWS_OF_TEXT = json.loads(json.dumps(ROWS))
for row in ROWS_OF_TEXT:
    function = row["messages"][1]["tool_calls"][0]["function"]
    function["arguments"] = json.dumps(function["arguments"] | {"none": None})


def jsonl(rows, path):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parquet(rows, path):
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def saved(rows, path):
    datasets.Dataset.from_list(rows).save_to_disk(path)
    return str(path)


def saved_as_json(rows, path):
    kind = datasets.List(datasets.Json())
    features = datasets.Features(id=datasets.Value("string"), messages=kind, tools=kind)
    datasets.Dataset.from_list(rows, features=features).save_to_disk(path)
    return str(path)


def in_memory(rows, path):
    return datasets.Dataset.from_list(rows)


@pytest.mark.parametrize("rows", [ROWS, ROWS_OF_TEXT], ids=["objects", "text"])
@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("x.parquet", parquet),
        ("saved", saved),
        ("json", saved_as_json),
        ("none", in_memory),
    ],
)
def test_what_went_through_arrow_is_what_it_was(rows, name, made, tmp_path):
    def read(data):
        return [sample for source in open_sources(data) for sample in source.samples()]

    before, after = read(jsonl(rows, tmp_path / "x.jsonl")), read(made(rows, tmp_path / name))
    assert [s.messages for s in after] == [s.messages for s in before]
    assert [s.tools for s in after] == [s.tools for s in before]
    assert [s.content_hash for s in after] == [s.content_hash for s in before]


CALLS_ELSEWHERE = {
    "Anthropic": lambda name, given: {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Q"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "name": name, "input": given}]},
        ]
    },
    "xLAM": lambda name, given: {"query": "Q", "answers": [{"name": name, "arguments": given}]},
    "a call as the value": lambda name, given: {
        "messages": [
            {"role": "tool_call", "content": {"name": name, "arguments": given}},
            {"role": "tool_call", "content": {"name": name, "arguments": given}},
        ]
    },
}


@pytest.mark.parametrize("shape", CALLS_ELSEWHERE)
@pytest.mark.parametrize("made", [parquet, in_memory])
def test_calls_elsewhere_have_no_fields_of_other_rows(shape, made, tmp_path):
    """A struct of Arrow has the fields of all rows; those of others are no part of a label."""
    calls = [("w", {"city": "Oslo"}), ("z", {"zip": 5})]
    data = made([CALLS_ELSEWHERE[shape](*call) for call in calls], tmp_path / "x.parquet")
    read = [one for source in open_sources(data) for one in source.samples()]
    assert [one.messages[1].extra["tool_calls"] for one in read] == [
        [{"type": "function", "function": {"name": name, "arguments": given}}]
        for name, given in calls
    ]


def test_nulls_that_data_wrote_themselves_stay():
    given = {"city": "Oslo", "unit": None}
    call = {"function": {"name": "w", "arguments": given}}
    (found,) = sample({"content": "", "tool_calls": [call]}).messages[1].extra["tool_calls"]
    assert found["function"]["arguments"] == given
