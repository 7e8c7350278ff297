"""Conversations in the cells of pairs."""

import json

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample

ASKED, SAID = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
EARLIER = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: Q\n\nAssistant:"
PAIR = [("user", "Q"), ("assistant", "A")]
LONG = [("user", "q"), ("assistant", "a"), *PAIR]


def read(row, columns=None):
    return [(m.role, m.content) for m in to_sample(row, columns).messages]


@pytest.mark.parametrize("answer", ["response", "completion"])
@pytest.mark.parametrize(
    ("prompt", "response", "expected"),
    [
        ([ASKED], [SAID], PAIR),
        (json.dumps([ASKED]), json.dumps([SAID]), PAIR),
        (ASKED, SAID, PAIR),
        ("Q", SAID, PAIR),
        ("Q", {"from": "gpt", "value": "A"}, PAIR),
        (json.dumps([*EARLIER, {"from": "human", "value": "Q"}]), "A", LONG),
        (HH, "A", LONG),
        (HH, json.dumps([SAID]), LONG),
    ],
)
def test_conversations_of_pairs(prompt, response, expected, answer):
    found = to_sample({"prompt": prompt, answer: response})
    assert [(m.role, m.content) for m in found.messages] == expected
    assert [m.content for m in found.messages if m.is_trained] == ["A"]


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "[1, 2]",
        json.dumps([{"from": "a", "to": "b"}]),
        json.dumps([{"role": "manager", "name": "Ada"}]),
        json.dumps(SAID),
        "Human: q",
    ],
)
def test_text_of_another_kind_stays_text(text):
    assert read({"prompt": text, "response": text}) == [("user", text), ("assistant", text)]


def test_one_turn_of_a_transcript_with_a_passage():
    row = {"prompt": "\n\nHuman: Q\n\nAssistant:", "response": "A", "passage": "P"}
    assert read(row, {"input": "passage"}) == [("user", "Q\n\nP"), ("assistant", "A")]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"prompt": json.dumps([ASKED, {"role": "user"}]), "response": "A"},
            "turn 2 of 'prompt' has no content",
        ),
        ({"prompt": "Q", "completion": {"role": "assistant"}}, "'completion' is dict, wanted text"),
        (
            {"prompt": HH, "response": "A", "input": "P"},
            "'prompt' is a conversation, and a passage",
        ),
        ({"prompt": [ASKED], "response": "A", "input": "P"}, "'prompt' is list, wanted text"),
    ],
)
def test_conversations_that_cannot_be_read(row, told):
    mapping = {"input": "input"} if "input" in row else None
    with pytest.raises(BadSampleError) as error:
        to_sample(row, mapping)
    assert str(error.value).startswith(told.replace("dict", "object"))
