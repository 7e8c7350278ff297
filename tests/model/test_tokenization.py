"""Tokens of texts: what is added once, what of an endless text is read, letters of two turns."""

import numpy as np
import pytest
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_tokenizer
from tokenizers import processors

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.model.tokenization import covered, refuse_straddling, tokenize
from forvalue_index.sources.columns import to_sample


def with_ends():
    """A tokenizer that puts a token before and after every text."""
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ab", "<s>ab</s>"),
        ("<s>ab", "<s>ab</s>"),
        ("ab</s>", "<s>ab</s>"),
        ("<s>ab</s>", "<s>ab</s>"),
        ("<s><s>ab", "<s><s>ab</s>"),
        ("<s>", "<s></s>"),
        ("", "<s></s>"),
    ],
)
def test_what_a_tokenizer_adds_stands_once(text, read):
    tokenizer = with_ends()
    tokens = tokenize(tokenizer, text, add_special_tokens=True)
    assert tokenizer.decode(tokens.ids) == read
    assert tokens.offsets.shape == (len(tokens.ids), 2)


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"text": "<s>the cab"}, "the cab</s>"),
        ({"text": "the cab"}, "the cab</s>"),
        ({"prompt": "<s>x", "response": "the cab</s>"}, "the cab</s>"),
        ({"prompt": "", "response": "the cab"}, "the cab</s>"),
    ],
)
def test_a_first_token_is_never_a_label_and_a_last_one_is_one_once(row, labels):
    """A text that somebody rendered before began with two, and the second was a label."""
    tokenizer = with_ends()
    encoder = PromptEncoder(tokenizer, template="plain", labels="response", max_length=64)
    encoded = encoder.encode(to_sample(row))
    assert tokenizer.decode(encoded.token_ids[encoded.label_mask]) == labels


WORDS = st.text(st.sampled_from("abthe onlrc \n é😀"), min_size=1, max_size=40)


@settings(deadline=None, max_examples=50)
@given(WORDS, st.integers(2, 9))
def test_what_is_read_of_an_endless_text_is_what_it_begins_with(words, most):
    tokenizer, text = tiny_tokenizer(bos=True), words * (40_000 // len(words))
    whole = tokenize(tokenizer, text, add_special_tokens=True)
    some = tokenize(tokenizer, text, add_special_tokens=True, most=most)
    assert some.is_cut
    assert len(some.ids) == most + 1
    assert np.array_equal(some.ids, whole.ids[: most + 1])
    assert np.array_equal(some.offsets, whole.offsets[: most + 1])


def test_an_endless_text_is_never_tokenised_whole():
    sizes = []

    class Counted(transformers.PreTrainedTokenizerFast):
        def __call__(self, text, **options):
            sizes.append(len(text))
            return super().__call__(text, **options)

    tokenizer = tiny_tokenizer()
    tokenizer.__class__ = Counted
    text = "the cab " * 1_000_000
    tokens = tokenize(tokenizer, text, add_special_tokens=False, most=16)
    assert tokens.is_cut
    assert max(sizes) < 20_000
    tokenize(tokenizer, text[:20_000], add_special_tokens=False)
    assert sizes[-1] == 20_000, "without a limit all of it is read"


def test_a_text_of_a_few_long_tokens_is_read_further():
    """Of 8 million characters that are few tokens, more is read until these are enough."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["=" * 4000])
    text = "=" * 4000 * 50 + " the end"
    tokens = tokenize(tokenizer, text, add_special_tokens=False, most=40)
    assert tokens.ids[:40].tolist() == [tokens.ids[0]] * 40
    assert len(tokens.ids) >= 41


def test_an_endless_line_is_a_sample_that_was_cut():
    encoder = PromptEncoder(tiny_tokenizer(), template="plain", labels="response", max_length=16)
    encoded = encoder.encode(to_sample({"text": "the cab " * 500_000}))
    assert (len(encoded), encoded.truncated, encoded.n_label_tokens) == (16, True, 15)
    pair = encoder.encode(to_sample({"prompt": "the", "response": " cab" * 500_000}))
    assert (len(pair), pair.truncated) == (16, True)
    with pytest.raises(BadSampleError, match="its prompt alone has more than 16 tokens"):
        encoder.encode(to_sample({"prompt": "the " * 500_000, "response": "cab"}))


def test_tokens_of_spans():
    offsets = np.array([[0, 2], [2, 5], [5, 5], [5, 9]])
    assert covered(offsets, [(2, 6)]).tolist() == [False, True, True, True]
    assert covered(offsets, []).tolist() == [False] * 4


def test_letters_of_two_turns_in_one_token_are_refused():
    offsets = np.array([[0, 2], [2, 4]])
    refuse_straddling("abcd", offsets, [(2, 4)])
    refuse_straddling("a cd", offsets, [(1, 4)])  # white space belongs to either
    with pytest.raises(BadSampleError, match="the token 'ab' has letters of the assistant and of"):
        refuse_straddling("abcd", offsets, [(1, 4)])
    with pytest.raises(BadSampleError, match="the token 'cd'"):
        refuse_straddling("abcd", offsets, [(0, 3)])
