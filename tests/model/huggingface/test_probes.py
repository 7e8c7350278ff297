from itertools import islice

import pytest

from forvalue_index.model.huggingface.probes import plain_tokens


@pytest.mark.parametrize("vocab_size", [2, 7, 14, 288, 50257])
def test_tokens_are_of_the_vocabulary_and_differ(vocab_size):
    tokens = list(islice(plain_tokens(vocab_size), 40))
    assert len(tokens) == 40
    assert set(tokens) <= set(range(vocab_size))
    assert len(set(tokens)) == min(40, vocab_size)


def test_what_is_to_be_avoided_is():
    assert list(islice(plain_tokens(5, {0, 2}), 6)) == [4, 1, 3, 4, 1, 3]
