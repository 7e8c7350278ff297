"""From a text to token ids and the characters that each of them stands for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.contracts import Tokenizer

Span = tuple[int, int]
Mask = NDArray[np.bool_]
# A text is tokenised whole up to this many characters for each token that is read at most; of a
# longer one so much as is read, and as much again as no token is long.
CHARACTERS_A_TOKEN, LONGEST_TOKEN = 64, 4096


class TokenizedText(NamedTuple):
    """Token ids [token] and the characters that they stand for [token, (start, end)].

    `is_cut` says that more tokens follow.
    """

    ids: NDArray[np.int64]
    offsets: NDArray[np.int64]
    is_cut: bool = False


def tokenize(
    tokenizer: Tokenizer, text: str, *, add_special_tokens: bool, most: int | None = None
) -> TokenizedText:
    """The tokens of a text; of one that is far too long more than `most`, and not all.

    What a tokenizer adds in front or at the end is left out where the text has it already.
    """
    if most is not None:
        size = CHARACTERS_A_TOKEN * most + LONGEST_TOKEN
        while size < len(text) // 2:
            cut = _first_tokens(tokenizer, text, size, most, add_special_tokens)
            if cut is not None:
                return cut
            size *= 4
    whole = _tokens(tokenizer, text, add_special_tokens)
    return _without_doubles(whole) if add_special_tokens else whole


def _first_tokens(
    tokenizer: Tokenizer, text: str, size: int, most: int, add_special_tokens: bool
) -> TokenizedText | None:
    """More than `most` tokens of the first `size` characters.

    None where they are fewer, or are others once a few characters more are read.
    """
    shorter, longer = (
        _without_doubles(_tokens(tokenizer, text[:end], add_special_tokens))
        for end in (size, size + LONGEST_TOKEN)
    )
    n_tokens = most + 1
    equal = np.array_equal(shorter.ids[:n_tokens], longer.ids[:n_tokens])
    if not equal or len(shorter.ids) <= n_tokens:
        return None
    return TokenizedText(shorter.ids[:n_tokens], shorter.offsets[:n_tokens], is_cut=True)


def _tokens(tokenizer: Tokenizer, text: str, add_special_tokens: bool) -> TokenizedText:
    tokens = tokenizer(
        text, add_special_tokens=add_special_tokens, return_offsets_mapping=True, verbose=False
    )
    numbers = chain.from_iterable(tokens["offset_mapping"])
    offsets = np.fromiter(numbers, dtype=np.int64).reshape(-1, 2)
    return TokenizedText(np.array(tokens["input_ids"], dtype=np.int64), offsets)


def _without_doubles(tokens: TokenizedText) -> TokenizedText:
    """Tokens without one that was added, and stands for no character, beside an equal one."""
    ids, offsets, is_cut = tokens
    if len(ids) > 1 and ids[0] == ids[1] and offsets[0, 0] == offsets[0, 1]:
        ids, offsets = ids[1:], offsets[1:]
    if len(ids) > 1 and ids[-1] == ids[-2] and offsets[-1, 0] == offsets[-1, 1]:
        ids, offsets = ids[:-1], offsets[:-1]
    return TokenizedText(ids, offsets, is_cut)


def covered(offsets: NDArray[np.int64], spans: Sequence[Span]) -> Mask:
    """Which tokens have a character in one of some spans."""
    mask = np.zeros(len(offsets), dtype=bool)
    for start, end in spans:
        mask |= (offsets[:, 1] > start) & (offsets[:, 0] < end)
    return mask


def refuse_straddling(text: str, offsets: NDArray[np.int64], spans: Sequence[Span]) -> None:
    """Raise BadSampleError where a token has letters both of a span and of what is around it."""
    starts, ends = offsets[:, 0], offsets[:, 1]
    for place in chain.from_iterable(spans):
        for token in np.flatnonzero((starts < place) & (ends > place)):
            before, after = text[starts[token] : place], text[place : ends[token]]
            if before.strip() and after.strip():
                raise BadSampleError(
                    f"the token {before + after!r} has letters of the assistant and of what is "
                    "around it, as the chat template puts nothing between them, so it is no label "
                    "and no context; use another template"
                )
