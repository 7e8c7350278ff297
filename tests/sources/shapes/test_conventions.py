"""Which columns are taken for what, by their names."""

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.shapes.conventions import find_columns


def found(names, **mapped):
    return find_columns(tuple(names.split()), tuple(mapped.items()))


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        ("prompt prompt_id messages", {"messages": "messages"}),
        ("uuid instruction response conversations", {"messages": "conversations"}),
        ("query answer text", {"prompt": "query", "response": "answer"}),
        ("query response text", {"prompt": "query", "response": "response"}),
        ("problem solution text", {"prompt": "problem", "response": "solution"}),
        ("instruction text response", {"prompt": "instruction", "response": "response"}),
        ("input output text", {"prompt": "input", "response": "output"}),
        ("inputs targets text", {"prompt": "inputs", "response": "targets"}),
        ("text chosen rejected", {"chosen": "chosen", "rejected": "rejected"}),
        ("text turns", {"text": "text"}),
        (
            "instruction input output text",
            {"prompt": "instruction", "input": "input", "response": "output"},
        ),
        (
            "instruction input context output",
            {"prompt": "instruction", "input": "input", "response": "output"},
        ),
        ("Inputs Targets", {"prompt": "Inputs", "response": "Targets"}),
        ("prompt response chosen rejected", {"prompt": "prompt", "response": "response"}),
        (
            "messages chosen rejected",
            {"messages": "messages", "chosen": "chosen", "rejected": "rejected"},
        ),
        ("messages chosen", {"messages": "messages"}),
        ("id conversation", {"id": "id", "messages": "conversation"}),
        ("messages tools functions", {"messages": "messages", "tools": "tools"}),
        ("messages system_prompt system", {"messages": "messages", "system": "system"}),
        ("text system tools history", {"text": "text"}),
    ],
)
def test_the_first_convention_that_is_met(names, columns):
    """A pair counts before the text beside it, and a text before what may be a number."""
    assert found(names) == columns


@pytest.mark.parametrize(
    ("names", "mapped", "columns"),
    [
        ("a b c", {"prompt": "a", "response": "b"}, {"prompt": "a", "response": "b"}),
        (
            "prompt response a",
            {"input": "a"},
            {"prompt": "prompt", "response": "response", "input": "a"},
        ),
        ("messages a", {"system": "a"}, {"messages": "messages", "system": "a"}),
        (
            "text prompt response a",
            {"system": "a"},
            {"prompt": "prompt", "response": "response", "system": "a"},
        ),
        (
            "messages prompt response a",
            {"history": "a"},
            {"prompt": "prompt", "response": "response", "history": "a"},
        ),
        ("system response", {"prompt": "system"}, {"prompt": "system", "response": "response"}),
        (
            "prompt chosen rejected",
            {"response": "rejected"},
            {"prompt": "prompt", "response": "rejected"},
        ),
        (
            "prompt chosen rejected",
            {"chosen": "rejected"},
            {"prompt": "prompt", "chosen": "rejected", "rejected": "chosen"},
        ),
    ],
)
def test_mapped_fields_complete_conventions(names, mapped, columns):
    assert found(names, **mapped) == columns


@pytest.mark.parametrize(
    ("names", "mapped", "told"),
    [
        ("text a", {"system": "a"}, "--columns names system, and no such field goes with text,"),
        (
            "messages a",
            {"history": "a"},
            "--columns names history, and no such field goes with messages,",
        ),
        ("a b", {"history": "a"}, "no messages, no prompt with response, and no text"),
        ("text b", {"response": "b"}, "no messages, no prompt with response, and no text"),
    ],
)
def test_a_mapped_field_needs_what_it_goes_with(names, mapped, told):
    with pytest.raises(BadSampleError) as error:
        found(names, **mapped)
    assert str(error.value).startswith(told)


TOKENS = {"input_ids": [1, 2], "labels": [-100, 2], "attention_mask": [1, 1]}


@pytest.mark.parametrize(
    "row",
    [
        {"text": "T"},
        {"prompt": "Q", "completion": "A"},
        {"prompt": "Q", "chosen": "A", "rejected": "B"},
        {"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]},
        {"data": ["Q", "A"]},
    ],
)
def test_text_counts_before_tokens(row):
    """As trainers write their prepared data: what was read as text stays that, tokens beside it."""
    sample = to_sample(row | TOKENS)
    assert sample.messages == to_sample(row).messages
    assert sample.content_hash == to_sample(row).content_hash
    assert sample.metadata.items() >= TOKENS.items()
    chosen = to_sample(row | TOKENS, {"input_ids": "input_ids"})
    assert chosen.is_tokens
    assert chosen.metadata == row


def test_tokens_alone_are_a_sample():
    assert to_sample(TOKENS).is_tokens
    assert found("id input_ids labels other") == {
        "id": "id",
        "input_ids": "input_ids",
        "labels": "labels",
    }
    with pytest.raises(BadSampleError, match="no messages, no prompt with response, and no text"):
        to_sample({"prompt": "Q"} | TOKENS, {"prompt": "prompt"})
    with pytest.raises(BadSampleError, match="no messages, no prompt with response, and no text"):
        to_sample(TOKENS, {"ignore": "input_ids"})


def test_messages_in_the_cell_of_a_table():
    with pytest.raises(BadSampleError, match="'messages' is text that is no JSON, wanted a list"):
        to_sample({"messages": "[{'role': 'user', 'content': 'Q'}]"})
