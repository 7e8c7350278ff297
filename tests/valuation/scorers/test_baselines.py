"""Baselines: BM25 by hand, hidden states against the model itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import rows

from forvalue_index.exceptions import ModelError
from forvalue_index.sources.source import open_sources
from forvalue_index.valuation.scorers.bm25 import bm25_scores
from forvalue_index.valuation.scorers.hidden_states import hidden_similarity, mean_hidden_states

pytest_plugins = ("tiny",)

DOCUMENTS = ["red green", "", "red stone, red glass"]


def prepared(reader, data):
    (source,) = open_sources(data, None)
    return [reader.prepare(sample) for sample in source.samples()]


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


def test_mean_hidden_states_are_those_of_each_sample_alone(index):
    """Batched and padded, against the trunk on one sample at a time, in a loop over its labels."""
    reader = index.model.reader
    samples = prepared(reader, rows(9))
    reader.token_budget = 64
    found = mean_hidden_states(reader, samples)
    assert found.shape == (9, 32)
    for sample, mean in zip(samples, found, strict=True):
        ids = torch.from_numpy(sample.encoded.token_ids)[None]
        states = reader.trunk._model(input_ids=ids, output_hidden_states=True).hidden_states[-1]
        at_labels = [states[0, t - 1] for t in np.flatnonzero(sample.encoded.label_mask)]
        assert mean == pytest.approx(torch.stack(at_labels).mean(dim=0).numpy(), abs=1e-5)


def test_progress_counts_all_samples(index):
    steps = []
    samples = prepared(index.model.reader, rows(5))
    mean_hidden_states(index.model.reader, samples, on_progress=steps.append)
    assert (steps[-1].stage, steps[-1].done, steps[-1].total) == ("comparing", 5, 5)
    assert steps[-1].tokens > 5


def test_there_may_be_no_sample(index):
    assert mean_hidden_states(index.model.reader, []).shape == (0, 32)


def test_undefined_hidden_states_are_named(index):
    """As a model in half precision gives where it overflows."""
    samples = prepared(index.model.reader, rows(3))
    with torch.no_grad():
        index.model.reader.trunk._model.get_input_embeddings().weight[:] = float("nan")
    with pytest.raises(ModelError, match=r"<iterable>:1: .* undefined hidden states for sample r0"):
        mean_hidden_states(index.model.reader, samples)


def test_similarity_by_hand():
    training = np.array([[2, 1], [0, 1], [1, 3], [1, -1]], dtype=np.float32)  # mean [1, 1]
    validation = np.array([[4, 1], [2, 2], [1, 1]], dtype=np.float32)
    half = math.sqrt(0.5)
    expected = [[1, -1, 0, 0], [half, -half, half, -half], [0, 0, 0, 0]]
    assert hidden_similarity(validation, training) == pytest.approx(np.array(expected))


@given(st.integers(0, 50))
@settings(deadline=None)
def test_similarity_is_a_cosine(seed):
    rng = np.random.default_rng(seed)
    training = rng.normal(size=(6, 4)).astype(np.float32)
    shift = rng.normal(size=4).astype(np.float32)
    scores = hidden_similarity(training, training)
    assert np.diag(scores) == pytest.approx(np.ones(6), abs=1e-5)
    assert np.abs(scores).max() <= 1 + 1e-5
    moved = hidden_similarity(training * 3 + shift, training * 3 + shift)
    assert moved == pytest.approx(scores, abs=1e-4)
