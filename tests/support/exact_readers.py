"""Readers of label tokens, and exact values of their samples by the definition."""

import functools

import numpy as np
import oracle
import pytest
import torch
from embedders import SAMPLES, embedder, pair, some_moments
from models import tiny_model

from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.embedder import geometry_of
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.settings import Settings
from forvalue_index.sources.sample import TEXT_ROLE, Message, Sample

DAMPING = 0.2
VALIDATION = [pair("where?", "over the river"), SAMPLES[2], pair("which one", "the glass")]


@functools.cache
def reader(kind, dtype=torch.float64, hardest=None):
    made = embedder(tiny_model(kind, dtype), hardest=hardest).reader
    if kind == "gemma2" and dtype == torch.float64:
        # Its attention takes float32's softmax of float64's mask: padding is -inf - -inf.
        made.token_budget = 1
    return made


def geometry(name, read):
    settings = Settings(model="m", geometry=name, damping=DAMPING)
    return geometry_of(name, read, Calibration(some_moments(), 1, 1), settings)


def prepared(read, samples=SAMPLES):
    return [read.prepare(sample) for sample in samples]


@functools.cache
def truth(kind, name, normalize=False):
    """Seen samples in a geometry, [validation] and [training], and their exact values."""
    model = tiny_model(kind, torch.float64)
    known = oracle.Moments(*(tensor.double().numpy() for tensor in some_moments()))
    sides = []
    for samples in (VALIDATION, SAMPLES):
        found = [
            oracle.seen(model, p.encoded.token_ids, p.encoded.label_mask)
            for p in prepared(reader("llama"), samples)
        ]
        sides.append([oracle.mapped(one, name, known, DAMPING) for one in found])
    matrix = oracle.value_matrix(*sides, normalize=normalize)
    return *sides, matrix


BROKEN = Prepared(
    Sample((Message(TEXT_ROLE, "z"),), source="train.jsonl", position=7, own_id="bad one"),
    Encoded(np.array([5, 285, 6]), np.array([False, False, True])),
)


@pytest.fixture(params=[float("nan"), float("inf"), float("-inf")])
def breakable(request):
    """A reader of a model that gives no usable numbers after token 285, which no text has."""
    model = tiny_model("llama")
    read = embedder(model).reader
    with torch.no_grad():
        model.get_input_embeddings().weight[285] = request.param
    return read


CERTAIN = Sample((Message(TEXT_ROLE, "aaaaaa"),), source="s")


def certain_reader():
    """A model that says the letter a, whatever it reads."""
    model = tiny_model("phi")
    read = embedder(model).reader
    letter = int(read.prepare(CERTAIN).encoded.token_ids[-1])
    with torch.no_grad():
        model.get_output_embeddings().bias[letter] = 1e4
    return embedder(model).reader
