"""Alternating texts and trees of replies."""

import json

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.source import open_sources


def read(row, columns=None):
    return [(m.role, m.content) for m in to_sample(row, columns).messages]


FOUR = [("user", "q"), ("assistant", "a"), ("user", "r"), ("assistant", "b")]


def test_texts_of_ultrachat():
    assert read({"id": "0", "data": ["q", "a", "r", "b"]}) == FOUR
    assert read({"id": "0", "data": '["q", "a", "r", "b"]'}) == FOUR
    found = to_sample({"id": "0", "data": ["q", "a", "r"]})
    assert (len(found.messages), found.cut_turns) == (2, 1)


def test_texts_of_the_cauldron():
    texts = [
        {"user": "q", "assistant": "a", "source": "vqa"},
        {"user": "r", "assistant": "b", "source": "vqa"},
    ]
    found = to_sample({"images": [], "texts": texts})
    assert [(m.role, m.content) for m in found.messages] == FOUR
    assert found.metadata == {"texts": [{"source": "vqa"}] * 2}


def test_texts_can_be_mapped():
    assert read({"dialog": ["q", "a", "r", "b"]}, {"texts": "dialog"}) == FOUR
    with pytest.raises(BadSampleError, match="'dialog' is int, wanted a list of texts"):
        read({"dialog": 7}, {"texts": "dialog"})
    with pytest.raises(BadSampleError, match="turn 2 of 'dialog' is int, wanted text"):
        read({"dialog": ["q", 7]}, {"texts": "dialog"})
    with pytest.raises(BadSampleError, match="the assistant of turn 1 of 'dialog' is null"):
        read({"dialog": [{"user": "q"}]}, {"texts": "dialog"})


@pytest.mark.parametrize("column", ["data", "texts"])
@pytest.mark.parametrize("cell", ["words", [], [1], None, [{"text": "x"}]])
def test_columns_of_such_a_name_with_something_else_are_none(column, cell):
    with pytest.raises(BadSampleError, match="no messages, no prompt with response, and no text"):
        read({column: cell})


def test_rows_under_a_key_are_not_taken_for_a_conversation(tmp_path):
    """A file of one object with rows inside has the same names as a row of UltraChat."""
    for key in ("data", "texts"):
        path = tmp_path / f"{key}.json"
        path.write_text(json.dumps({key: [{"prompt": "q", "response": "a"}] * 2}))
        assert len(list(open_sources(str(path))[0].samples())) == 2


def message(text, role, *replies, **more):
    return {"text": text, "role": role, "replies": list(replies), **more}


TREE = message(
    "q",
    "prompter",
    message("worse", "assistant", rank=1),
    message(
        "a",
        "assistant",
        message("gone", "prompter", message("c", "assistant"), deleted=True, rank=0),
        message("r", "prompter", message("x", "assistant"), message("b", "assistant", rank=0)),
        rank=0,
    ),
    message("unranked", "assistant", rank=None),
)


def test_the_best_ranked_path_of_a_tree():
    row = {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": TREE}
    assert read(row) == FOUR
    assert read({**row, "prompt": json.dumps(TREE)}) == FOUR
    assert to_sample(row).metadata == {"message_tree_id": "t", "tree_state": "ready_for_export"}


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        (None, "message 1 of 'prompt' is null, wanted an object with text, role"),
        ({"text": "q"}, "message 1 of 'prompt' is object, wanted an object with text, role"),
        ({"text": 1, "role": "prompter"}, "the text of message 1 of 'prompt' is int, wanted text"),
        (message("q", "prompter"), "'prompt': no assistant turn"),
        (message("q", "prompter", "x", 7), "'prompt': no assistant turn"),
    ],
)
def test_trees_that_cannot_be_read(tree, told):
    with pytest.raises(BadSampleError) as error:
        read({"message_tree_id": "t", "prompt": tree})
    assert str(error.value).startswith(told)
