"""Labels lie in the assistant's turns alone, and every turn keeps its rendering to its end token.

Expected runs of labels are written by hand, from what each template renders.
"""

import pytest
from chats import (
    GEMMA,
    GPT_OSS,
    LATE_TOOLS,
    OPEN_END,
    PHI3,
    QWEN3,
    QWEN3_THINKING,
    conversation,
    labels,
    read,
    tokenizer_for,
)
from models import CHATML

from forvalue_index.exceptions import BadSampleError

EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
TWICE = conversation("Is 7 prime?", "Yes", "Is 9 prime?", "No")
THOUGHTS = conversation(
    "Is 7 prime?", "<think>\nhm\n</think>\n\nYes", "Is 9?", "<think>\n3*3\n</think>\n\nNo"
)
CALL = {"function": {"name": "w", "arguments": {"city": "Rome"}}, "type": "function"}
TOOL = {
    "messages": [
        {"role": "user", "content": "weather?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sun"},
        {"role": "assistant", "content": "Sunny"},
    ]
}
CALLED = '<tool_call>w{"city": "Rome"}</tool_call><|im_end|>'


@pytest.mark.parametrize(
    ("template", "row", "expected"),
    [
        (QWEN3, TWICE, ["Yes<|im_end|>", f"{EMPTY_THOUGHT}No<|im_end|>"]),
        (QWEN3, THOUGHTS, ["Yes<|im_end|>", "<think>\n3*3\n</think>\n\nNo<|im_end|>"]),
        # An empty thought in both answers made the second one be found where the first is.
        (
            QWEN3,
            conversation("Is 7?", f"{EMPTY_THOUGHT}Yes", "Is 11?", f"{EMPTY_THOUGHT}Yes"),
            ["Yes<|im_end|>", f"{EMPTY_THOUGHT}Yes<|im_end|>"],
        ),
        (QWEN3, TOOL, [CALLED, f"{EMPTY_THOUGHT}Sunny<|im_end|>"]),
        # What a generation prompt says already is not said by the model.
        (QWEN3_THINKING, TWICE, ["Yes<|im_end|>", "\n</think>\n\nNo<|im_end|>"]),
        (QWEN3_THINKING, THOUGHTS, ["Yes<|im_end|>", "3*3\n</think>\n\nNo<|im_end|>"]),
        (
            GPT_OSS,
            conversation("2+2", "4", "12+12", "24"),
            ["<|channel|>final<|message|>4<|end|>", "<|channel|>final<|message|>24<|return|>"],
        ),
        (
            GPT_OSS,
            conversation("2+2", "4", "12+12", "24", thinking="add"),
            [
                "<|channel|>final<|message|>4<|end|>",
                "<|channel|>analysis<|message|>add<|end|><|start|>assistant<|channel|>final"
                "<|message|>24<|return|>",
            ],
        ),
        (PHI3, TWICE, ["Yes<|end|>", "No<|end|>"]),
        (GEMMA, TWICE, ["Yes<end_of_turn>", "No<end_of_turn>"]),
        (
            GEMMA,
            conversation("Hi", " Yes \n", "x", "\tBye"),
            ["Yes<end_of_turn>", "Bye<end_of_turn>"],
        ),
        (LATE_TOOLS, TWICE | {"tools": [{"name": "t"}]}, [" Yes</s>", " No</s>"]),
        (OPEN_END, TWICE, [" Yes</s>", " No"]),
        # Its end token was special without standing in the list of special tokens.
        (
            CHATML.replace("<|im_end|>", "<end_of_turn>"),
            TWICE,
            ["Yes<end_of_turn>", "No<end_of_turn>"],
        ),
    ],
)
def test_every_turn_is_labelled_up_to_its_end_token(template, row, expected):
    assert labels(row, template) == expected


def test_a_repeated_answer_is_found_in_its_own_turn():
    row = conversation("Yes", "Yes", "Yes", "Yes")
    for template in (QWEN3, GPT_OSS, PHI3, GEMMA, LATE_TOOLS, OPEN_END):
        first, second = labels(row, template)
        assert "Yes" in first
        assert "Yes" in second


def test_the_last_turn_alone():
    assert labels(THOUGHTS, QWEN3, labels="last") == ["<think>\n3*3\n</think>\n\nNo<|im_end|>"]
    assert labels(conversation("a", "b"), CHATML, labels="last") == ["b<|im_end|>"]


@pytest.mark.parametrize("field", ["train", "weight"])
def test_a_turn_that_is_not_to_be_trained_is_context(field):
    row = {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "5, sorry, wrong.", field: 0},
            {"role": "user", "content": "Again"},
            {"role": "assistant", "content": "4"},
        ]
    }
    assert labels(row, CHATML) == ["4<|im_end|>"]
    assert "5, sorry" in read(row, CHATML)


def test_an_end_token_that_the_data_have_is_labelled_once():
    assert labels(conversation("a", "b<|im_end|>"), CHATML) == ["b<|im_end|>"]
    assert labels(conversation("a", "b<|im_end|>\n"), CHATML) == ["b<|im_end|>"]
    assert labels(conversation("a", "b<|im_end|><|im_end|>"), CHATML) == ["b<|im_end|>"]


def test_a_last_turn_that_is_not_to_be_trained_leaves_nothing_to_score():
    row = conversation("a", "b", "c", "d", weight=0)
    assert labels(row, CHATML) == ["b<|im_end|>"]
    with pytest.raises(BadSampleError, match="its last turn is not to be trained"):
        labels(row, CHATML, labels="last")


def test_a_template_that_puts_a_turn_into_another_is_refused():
    """It writes what the user says behind what the assistant says, before the end token."""
    nested = (
        "{% for m in messages if m.role == 'assistant' %}{{ m.content }}"
        "{% for u in messages if u.role == 'user' %}{{ u.content }}{% endfor %}"
        "<|im_end|>{% endfor %}"
    )
    with pytest.raises(BadSampleError, match="renders turn 1 within the assistant's turn 2"):
        labels(conversation("question", "answer"), nested)


def test_a_token_of_both_assistant_and_user_is_refused():
    """`a` + `b` is one token of this tokenizer."""
    joined = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert "ab" in tokenizer_for(None).tokenize("ab")
    with pytest.raises(BadSampleError, match="the token 'ab' has letters of the assistant and of"):
        labels(conversation("a", "b"), joined)
    assert labels(conversation("a", "x"), joined) == ["x"]
