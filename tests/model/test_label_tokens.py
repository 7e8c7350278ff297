import math

import numpy as np
import pytest
import torch
from embedders import SAMPLES, embedder, pair
from models import HIDDEN, VOCAB, tiny_model, tiny_tokenizer

from forvalue_index.exceptions import ModelError
from forvalue_index.model import label_tokens
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.model.prediction_error import Head
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.sample import TEXT_ROLE, TOKENS_ROLE, BadRow, Message, Sample

SAMPLE = Sample((Message(TEXT_ROLE, "x"),), source="s")


class Table:
    """A trunk whose hidden state at a label is a row of a table, by the token it predicts."""

    def __init__(self, states):
        self._states = states

    def hidden_states(self, batch):
        return self._states[torch.from_numpy(batch.labels)]


def losing(losses, **options):
    """A reader of one hidden dimension for which label token i has the loss `losses[i]`, in nats.

    Two entries of the vocabulary for each token: the logit of the label is 0, and that of the other
    one log(exp(loss) - 1); all else is impossible.
    """
    n = len(losses)
    weight = torch.full((2 * n, n), -1e4)
    weight[range(n), range(n)] = 0.0
    others = torch.log(torch.expm1(torch.tensor(losses, dtype=torch.float64))).float()
    weight[range(n, 2 * n), range(n)] = others
    encoder = PromptEncoder(tiny_tokenizer(), template="plain", labels="all", max_length=99)
    order = torch.randperm(2 * n, generator=torch.Generator().manual_seed(1))
    return ModelReader(
        Table(torch.eye(n)), Head(weight), encoder=encoder, vocab_order=order, **options
    )


def labelled(*labels):
    """Samples of these labels after one token without."""
    return [
        Prepared(
            SAMPLE,
            Encoded(np.array([0, *ids]), np.array([False, *[True] * len(ids)])),
        )
        for ids in labels
    ]


def read(reader, items):
    """Positions and losses of each sample's label tokens, in the order they come."""
    batch = collate([p.encoded for p in items], range(len(items)))
    found = [[] for _ in items]
    for tokens in reader.label_tokens(batch):
        columns = (tokens.owner.tolist(), tokens.position.tolist(), tokens.loss.tolist())
        for owner, position, loss in zip(*columns, strict=True):
            found[owner].append((position, loss))
    return found


def positions(reader, items):
    return [[position for position, _ in sample] for sample in read(reader, items)]


LOSSES = [1.0, 3.0, 2.0, 5.0, 4.0, 3.0]


def test_losses_are_those_of_the_labels():
    """By hand: 1, 3, 2, 5, 4 and 3 nats."""
    (found,) = read(losing(LOSSES), labelled([0, 1, 2, 3, 4, 5]))
    assert [position for position, _ in found] == [1, 2, 3, 4, 5, 6]
    assert [loss for _, loss in found] == pytest.approx(LOSSES, rel=1e-5)


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.001, [4]),
        (1 / 6, [4]),
        (0.17, [4, 5]),
        (0.5, [2, 4, 5]),  # of two tokens of 3 nats the first
        (0.6, [2, 4, 5, 6]),
        (5 / 6, [2, 3, 4, 5, 6]),
        (1.0, [1, 2, 3, 4, 5, 6]),
    ],
)
def test_the_hardest_tokens_are_kept_rounded_up_and_in_order(share, expected):
    reader = losing(LOSSES, hardest=share)
    assert positions(reader, labelled([0, 1, 2, 3, 4, 5])) == [expected]


def test_of_tokens_that_are_as_hard_the_first_are_kept():
    assert positions(losing([2.0, 2.0], hardest=0.5), labelled([0] * 6)) == [[1, 2, 3]]


def test_each_sample_has_a_share_of_its_own():
    """However hard the tokens of the others are, and one at least."""
    items = labelled([0, 2, 0, 2], [3], [3, 4, 3, 3, 4, 4], [1, 5])
    found = positions(losing(LOSSES, hardest=0.5), items)
    assert found == [[2, 4], [1], [1, 3, 4], [1]]


@pytest.mark.parametrize("chunk_tokens", [1, 2, 5])
def test_chunks_do_not_change_what_is_hardest(monkeypatch, chunk_tokens):
    items = labelled([0, 2, 0, 2], [3], [3, 4, 3, 3, 4, 4], [1, 5])
    expected = read(losing(LOSSES, hardest=0.5), items)
    monkeypatch.setitem(label_tokens.CHUNK_TOKENS, "cpu", chunk_tokens)
    assert read(losing(LOSSES, hardest=0.5), items) == expected
    whole = losing(LOSSES)
    sizes = [len(t.loss) for t in whole.label_tokens(collate([p.encoded for p in items], range(4)))]
    assert max(sizes) == chunk_tokens
    assert sum(sizes) == 13


class Crowded(Head):
    """A head for which torch finds no memory as soon as there are more than two tokens."""

    def logits(self, hidden):
        if len(hidden) > 2:
            torch.empty(2**48)
        return super().logits(hidden)

    def reordered(self, order):
        return Crowded(self.weight[order])


@pytest.mark.parametrize("hardest", [None, 0.5])
def test_chunks_become_smaller_where_memory_runs_out(hardest):
    items = labelled([0, 1, 2, 3], [4, 5])
    expected = read(losing(LOSSES, hardest=hardest), items)
    reader = losing(LOSSES, hardest=hardest)
    reader.head = Crowded(reader.head.weight)
    assert read(reader, items) == expected


def test_a_vocabulary_that_memory_is_too_small_for_is_refused(monkeypatch):
    reader = losing(LOSSES)
    monkeypatch.setattr(Head, "logits", lambda *_: torch.empty(2**48))
    with pytest.raises(ModelError, match="errors of one token over 12 vocabulary entries"):
        read(reader, labelled([0, 1]))


def test_a_model_in_16_bits_is_read_in_float32():
    reader = embedder(tiny_model("llama", torch.bfloat16)).reader
    items = [reader.prepare(sample) for sample in SAMPLES]
    (batch,) = reader.batches(items)
    for tokens in reader.label_tokens(batch):
        assert tokens.error.dtype == tokens.hidden.dtype == tokens.loss.dtype == torch.float32
        assert tokens.error.shape == (len(tokens.owner), VOCAB)
        assert tokens.hidden.shape == (len(tokens.owner), HIDDEN)
    assert reader.empty().dtype == torch.float32
    assert embedder(tiny_model("llama", torch.float64)).reader.empty().dtype == torch.float64


def test_positions_are_those_of_the_labels_in_their_samples():
    reader = embedder(tiny_model("llama")).reader
    items = [reader.prepare(sample) for sample in SAMPLES]
    found = positions(reader, items)
    assert found == [np.flatnonzero(p.encoded.label_mask).tolist() for p in items]


def test_errors_are_in_the_order_of_the_reader():
    """Of the label 1 - p > 0, of all else -p < 0; their sum is 0."""
    reader = losing(LOSSES)
    (batch,) = reader.batches(labelled([0, 3, 5]))
    (tokens,) = reader.label_tokens(batch)
    for error, label, probability in zip(tokens.error, (0, 3, 5), tokens.probability, strict=True):
        place = reader.vocab_order.tolist().index(label)
        assert float(error[place]) == pytest.approx(1 - math.exp(-LOSSES[label]), rel=1e-5)
        assert float(probability) == pytest.approx(math.exp(-LOSSES[label]), rel=1e-5)
        assert float(error.sum()) == pytest.approx(0, abs=1e-6)


def test_a_sample_that_cannot_be_valued_is_a_bad_row():
    sample = Sample((Message(TEXT_ROLE, "x"),), source="train.jsonl", position=7)
    row = embedder(tiny_model("llama")).prepare(sample)
    assert isinstance(row, BadRow)
    assert str(row) == (
        "train.jsonl:7: has 1 token(s) and none to predict, as the first one never is"
    )
    assert row.raw == {"messages": [{"role": "text", "content": "x"}]}


def test_a_token_that_the_model_does_not_have_makes_a_bad_row():
    """It was an IndexError from inside the model."""
    model = tiny_model("llama")
    backbone = Backbone(model, tiny_tokenizer())
    backbone.tokenizer.add_tokens(["<extra>"] * 1 + [f"<{i}>" for i in range(VOCAB)])
    encoder = PromptEncoder(backbone.tokenizer, template="plain", labels="response", max_length=512)
    reader = ModelReader(backbone, backbone.head, encoder=encoder, vocab_order=torch.arange(VOCAB))
    row = reader.prepare(pair("a", f"<{VOCAB - 1}>"))
    assert isinstance(row, BadRow)
    assert f"and the model knows {VOCAB}" in row.reason


def test_given_tokens_that_the_model_does_not_have_make_a_bad_row():
    sample = Sample((Message(TOKENS_ROLE, f"5 6 {VOCAB}"),), source="train.jsonl", position=7)
    row = embedder(tiny_model("llama")).prepare(sample)
    assert isinstance(row, BadRow)
    assert str(row).startswith(f"train.jsonl:7: it has token {VOCAB}, and the model knows {VOCAB} ")
