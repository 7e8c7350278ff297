"""Similarity of mean hidden states, against the model itself."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rows import rows

from forvalue_index.exceptions import ModelError
from forvalue_index.sources.source import open_sources
from forvalue_index.valuation.scorers.hidden_states import hidden_similarity, mean_hidden_states

pytest_plugins = ("tiny",)


def prepared(reader, data):
    (source,) = open_sources(data, None)
    return [reader.prepare(sample) for sample in source.samples()]


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
