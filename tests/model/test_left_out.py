"""What a template leaves out is refused by name, or counted where nobody says it."""

import pytest
from chats import GPT_OSS, QWEN3, conversation, encoded, labels, read
from models import CHATML

from forvalue_index.exceptions import BadSampleError

CALL = {"type": "function", "function": {"name": "w", "arguments": {"city": "Rome"}}}
KNOWN_ROLES = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
)


def turns(*messages):
    return {"messages": [{"role": role, **fields} for role, fields in messages]}


@pytest.mark.parametrize(
    ("row", "template", "said"),
    [
        (
            turns(
                ("user", {"content": "x"}),
                ("assistant", {"content": "y"}),
                ("tool", {"content": "3 C"}),
                ("assistant", {"content": "3 C"}),
            ),
            KNOWN_ROLES,
            "leaves out what the role tool says in turn 3",
        ),
        (
            turns(
                ("developer", {"content": "Be terse."}),
                ("user", {"content": "Q"}),
                ("assistant", {"content": "A"}),
            ),
            KNOWN_ROLES,
            "leaves out what the role developer says in turn 1",
        ),
        (
            conversation("x", "", tool_calls=[CALL]),
            CHATML,
            "leaves out tool_calls of turn 2 (assistant)",
        ),
        (
            conversation("x", "y", tool_calls=[CALL]),
            CHATML,
            "leaves out tool_calls of turn 2 (assistant)",
        ),
        (
            conversation("x", "y", reasoning_content="3*3"),
            CHATML,
            "leaves out reasoning_content of turn 2 (assistant)",
        ),
        (
            turns(("user", {"content": "x", "name": "Bo"}), ("assistant", {"content": "y"})),
            CHATML,
            "leaves out name of turn 1 (user)",
        ),
        (conversation("x", "y") | {"tools": [{"name": "t"}]}, CHATML, "leaves out the tools"),
        (
            conversation("x", "<reasoning>deep</reasoning>yes"),
            CHATML.replace("m.content", "m.content.split('</reasoning>')[-1]"),
            "leaves out the beginning of what the role assistant says in turn 2",
        ),
        (
            conversation("x", "", tool_calls=[CALL]),
            CHATML.replace(
                "{{ m.content }}",
                "{{ m.content }}{% for c in m.tool_calls %}{{ c.function.name }}{% endfor %}",
            ),
            "leaves out tool_calls of turn 2 (assistant)",
        ),
        (
            turns(
                ("system", {"content": "S", "tools": [{"name": "t"}]}),
                ("user", {"content": "x"}),
                ("assistant", {"content": "y"}),
            ),
            QWEN3,
            "leaves out the tools of turn 1",
        ),
        (
            conversation("x", "<think>u</think>z"),
            CHATML.replace("m.content", "m.content.split('</think>')[-1]"),
            "leaves out the thought of turn 2",
        ),
    ],
)
def test_what_the_model_would_miss_is_refused_by_name(row, template, said):
    with pytest.raises(BadSampleError) as error:
        encoded(row, template)
    assert said in str(error.value)
    assert "--chat-template" in str(error.value)
    with pytest.raises(BadSampleError):
        encoded(row, template, labels="all")


def test_a_word_that_stands_elsewhere_too_does_not_hide_what_is_left_out():
    """What the tool says was taken for rendered, as the answer holds it, too."""
    row = turns(
        ("user", {"content": "x"}),
        ("assistant", {"content": "y"}),
        ("tool", {"content": "21"}),
        ("assistant", {"content": "It is 21"}),
    )
    with pytest.raises(BadSampleError, match="role tool says in turn 3"):
        encoded(row, KNOWN_ROLES)


def test_tools_and_calls_are_given_to_templates_that_take_them():
    row = conversation("x", None, tool_calls=[CALL]) | {"tools": [{"name": "w"}]}
    assert '{"name": "w"}' in read(row, QWEN3)
    assert 'w{"city": "Rome"}' in read(row, QWEN3)


def test_a_call_without_arguments_is_given_to_templates_that_take_calls():
    """It was taken for one whose arguments are left out."""
    bare = {"type": "function", "function": {"name": "w", "arguments": {}}}
    assert (
        "<tool_call>w{}</tool_call>" in labels(conversation("x", "", tool_calls=[bare]), QWEN3)[0]
    )


def test_thoughts_have_the_name_that_the_template_reads():
    """transformers hands them on under each name that is in use."""
    for name in ("reasoning_content", "thinking", "reasoning"):
        row = conversation("x", "y", **{name: "3*3"})
        assert labels(row, QWEN3) == ["<think>\n3*3\n</think>\n\ny<|im_end|>"]
        assert "analysis<|message|>3*3<|end|>" in labels(row, GPT_OSS)[0]


def test_thoughts_of_earlier_turns_are_left_out_as_in_training():
    row = conversation("x", "y", "z", "w")
    row["messages"][1]["reasoning_content"] = "hm"
    assert labels(row, QWEN3)[0] == "y<|im_end|>"
    assert encoded(row, QWEN3).unrendered == ("reasoning_content",)


def test_fields_that_nobody_says_are_counted():
    row = turns(
        ("user", {"content": "x", "timestamp": 1}),
        ("assistant", {"content": "y", "rating": 5}),
    )
    assert set(encoded(row, CHATML).unrendered) == {"timestamp", "rating"}
    named = turns(
        ("user", {"content": "x"}),
        ("assistant", {"content": "", "tool_calls": [CALL]}),
        ("tool", {"content": "sun", "name": "w", "tool_call_id": "c1"}),
        ("assistant", {"content": "y"}),
    )
    assert set(encoded(named, QWEN3).unrendered) == {"name", "tool_call_id"}


def test_a_field_whose_name_the_template_has_for_something_else_is_counted():
    row = turns(("user", {"content": "x", "index": 3}), ("assistant", {"content": "y"}))
    worded = "{% set index = 1 %}" + CHATML
    assert encoded(row, worded).unrendered == ("index",)


def test_plain_text_has_no_place_for_tools():
    for row in (
        conversation("x", "", tool_calls=[CALL]),
        conversation("x", "y") | {"tools": [{"name": "t"}]},
    ):
        with pytest.raises(BadSampleError, match="which plain text has no place for"):
            encoded(row, None, template="plain")
