"""The text of each token of a sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

# Tokens of single bytes that make one character of UTF-8.
LONGEST_CHARACTER = 4


def pieces(decode: Decode, token_ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the text before it; joined, the text of all of them.

    Where several make one character, the last of them has it. Each is decoded behind the one before
    it, as many tokenizers drop a space at the start of what they decode.
    """
    whole = decode(token_ids)
    texts: list[str] = []
    base = start = known = 0
    for end in range(1, len(token_ids) + 1):
        if end - start > LONGEST_CHARACTER:
            base = 0  # what was taken for a whole character was not: decode from the first token
        before, text = decode(token_ids[base:start]), decode(token_ids[base:end])
        added = text.removeprefix(before)
        if text.startswith(before) and whole.startswith(added, known):
            texts.append(added)
            known += len(added)
            base, start = start, end
        else:
            texts.append("")
    if texts:
        texts[-1] += whole[known:]
    return texts
