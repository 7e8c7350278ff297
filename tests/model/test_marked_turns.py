"""Marks say where a template puts what each turn says, and change nothing else."""

import pytest
from chats import QWEN3, conversation, tokenizer_for
from models import CHATML

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import Chat, ChatTemplate
from forvalue_index.model.marked_turns import (
    MARKS,
    Slot,
    find_places,
    slots_of,
    with_written_arguments,
)
from forvalue_index.sources.columns import to_sample

CALL = {"function": {"name": "w", "arguments": {"city": "Rome é"}}, "type": "function"}


def found(row, source):
    template = ChatTemplate(tokenizer_for(source))
    chat = template.chat(to_sample(row))
    text = template.rendered(chat)
    return text, find_places(template, chat, text)


def test_the_place_of_each_turn_is_behind_what_it_says():
    text, places = found(conversation("one", "two \n", "one", "two"), CHATML)
    both = [(slot, place) for slot, (place,) in places.positions.items()]
    assert [text[:place][-1] for slot, place in both if slot.field == "beginning"] == [*"otot"]
    ends = [(slot.turn, place) for slot, place in both if slot.field == "content"]
    assert [text[:place].rsplit("\n", 1)[1] for _, place in ends] == ["one", "two", "one", "two"]
    assert [turn for turn, _ in ends] == [0, 1, 2, 3]
    assert not MARKS.search(text)


def test_calls_thoughts_and_names_have_places_of_their_own():
    row = conversation("x", "<think>\nhm\n</think>\n\nyes", tool_calls=[CALL, CALL])
    slots = list(slots_of(ChatTemplate(tokenizer_for(QWEN3)).chat(to_sample(row))))
    assert slots == [
        Slot(0, "content"),
        Slot(1, "thought"),
        Slot(1, "content"),
        Slot(1, "tool_calls"),
        Slot(1, "tool_calls", 1),
    ]
    text, places = found(row, QWEN3)
    assert [text[:p].endswith(e) for e, (p,) in zip(
        ["x", "hm", "yes", "<tool_call>w", "<tool_call>w"], places.positions.values(), strict=True
    )] == [True] * 5  # fmt: skip


def test_what_is_left_out_has_no_place():
    row = conversation("x", "y", reasoning_content="hm")
    text, places = found(row, CHATML)
    assert places.positions[Slot(1, "reasoning_content")] == []
    assert list(places.of_turn(1)) == [(places.marks[Slot(1, "content")], text.rindex("y") + 1)]


def test_a_text_whose_end_a_template_looks_at_is_marked_in_its_middle():
    """Qwen3 tells results of tools by how the user's words begin and end."""
    words = "<tool_response>sun</tool_response>"
    row = conversation("q", "<think>\nhm\n</think>\n\na", words, "b")
    text, places = found(row, QWEN3)
    (place,) = places.positions[Slot(2, "content")]
    assert places.marks[Slot(2, "content")].in_middle
    assert words.startswith(text[:place].rsplit("\n", 1)[1])


def test_a_text_that_no_mark_leaves_as_it_is_has_none():
    counted = "{% for m in messages %}{{ m.content | length }}{{ m.content }};{% endfor %}"
    _, places = found(conversation("x", "y"), counted)
    assert places.marks == {}


def test_texts_that_hold_marks_are_refused():
    with pytest.raises(BadSampleError, match="private use"):
        found(conversation("x", "y\U000f0000"), CHATML)


def test_arguments_as_text():
    bare = {"name": "w", "arguments": {"n": 1}}
    chat = Chat([{"role": "assistant", "content": "", "tool_calls": [CALL, bare, {"name": "v"}]}])
    written = with_written_arguments(chat).turns[0]["tool_calls"]
    assert written[0]["function"]["arguments"] == '{"city": "Rome é"}'
    assert written[1:] == [{"name": "w", "arguments": '{"n": 1}'}, {"name": "v"}]
    assert with_written_arguments(with_written_arguments(chat)) == with_written_arguments(chat)
