"""What every conversation must have, and its system turn from a column of its own."""

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample


def row(*roles, **more):
    return {"messages": [{"role": r, "content": r[0]} for r in roles], **more}


def read(row, columns=None):
    return [(m.role, m.content) for m in to_sample(row, columns).messages]


@pytest.mark.parametrize("end", [("user",), ("tool",), ("user", "system"), ()])
def test_a_conversation_counts_up_to_the_last_that_the_assistant_says(end):
    found = to_sample(row("user", "assistant", *end))
    assert [m.role for m in found.messages] == ["user", "assistant"]
    assert found.cut_turns == len(end)


def test_without_the_assistant_it_is_refused():
    for roles in (("user",), ("user", "tool"), ("system",)):
        with pytest.raises(
            BadSampleError, match="'messages': no assistant turn; wanted turns that"
        ):
            to_sample(row(*roles))


SAID = [("system", "S"), ("user", "u"), ("assistant", "a")]
ASKED = ("user", "assistant")


@pytest.mark.parametrize("column", ["system", "System", "system_prompt"])
def test_a_system_column_is_the_first_turn(column):
    assert read(row(*ASKED, **{column: "S"})) == SAID
    for nothing in (None, "", " \n", float("nan")):
        found = to_sample(row(*ASKED, **{column: nothing}))
        assert found == to_sample(row(*ASKED))


@pytest.mark.parametrize(
    "shape",
    [
        {"prompt": "u", "response": "a"},
        {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]},
        {"prompt": "u", "chosen": "a", "rejected": "b"},
        {"data": ["u", "a"]},
        {"texts": [{"user": "u", "assistant": "a"}]},
        {
            "message_tree_id": "1",
            "prompt": {
                "role": "prompter",
                "text": "u",
                "replies": [{"role": "assistant", "text": "a"}],
            },
        },
    ],
)
def test_a_system_column_beside_every_shape(shape):
    assert read({**shape, "system": "S"}) == SAID
    assert read({**shape, "rules": "S"}, {"system": "rules"}) == SAID
    ignored = to_sample({**shape, "system": "S"}, {"ignore": "system"})
    assert [(m.role, m.content) for m in ignored.messages] == SAID[1:]
    assert (ignored.metadata["system"], ignored.unread) == ("S", ())


def test_a_system_column_may_repeat_the_system_turn_and_not_contradict_it():
    assert read(row("system", *ASKED, system="s"))[0] == ("system", "s")
    assert len(read(row("system", *ASKED, system=" s\n"))) == 3
    with pytest.raises(BadSampleError) as error:
        read(row("system", *ASKED, system="other"))
    assert str(error.value) == (
        "'system' is not what the system turn of the conversation says; leave one out, as with "
        "--ignore system"
    )


def test_a_column_called_system_that_is_no_text_is_metadata_and_named():
    found = to_sample(row(*ASKED, system={"os": "linux"}))
    assert [m.role for m in found.messages] == ["user", "assistant"]
    assert (found.metadata, found.unread) == ({"system": {"os": "linux"}}, ("system",))


def test_plain_text_has_no_system_turn():
    found = to_sample({"text": "T", "system": "S"})
    assert [m.role for m in found.messages] == ["text"]
    assert (found.metadata, found.unread) == ({"system": "S"}, ("system",))


def test_what_is_called_a_dialogue_and_is_none_can_be_mapped():
    with pytest.raises(BadSampleError, match="'dialogue' is text, wanted a list; map columns with"):
        to_sample({"dialogue": "A: hi", "summary": "x"})
    mapping = {"prompt": "dialogue", "response": "summary"}
    assert read({"dialogue": "A: hi", "summary": "x"}, mapping)[1] == ("assistant", "x")
