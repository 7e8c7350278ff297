"""Pairs of a chosen and a rejected answer."""

import json

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import ignoring, parse_columns, to_sample


def turn(role, content):
    return {"role": role, "content": content}


def read(row, columns=None):
    return [(m.role, m.content) for m in to_sample(row, columns).messages]


ASKED = turn("user", "Q")
GOOD, BAD = turn("assistant", "A"), turn("assistant", "B")
PAIR = [("user", "Q"), ("assistant", "A")]
EARLIER = [turn("system", "S"), turn("user", "q"), turn("assistant", "a")]
LONG = [("system", "S"), ("user", "q"), ("assistant", "a"), *PAIR]
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: Q\n\nAssistant:"

ROWS = {
    "texts": ({"prompt": "Q", "chosen": "A", "rejected": "B"}, PAIR),
    "a question": ({"question": "Q", "chosen": "A", "rejected": "B"}, PAIR),
    "with system": (
        {"system": "S", "question": "Q", "chosen": "A", "rejected": "B"},
        [("system", "S"), *PAIR],
    ),
    "Alpaca": (
        {"instruction": "Q", "input": "I", "chosen": "A", "rejected": "B"},
        [("user", "Q\n\nI"), PAIR[1]],
    ),
    "lists with a prompt": ({"prompt": [ASKED], "chosen": [GOOD], "rejected": [BAD]}, PAIR),
    "lists of conversations": ({"chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]}, PAIR),
    "UltraFeedback": (
        {"prompt": "Q", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD], "score_chosen": 8},
        PAIR,
    ),
    "the prompt in all": (
        {"prompt": [ASKED], "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
        PAIR,
    ),
    "a system turn in the prompt alone": (
        {
            "prompt": [turn("system", "S"), ASKED],
            "chosen": [ASKED, GOOD],
            "rejected": [ASKED, BAD],
        },
        [("system", "S"), *PAIR],
    ),
    "several turns": (
        {"chosen": [*EARLIER, ASKED, GOOD], "rejected": [*EARLIER, ASKED, BAD]},
        LONG,
    ),
    "several turns before": (
        {"prompt": [*EARLIER, ASKED], "chosen": [GOOD], "rejected": [BAD]},
        LONG,
    ),
    "HH": ({"chosen": f"{HH} A", "rejected": f"{HH} B"}, LONG[1:]),
    "HH with a prompt": (
        {"prompt": HH, "chosen": " A", "rejected": " B"},
        [*LONG[1:-1], ("assistant", " A")],
    ),
    "answers that are lists": (
        {"prompt": "Q", "chosen": "A", "rejected": "[1, {}]"},
        PAIR,
    ),
    "text of JSON in all": (
        {
            "prompt": json.dumps([ASKED]),
            "chosen": json.dumps([GOOD]),
            "rejected": json.dumps([BAD]),
        },
        PAIR,
    ),
    "text of JSON": (
        {"chosen": json.dumps([ASKED, GOOD]), "rejected": json.dumps([ASKED, BAD])},
        PAIR,
    ),
    "ShareGPT of LLaMA-Factory": (
        {
            "conversations": [{"from": "human", "value": "Q"}],
            "chosen": {"from": "gpt", "value": "A"},
            "rejected": {"from": "gpt", "value": "B"},
        },
        PAIR,
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_the_chosen_answer_is_read_and_trained_alone(case):
    row, expected = ROWS[case]
    found = to_sample(row)
    assert [(m.role, m.content) for m in found.messages] == expected
    assert [m.content.strip() for m in found.messages if m.is_trained] == ["A"]
    assert found.metadata["rejected"] == row["rejected"]
    assert found.unread == ()


@pytest.mark.parametrize("case", ROWS)
def test_the_rejected_answer_can_be_read(case):
    row, expected = ROWS[case]
    for mapping in ("chosen=rejected", "chosen=rejected,rejected=chosen"):
        found = to_sample(row, parse_columns(mapping))
        answer = expected[-1][1].replace("A", "B")
        if case == "answers that are lists":
            answer = row["rejected"]
        assert [(m.role, m.content) for m in found.messages] == [
            *expected[:-1],
            ("assistant", answer),
        ]
        assert found.metadata["chosen"] == row["chosen"]
        assert ("rejected" in found.metadata) == ("conversations" in row)  # beside messages all is


def test_margins_are_metadata():
    row = {"prompt": "Q", "chosen": "A", "rejected": "B", "margin": 0.5}
    assert to_sample(row).metadata == {"rejected": "B", "margin": 0.5}


# As HuggingFaceH4/ultrafeedback_binarized has it.
COMPLETE = {
    "prompt": "Q",
    "chosen": [ASKED, GOOD],
    "rejected": [ASKED, BAD],
    "messages": [ASKED, GOOD],
}


def test_a_conversation_that_is_complete_does_not_go_on():
    found = to_sample(COMPLETE)
    assert [(m.role, m.content) for m in found.messages] == PAIR
    assert found.metadata.keys() == {"prompt", "chosen", "rejected"}
    assert found.unread == ()


def test_another_answer_than_that_of_a_complete_conversation_must_be_chosen_alone():
    mapping = parse_columns("chosen=rejected")
    with pytest.raises(BadSampleError) as error:
        to_sample(COMPLETE, mapping)
    assert str(error.value) == (
        "'messages' ends with an answer, and --columns names 'rejected' as the chosen one; leave "
        "one out, as with --ignore messages"
    )
    assert read(COMPLETE, ignoring(mapping, "messages")) == [("user", "Q"), ("assistant", "B")]
    assert read(COMPLETE, {"chosen": "chosen"}) == PAIR


def test_equal_answers_still_have_one_that_is_trained():
    row = {"chosen": [*EARLIER, ASKED, GOOD], "rejected": [*EARLIER, ASKED, GOOD]}
    assert [m.content for m in to_sample(row).messages if m.is_trained] == ["A"]


def test_answers_that_part_early_are_trained_from_there():
    other = [turn("user", "q"), turn("assistant", "z"), ASKED, BAD]
    row = {"chosen": [turn("user", "q"), turn("assistant", "a"), ASKED, GOOD], "rejected": other}
    assert [m.content for m in to_sample(row).messages if m.is_trained] == ["a", "A"]


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"chosen": "A", "rejected": "B"},
            "'chosen' has no question, and no column is the prompt;",
        ),
        ({"chosen": [GOOD], "rejected": [BAD]}, "'chosen' has no question, and no column is the"),
        ({"prompt": "Q", "chosen": None, "rejected": "B"}, "'chosen' is null, wanted text"),
        (
            {"prompt": "other", "chosen": [ASKED, GOOD], "rejected": [ASKED, BAD]},
            "'chosen' has questions, and 'prompt' is none of them; leave out one",
        ),
        ({"prompt": "Q", "chosen": " ", "rejected": "B"}, "'chosen' is empty or blank at its end"),
        (
            {"chosen": [ASKED, 7], "rejected": [ASKED, BAD]},
            "turn 2 of 'chosen' is int, wanted an object with role and content",
        ),
    ],
)
def test_pairs_that_cannot_be_read(row, told):
    with pytest.raises(BadSampleError) as error:
        to_sample(row)
    assert str(error.value).startswith(told)


def test_kto_keeps_its_label_to_filter_by():
    row = {"prompt": "Q", "completion": "B", "label": False}
    found = to_sample(row)
    assert (found.response, found.metadata) == ("B", {"label": False})
