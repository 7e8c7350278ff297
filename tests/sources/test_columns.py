import datetime
import decimal
import json
import uuid

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_index.exceptions import BadSampleError, UsageError
from forvalue_index.sources.cell_values import ARROW, JSON, storable, without_nulls
from forvalue_index.sources.columns import ignoring, parse_columns, to_sample
from forvalue_index.sources.sample import TEXT_ROLE, Message, Sample
from forvalue_index.sources.shapes.conventions import BY_VALUE, CONVENTIONS, TOKENS
from forvalue_index.sources.source import open_sources

PAIR = (Message("user", "Q"), Message("assistant", "A"))


def listed(names):
    return (names,) if isinstance(names, str) else names


def reason(row, columns=None):
    with pytest.raises(BadSampleError) as error:
        to_sample(row, columns)
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "messages"),
    [
        ({"prompt": "Q", "response": "A"}, PAIR),
        ({"Prompt": "Q", "COMPLETION": "A"}, PAIR),
        ({"question": "Q", "Answer": "A"}, PAIR),
        ({"instruction": "Q", "output": "A"}, PAIR),
        ({"instruction": "Q", "input": "", "output": "A"}, PAIR),
        ({"instruction": "Q", "input": None, "output": "A"}, PAIR),
        ({"instruction": "Q", "input": "I", "output": "A"}, (Message("user", "Q\n\nI"), PAIR[1])),
        ({"text": "T"}, (Message(TEXT_ROLE, "T"),)),
        ({"messages": [m.as_dict() for m in PAIR]}, PAIR),
        ({"messages": tuple(m.as_dict() for m in PAIR)}, PAIR),
        ({"conversations": [m.as_dict() for m in PAIR]}, PAIR),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A", "weight": 1},
                ]
            },
            (Message("system", "S"), PAIR[0], Message("assistant", "A", {"weight": 1})),
        ),
        (
            {
                "prompt": [{"role": "user", "content": "Q"}],
                "completion": [{"role": "assistant", "content": "A"}],
            },
            PAIR,
        ),
        ({"prompt": [{"role": "user", "content": "Q"}], "completion": "A"}, PAIR),
        ({"prompt": "Q", "response": [{"role": "assistant", "content": "A"}]}, PAIR),
    ],
)
def test_every_convention_of_columns(row, messages):
    assert to_sample(row) == Sample(messages)
    assert to_sample({**row, "x": 1, "ID": 7}, source="s", position=3) == Sample(
        messages, "s", 3, own_id="7", metadata={"x": 1}
    )


def test_conventions_have_an_order_and_the_rest_is_metadata():
    row = {"text": "T", "answer": "A2", "question": "Q2", "completion": "A1", "prompt": "Q1"}
    sample = to_sample(row)
    assert sample.messages == (Message("user", "Q1"), Message("assistant", "A1"))
    assert sample.metadata == {"text": "T", "answer": "A2", "question": "Q2"}
    assert to_sample({"Text": "upper", "text": "exact"}).response == "exact"


def test_tool_calls_may_stand_for_content():
    calls = [{"function": {"name": "f", "arguments": {"x": float("nan")}}}]
    turns = [
        {"role": "user", "content": "Q", "name": None},
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "1", "name": "f"},
        {"role": "assistant", "content": None, "tool_calls": calls},
    ]
    stored = {"tool_calls": [{"function": {"name": "f", "arguments": {"x": None}}}]}
    assert to_sample({"messages": turns}).messages == (
        Message("user", "Q"),
        Message("assistant", "", stored),
        Message("tool", "1", {"name": "f"}),
        Message("assistant", "", stored),
    )


@pytest.mark.parametrize(
    ("row_id", "own_id"),
    [("x", "x"), (0, "0"), (-3, "-3"), (np.int64(5), "5"), (None, None), ("", None)],
)
def test_own_id(row_id, own_id):
    assert to_sample({"text": "T", "id": row_id}).own_id == own_id


@pytest.mark.parametrize("number", [float, np.float64, np.float32, decimal.Decimal])
def test_a_whole_float_is_an_id_and_nan_is_none(number):
    """pandas makes floats of a column of integers with a gap."""
    ids = [
        to_sample({"text": "T", "id": number(text)}).own_id for text in ("1", "-0", "1e3", "nan")
    ]
    assert ids == ["1", "0", "1000", None]
    for text in ("1.5", "inf"):
        assert "wanted text or a whole number" in reason({"text": "T", "id": number(text)})


def test_a_float_that_may_be_one_of_several_ids_is_none():
    assert to_sample({"text": "T", "id": 2.0**53}).own_id == str(2**53)
    said = reason({"text": "T", "id": float(2**53 + 2)})
    assert "too large to tell whole numbers apart" in said
    assert "--columns id=" in said
    whole = decimal.Decimal(2**53 + 1)
    assert to_sample({"text": "T", "id": whole}).own_id == str(2**53 + 1)


@pytest.mark.parametrize(
    ("text", "own_id"),
    [
        *(("1.0", "1"), ("0.0", "0"), ("-7.0", "-7"), ("9007199254740992.0", "9007199254740992")),
        *((text, text) for text in ("1", "1.00", "1.5", "01.0", "v1.0", "1.0.0", ".0", "-0.0")),
        ("", None),
    ],
)
def test_a_whole_float_is_an_id_in_csv_too_and_text_elsewhere(tmp_path, text, own_id):
    path = tmp_path / "D.CSV"
    path.write_text(f"id,text\n{text},T\n", "utf-8")
    assert [one.own_id for one in open_sources(path)[0].samples()] == [own_id]
    assert to_sample({"text": "T", "id": text}).own_id == (text or None)


def test_no_column_need_be_the_id():
    """Where several rows have one id by nature."""
    row = {"prompt": "Q", "response": "A", "id": 7.5}
    for columns in ({"id": ""}, parse_columns("prompt=prompt, id=")):
        sample = to_sample(row, columns)
        assert (sample.messages, sample.own_id, sample.metadata) == (PAIR, None, {"id": 7.5})
    assert "no column '' for text" in reason(row, {"text": ""})


@pytest.mark.parametrize(
    ("value", "stored"),
    [
        (None, None),
        (True, True),
        (2**70, 2**70),
        (1.5, 1.5),
        (float("nan"), None),
        (float("-inf"), None),
        (decimal.Decimal("1.25"), 1.25),
        (decimal.Decimal("NaN"), None),
        (b"caf\xc3\xa9", "café"),
        (b"\xff\xd8\xff", "<3 bytes>"),
        (datetime.datetime(2024, 2, 29, 1, 2, 3), "2024-02-29T01:02:03"),
        (datetime.date(2024, 2, 29), "2024-02-29"),
        (np.float32("inf"), None),
        (np.float64(0.5), 0.5),
        (np.bool_(True), True),
        (np.array([1, 2]), [1, 2]),
        ({1: (None, {"a": [np.int8(3)]})}, {"1": [None, {"a": [3]}]}),
        ("a\x00b\ud800", "a\ufffdb\ufffd"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_metadata_becomes_json(value, stored):
    metadata = to_sample({"text": "T", "m": value}).metadata
    assert metadata == {"m": stored}
    assert type(metadata["m"]) is type(stored) or isinstance(metadata["m"], type(stored))
    json.dumps(metadata, allow_nan=False).encode()


@pytest.mark.parametrize(
    ("row", "columns", "messages"),
    [
        ({"Q": "Q", "R": "A"}, "prompt=Q,response=R", PAIR),
        ({"prompt": "Q", "R": "A", "text": "T"}, "response=R", PAIR),
        ({"body": "T", "prompt": "Q", "response": "A"}, "text=body", (Message(TEXT_ROLE, "T"),)),
        ({"chat": [m.as_dict() for m in PAIR], "text": "T"}, "messages=chat", PAIR),
        ({"prompt": "Q", "response": "A"}, "prompt=prompt", PAIR),
    ],
)
def test_columns_map_fields(row, columns, messages):
    assert to_sample(row, parse_columns(columns)).messages == messages


def test_the_id_can_be_mapped_alone():
    sample = to_sample({"prompt": "Q", "response": "A", "uid": 9, "id": "i"}, {"id": "uid"})
    assert (sample.messages, sample.own_id, sample.metadata) == (PAIR, "9", {"id": "i"})


def test_parse_columns():
    assert parse_columns("prompt=Q, response = A b") == {"prompt": "Q", "response": "A b"}
    assert parse_columns("text=a=b") == {"text": "a=b"}
    for text in ("", "prompt", "prompt=", "=Q", "prompt=Q,", "prompt=Q,prompt=R"):
        with pytest.raises(UsageError, match="prompt, response, messages, text, images, id"):
            parse_columns(text)
    with pytest.raises(UsageError, match="unknown fields: context; use prompt, response"):
        parse_columns("context=Q")
    with pytest.raises(UsageError, match="unknown fields: ignore"):
        parse_columns("ignore=Q")
    with pytest.raises(UsageError, match="unknown fields: answer"):
        open_sources([], {"answer": "A"})
    with pytest.raises(UsageError, match="columns names 'a' as prompt and as response; give each"):
        parse_columns("prompt=a,response=a")
    assert parse_columns("text=a,id=a") == {"text": "a", "id": "a"}


def turns(*pairs):
    return {"messages": [{"role": role, "content": content} for role, content in pairs]}


ENDING = "wanted turns that end with the assistant's"
BLANK = "is empty or blank at its end; nothing there to score"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "Q", "response": 3}, "'response' is int, wanted text"),
        ({"prompt": "Q", "response": None}, "'response' is null, wanted text"),
        ({"prompt": {"a": 1}, "Answer": "", "response": "A"}, "'prompt' is object, wanted text"),
        ({"prompt": "Q", "response": " \n"}, f"'response' {BLANK}"),
        ({"text": "\t"}, f"'text' {BLANK}"),
        ({"text": True}, "'text' is bool, wanted text"),
        ({"text": "a\x00"}, "'text' holds a NUL or something that is not UTF-8; clean it"),
        ({"text": "\udc80"}, "'text' holds a NUL or something that is not UTF-8; clean it"),
        ({"instruction": [], "input": "I", "output": "A"}, "'instruction' is list, wanted text"),
        ({"instruction": "Q", "input": 2, "output": "A"}, "'input' is int, wanted text"),
        ({"text": "T", "id": 1.5}, "the id is 1.5, wanted text or a whole number"),
        ({"text": "T", "id": True}, "the id is bool, wanted text or int"),
        ({"text": "T", "id": ["a"]}, "the id is list, wanted text or int"),
        ({"messages": "hello"}, "'messages' is text, wanted a list"),
        ({"messages": None}, "'messages' is null, wanted a list"),
        ({"messages": []}, f"'messages' is empty; {ENDING}"),
        (
            {"messages": ["hi"]},
            "turn 1 of 'messages' is text, wanted an object with role and content",
        ),
        ({"messages": [{"content": "x"}]}, "turn 1 of 'messages' has no role"),
        ({"messages": [{"role": "user"}]}, "turn 1 of 'messages' has no content"),
        ({"messages": [{}]}, "turn 1 of 'messages' has no role and no content"),
        ({"conversations": [{"from": "gpt"}]}, "turn 1 of 'conversations' has no value"),
        (
            turns(("user", "Q"), ("assistant", None)),
            "the content of turn 2 of 'messages' is null, wanted text",
        ),
        (
            turns(("user", [{"type": "text"}])),
            "the text of part 1 of turn 1 of 'messages' is null, wanted text",
        ),
        (turns((None, "Q")), "the role of turn 1 of 'messages' is null, wanted text"),
        (
            turns(("text", "Q")),
            "the role of turn 1 of 'messages' is 'text', wanted user, assistant, ...",
        ),
        (turns(("", "Q")), "the role of turn 1 of 'messages' is '', wanted user, assistant, ..."),
        (turns(("user", "Q")), f"'messages': no assistant turn; {ENDING}"),
        (turns(("user", "Q"), ("assistant", " ")), f"'messages' {BLANK}"),
        (
            {"Prompt": "Q", "reply": "A"},
            "no messages, no prompt with response, and no text among the columns: Prompt, reply; "
            "map them with --columns, as in prompt=QUESTION,response=REPLY",
        ),
        (
            {},
            "no messages, no prompt with response, and no text among the columns: (none); "
            "map them with --columns, as in prompt=QUESTION,response=REPLY",
        ),
    ],
)
def test_every_reason_for_a_bad_row(row, expected):
    assert reason(row) == expected


def test_a_mapped_column_must_be_there():
    row = {"a": "Q", "b": "A"}
    assert reason(row, {"prompt": "Q"}) == "no column 'Q' for prompt; the row has: a, b"
    assert reason(row, {"response": "b"}).startswith("no messages, no prompt with response")


LONG = "word " * 50


@pytest.mark.parametrize(
    ("beside", "unread"),
    [
        ({"topic": "sums", "n": 3, "url": "u" * 200}, ()),
        ({"notes": LONG}, ("notes",)),
        ({"context": "C", "Passage": "P", "document": ""}, ("context", "Passage")),
        ({"context": {"title": ["T"]}, "evidence": [], "video": "v.mp4"}, ("context", "video")),
        ({"first": "Q", "text": "Q"}, ()),
        ({"input": None, "options": " "}, ()),
    ],
)
def test_columns_that_are_not_read_are_named(beside, unread):
    for row in ({"prompt": "Q", "response": "A"}, {"messages": [m.as_dict() for m in PAIR]}):
        found = to_sample({**row, **beside})
        assert found.unread == unread
        assert found.metadata == beside


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        ({"text": "T", "instruction": "Q"}, ("instruction",)),
        ({"text": "T", "response": "A", "answer": None}, ("response",)),
        ({"text": "T", "chosen": "T", "x": "X"}, ()),
    ],
)
def test_what_pairs_are_made_of_is_named_beside_text(row, unread):
    found = to_sample(row)
    assert (found.is_text, found.unread) == (True, unread)
    assert to_sample(row, {"text": "text"}).unread == ()


NAN = float("nan")
CHAT = [m.as_dict() for m in PAIR]


@pytest.mark.parametrize("null", [None, NAN, np.float32("nan").item()])
@pytest.mark.parametrize(
    ("row", "of"),
    [
        ({"prompt": "Q", "response": "A"}, ["messages"]),
        ({"prompt": "Q", "completion": "A"}, ["response"]),
        ({"conversations": CHAT}, ["messages"]),
        ({"input": "Q", "output": "A"}, ["instruction"]),
        ({"data": ["Q", "A"]}, ["messages", "texts"]),
        ({"input_ids": [1, 2]}, ["text"]),
        ({"text": "T"}, ["query", "answer"]),
    ],
)
def test_a_null_cell_decides_no_shape(row, of, null):
    found = to_sample(dict.fromkeys(of, null) | row)
    assert found.messages == to_sample(row).messages
    assert found.metadata == dict.fromkeys(of)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"messages": None, "x": "X"}, "'messages' is null, wanted a list"),
        ({"prompt": "Q", "response": NAN, "text": None}, "'response' is float, wanted text"),
        ({"prompt": "Q", "chosen": None, "rejected": "B"}, "'chosen' is null, wanted text"),
    ],
)
def test_null_cells_without_another_shape_are_refused(row, told):
    assert reason(row) == told


def test_a_mapped_cell_that_is_null_gives_no_other_shape():
    row = {"prompt": "Q", "response": "A", "answer": None}
    assert reason(row, {"response": "answer"}) == "'answer' is null, wanted text"


def test_text_that_a_turn_repeats_is_read():
    """As the first words of UltraChat's conversations stand in a column of their own."""
    turns = [{"role": "user", "content": LONG}, {"role": "assistant", "content": "A"}]
    assert to_sample({"prompt": LONG, "messages": turns}).unread == ()
    assert to_sample({"prompt": LONG + "more", "messages": turns}).unread == ("prompt",)


def test_a_passage_of_another_shape_is_not_read_and_named():
    """As HotpotQA's."""
    context = {"title": ["T"], "sentences": [["S"]]}
    found = to_sample({"id": "h", "question": "Q", "answer": "A", "context": context})
    assert found.messages == PAIR
    assert (found.metadata, found.unread) == ({"context": context}, ("context",))


def test_columns_can_be_ignored():
    row = {"id": "i", "text": "T", "prompt": "Q", "response": "A", "Context": LONG}
    found = to_sample(row, ignoring(None, "id,prompt"))
    assert (found.messages, found.own_id) == ((Message(TEXT_ROLE, "T"),), None)
    assert found.metadata == {"id": "i", "prompt": "Q", "response": "A", "Context": LONG}
    assert found.unread == ("response", "Context")
    assert to_sample(row, ignoring({}, ["Context"])).unread == ()
    with pytest.raises(BadSampleError, match="no messages, no prompt with response"):
        to_sample({"text": "T"}, ignoring(None, "text"))


def test_ignored_columns_of_images_are_metadata():
    found = to_sample({"text": "T", "image": "a.png"}, ignoring(None, "image"))
    assert (found.images, found.metadata) == ((), {"image": "a.png"})


def test_what_is_ignored_stays_with_the_mapping():
    assert ignoring(None, "") == {}
    assert ignoring({"text": "T"}, ()) == {"text": "T"}
    assert ignoring({"text": "T"}, "Tools, name") == {"text": "T", "ignore": "tools,name"}
    for names in ("role", "content,name", "a,,b", ["a,b"], [""]):
        with pytest.raises(UsageError, match="--ignore cannot leave out"):
            ignoring(None, names)


# Names that mean something in turns, and values of every kind beneath them.
FIELDS_OF_TURNS = (
    *("role", "content", "from", "value", "tool_calls", "function_call", "weight", "train", "name"),
    *("type", "text", "label", "function", "arguments", "input", "replies", "rank", "user", "x"),
)
WORDS = st.sampled_from(
    [
        *(
            "",
            " ",
            "Q",
            "A",
            "user",
            "assistant",
            "function_call",
            "tool_use",
            "tool_result",
            "text",
        ),
        *("[]", "{}", '[{"role": "user", "content": "q"}]', '{"name": "f"}', "0", "B", "<image>"),
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS | st.binary(max_size=3) | st.dates(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(FIELDS_OF_TURNS), inner, max_size=4)
    ),
    max_leaves=12,
)
PARTS = st.lists(
    st.fixed_dictionaries(
        {
            "type": st.sampled_from(
                ["text", "image", "tool_use", "tool_result", "thinking", "video"]
            )
        },
        optional={
            "text": WORDS,
            "thinking": WORDS,
            "name": WORDS,
            "input": VALUES,
            "content": VALUES,
        },
    ),
    max_size=3,
)
CALLS = st.lists(
    st.fixed_dictionaries({"name": WORDS}, optional={"arguments": VALUES, "id": WORDS}), max_size=2
)
TURNS = st.lists(
    st.fixed_dictionaries(
        {
            "role": st.sampled_from(["user", "assistant", "system", "tool"]),
            "content": WORDS | PARTS,
        },
        optional={"tool_calls": CALLS, "weight": st.sampled_from([0, 1, 0.5, "0"]), "name": WORDS},
    ),
    max_size=5,
)
CELLS = VALUES | TURNS | WORDS
# The columns of a convention, and some others beside them.
BESIDE = st.dictionaries(
    st.sampled_from(["system", "tools", "history", "input", "choices", "images", "labels", "x"]),
    CELLS,
    max_size=2,
)
OF_A_CONVENTION = st.sampled_from([*CONVENTIONS, *BY_VALUE, TOKENS]).flatmap(
    lambda convention: st.fixed_dictionaries(
        {name: CELLS for names in convention.values() for name in listed(names)[:1]}
    )
)
ROWS = st.builds(lambda beside, row: beside | row, BESIDE, OF_A_CONVENTION)


def sample_or_reason(row, of_arrow):
    try:
        return to_sample(row, origin=ARROW if of_arrow else JSON)
    except BadSampleError as error:
        return str(error)


@settings(max_examples=400, deadline=None)
@given(ROWS, st.booleans())
def test_any_row_is_a_sample_or_is_refused_in_one_line(row, of_arrow):
    found = sample_or_reason(row, of_arrow)
    if isinstance(found, str):
        assert "\n" not in found
        return
    if not found.is_text and not found.is_tokens:
        assert found.messages[-1].role == "assistant"
        assert any(message.is_trained for message in found.messages)
    json.dumps([found.content_hash, found.metadata, found.tools], allow_nan=False)


@settings(max_examples=200, deadline=None)
@given(TURNS, st.booleans())
def test_a_sample_as_a_row_is_the_same_sample(turns, of_arrow):
    if of_arrow:  # it cannot tell nulls of the data from those of other rows
        turns = without_nulls(storable(turns))
    try:
        found = to_sample({"id": "i", "messages": turns, "tools": [{"name": "f"}]})
    except BadSampleError:
        return
    row = {"id": "i", "messages": [m.as_row() for m in found.messages], "tools": list(found.tools)}
    again = to_sample(row, origin=ARROW if of_arrow else JSON)
    assert (again, again.content_hash) == (found, found.content_hash)
