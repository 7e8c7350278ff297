"""The texts of tokens make the text of all of them, whatever the tokenizer."""

import functools

import pytest
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from models import VOCAB, tiny_tokenizer
from tokenizers import Tokenizer, decoders, models, normalizers

from forvalue_index.model.token_texts import pieces


def sentencepiece():
    """As of Llama 2: a space before a text, which decoding drops, and bytes of rare characters."""
    merges = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("▁c", "a"), ("▁ca", "b")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "▁"]
    tokens += [*"abcdefghijklmnopqrstuvwxyz", *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Tokenizer(
        models.BPE(vocab, merges, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    )
    backend.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=backend)


@functools.cache
def tokenizer(kind):
    return {"bytes": tiny_tokenizer, "sentencepiece": sentencepiece}[kind]()


def split(kind, text):
    token_ids = tokenizer(kind)(text, add_special_tokens=False)["input_ids"]
    return split_ids(kind, token_ids)


def split_ids(kind, token_ids):
    def decode(ids):
        return tokenizer(kind).decode(ids, clean_up_tokenization_spaces=False)

    found = pieces(decode, token_ids)
    assert len(found) == len(token_ids)
    assert "".join(found) == decode(token_ids)
    return found


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("bytes", "the cab", ["the", " ", "c", "ab"]),
        ("bytes", "é!", ["", "é", "!"]),
        ("bytes", "a😀b", ["a", "", "", "", "😀", "b"]),
        ("bytes", "e\u0301x", ["e", "", "\u0301", "x"]),
        ("bytes", "<|im_start|>a\n", ["<|im_start|>", "a", "\n"]),
        ("sentencepiece", "the cab the", ["the", " cab", " the"]),
        ("sentencepiece", " the", ["", " the"]),
        ("sentencepiece", "aéb", ["", "a", "", "é", "b"]),
        ("sentencepiece", "a 😀😀", ["", "a", " ", "", "", "", "😀", "", "", "", "😀"]),
        # What a cut character looks like may be what was written; what follows keeps its place.
        ("sentencepiece", "\ufffd\ufffd你 cab", ["", *["\ufffd"] * 2, *[""] * 6, "你", " cab"]),
    ],
)
def test_the_last_token_of_a_character_has_it(kind, text, expected):
    assert split(kind, text) == expected


def test_no_tokens_have_no_text():
    assert split_ids("bytes", []) == []


@settings(deadline=None)
@given(st.sampled_from(["bytes", "sentencepiece"]), st.text(max_size=30))
@example("bytes", "\ufffd\ufffd the")
@example("sentencepiece", "the \ufffd\ufffd你好 the")
@example("bytes", "\N{FAMILY} \U0001f469\u200d\U0001f469\u200d\U0001f467 शब्द \u202eabc")
def test_texts_of_tokens_make_the_text(kind, text):
    """A replacement character may well be what was written."""
    split(kind, text)


@settings(deadline=None)
@given(
    st.sampled_from(["bytes", "sentencepiece"]), st.lists(st.integers(0, VOCAB - 10), max_size=20)
)
def test_texts_of_any_tokens_make_their_text(kind, token_ids):
    """Also of bytes that make no character, as where a sample was cut."""
    split_ids(kind, token_ids)


def test_long_texts_take_no_quadratic_time():
    """Each token is decoded with the one before it, not with all."""
    decoded = 0

    def decode(ids):
        nonlocal decoded
        decoded += len(ids)
        return tokenizer("bytes").decode(ids, clean_up_tokenization_spaces=False)

    token_ids = tokenizer("bytes")("the cab → 😀 " * 100, add_special_tokens=False)["input_ids"]
    assert "".join(pieces(decode, token_ids)) == "the cab → 😀 " * 100
    assert decoded < 20 * len(token_ids)
