"""Conversations with endless texts, of which far more would be rendered than is read."""

from __future__ import annotations

from dataclasses import replace

from forvalue_index.model.contracts import Tokenizer
from forvalue_index.model.marked_turns import THOUGHT_ENDS
from forvalue_index.model.tokenization import CHARACTERS_A_TOKEN, LONGEST_TOKEN, tokenize
from forvalue_index.sources.sample import Message, Sample


def shortened(sample: Sample, tokenizer: Tokenizer, most: int) -> Sample:
    """A sample that is the same up to `most` tokens, with less of its endless texts.

    What is left of such a text is more than twice as many tokens as are read, so that nothing
    behind it is. Thoughts are not cut, as templates look for their end.
    """
    least = 2 * (CHARACTERS_A_TOKEN * 2 * most + LONGEST_TOKEN)

    def cut(message: Message) -> Message:
        text = message.content
        if len(text) <= least or message.images or THOUGHT_ENDS in text:
            return message
        tokens = tokenize(tokenizer, text, add_special_tokens=False, most=2 * most)
        end = int(tokens.offsets[-1, 1]) + LONGEST_TOKEN
        return replace(message, content=text[:end]) if tokens.is_cut else message

    if all(len(message.content) <= least for message in sample.messages):
        return sample
    return replace(sample, messages=tuple(map(cut, sample.messages)))
