"""Of endless texts in conversations little more is rendered than is read, and read all the same."""

import tracemalloc

import numpy as np
import pytest
from chats import QWEN3, conversation, tokenizer_for
from models import CHATML

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model import prompts
from forvalue_index.model.long_texts import shortened
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.columns import to_sample

LONG = "the cab, ab and all. " * 10_000
CASES = [
    conversation("q", LONG),
    conversation("q", "yes", LONG, "no"),
    conversation("q", "yes", "r", LONG, "s", "no"),
    conversation("q", "yes", LONG, LONG),
]


def encoder(template, most=64):
    options = {"template": "chat", "labels": "response", "max_length": most}
    return PromptEncoder(tokenizer_for(template), **options)


@pytest.mark.parametrize("template", [CHATML, QWEN3], ids=["chatml", "qwen3"])
@pytest.mark.parametrize("row", CASES)
def test_what_is_read_is_the_same(row, template, monkeypatch):
    sample = to_sample(row)
    one = encoder(template)
    cut = one.encode(sample)
    assert cut.truncated
    assert len(shortened(sample, tokenizer_for(template), 64).messages) == len(sample.messages)
    monkeypatch.setattr(prompts, "shortened", lambda sample, *_: sample)
    whole = one.encode(sample)
    assert np.array_equal(cut.token_ids, whole.token_ids)
    assert np.array_equal(cut.label_mask, whole.label_mask)
    assert (cut.truncated, len(cut)) == (whole.truncated, len(whole))


def test_a_long_prompt_is_refused_and_costs_no_memory():
    sample = to_sample(conversation("the cab " * 2_000_000, "yes"))
    one = encoder(CHATML)
    tracemalloc.start()
    with pytest.raises(BadSampleError, match="its prompt alone has"):
        one.encode(sample)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16_000_000 / 2, "of a prompt of 16 million characters"


def test_what_is_short_or_a_thought_is_as_it_is():
    tokenizer = tokenizer_for(CHATML)
    for row in (conversation("q", "a" * 9000), conversation("q", f"<think>{LONG}</think>yes")):
        assert shortened(to_sample(row), tokenizer, 64) == to_sample(row)


def test_a_text_of_few_tokens_is_not_cut():
    tokenizer = tokenizer_for(CHATML)
    tokenizer.add_tokens(["=" * 4000])
    sample = to_sample(conversation("=" * 4000 * 20, "yes"))
    assert shortened(sample, tokenizer, 64) == sample
