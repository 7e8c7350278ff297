"""BM25, by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_index.valuation.scorers.bm25 import bm25_scores

DOCUMENTS = ["red green", "", "red stone, red glass"]


def idf(documents_with_word, documents):
    return math.log(1 + (documents - documents_with_word + 0.5) / (documents_with_word + 0.5))


def saturated(count, length, mean_length):
    return count / (count + 1.5 * (0.25 + 0.75 * length / mean_length))


def test_bm25_by_hand():
    """Lengths are 2, 0 and 5 tokens, a comma being one."""
    scores = bm25_scores(["red", "GREEN!", "red ,", "red red"], DOCUMENTS)
    mean = 7 / 3
    red = [idf(2, 3) * saturated(1, 2, mean), 0, idf(2, 3) * saturated(2, 5, mean)]
    green = [idf(1, 3) * saturated(1, 2, mean), 0, 0]
    comma = [0, 0, idf(1, 3) * saturated(1, 5, mean)]
    expected = [red, green, np.add(red, comma), np.multiply(2, red)]
    assert scores.dtype == np.float32
    assert scores == pytest.approx(np.array(expected), rel=1e-5)


def test_short_words_signs_and_other_scripts_are_words():
    documents = ["a 1 b", "c*d", "Ünïcode 漢字"]
    queries = ["1", "*", "ünïcode", "漢字", "c"]
    found = bm25_scores(queries, documents) > 0
    assert found.argmax(axis=1).tolist() == [0, 1, 2, 2, 1]
    assert found.sum(axis=1).tolist() == [1] * 5


@pytest.mark.parametrize("query", ["", "   ", "unknown", "unknown words alone"])
def test_queries_without_a_known_word_give_zeros(query):
    assert not bm25_scores([query], DOCUMENTS).any()


@pytest.mark.parametrize(
    ("queries", "documents"), [([], ["a"]), (["a"], []), (["a"], ["", " "]), ([], [])]
)
def test_there_may_be_nothing(queries, documents):
    scores = bm25_scores(queries, documents)
    assert scores.shape == (len(queries), len(documents))
    assert not scores.any()


def test_nothing_is_drawn_or_logged(capfd):
    bm25_scores(["red"], DOCUMENTS)
    assert capfd.readouterr() == ("", "")


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5), st.integers(0, 4))
@settings(deadline=None)
def test_bm25_follows_the_order_of_documents(texts, shift):
    order = np.roll(np.arange(len(texts)), shift)
    straight = bm25_scores(texts, texts)
    turned = bm25_scores(texts, [texts[i] for i in order])
    assert turned == pytest.approx(straight[:, order])
