import dataclasses

import numpy as np
import pytest
import torch
from models import FLOAT32_LOGITS, HIDDEN, KINDS, VOCAB, tiny_model, tiny_tokenizer

from forvalue_index import features
from forvalue_index.backbone import Backbone
from forvalue_index.batching import collate
from forvalue_index.exceptions import ModelError
from forvalue_index.features import Embedder, Prepared
from forvalue_index.prompts import PromptEncoder
from forvalue_index.records import TEXT_ROLE, BadRow, Encoded, Message, Sample
from forvalue_index.sketch import draw_tables, make_sketch

DIM = 256
WHOLE = VOCAB * HIDDEN


def embedder(model, *, dim=DIM, template="chat", max_length=512):
    backbone = Backbone(model, tiny_tokenizer())
    encoder = PromptEncoder(
        backbone.tokenizer, template=template, labels="response", max_length=max_length
    )
    sketch = make_sketch(tables(dim), dim=dim, device=torch.device("cpu"))
    return Embedder(backbone, backbone.head, encoder=encoder, sketch=sketch)


def tables(dim=DIM):
    return draw_tables(VOCAB, HIDDEN, dim=dim, seed=3)


def pair(prompt, response):
    return Sample((Message("user", prompt), Message("assistant", response)), source="s")


SAMPLES = [
    pair("the hall?", "in a cab"),
    pair("why", "for the other one, on all the roads that lead there and back again"),
    Sample((Message(TEXT_ROLE, "the cab is in the hall"),), source="s"),
    pair("a much longer question than all of the others, with many words in it", "no"),
    pair("x", "y"),
]


def prepared(embedder, samples=SAMPLES):
    return [embedder.prepare(s) for s in samples]


def assert_same_rows(found, expected, tolerance=1e-5):
    """To `tolerance` of each row's norm."""
    gaps = (found.double() - expected.double()).norm(dim=1)
    assert (gaps <= tolerance * expected.double().norm(dim=1)).all(), gaps


def left_padded(batch):
    """The same samples with the padding before them, and other tokens there."""
    width = batch.token_ids.shape[1]
    shift = width - batch.attention_mask.sum(axis=1)
    at = (np.arange(width)[None] - shift[:, None]) % width
    mask = np.take_along_axis(batch.attention_mask, at, axis=1)
    token_ids = np.where(mask == 1, np.take_along_axis(batch.token_ids, at, axis=1), 7)
    return dataclasses.replace(
        batch,
        token_ids=token_ids,
        attention_mask=mask,
        label_columns=batch.label_columns + shift[batch.label_rows],
    )


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_does_not_depend_on_its_batch(kind):
    """Alone, with others, in another order, and however many tokens a batch may hold."""
    embed = embedder(tiny_model(kind))
    items = prepared(embed)
    alone = torch.cat([embed.embed([p]).rows for p in items])
    together = embed.embed(items)
    assert_same_rows(together.rows, alone)
    assert_same_rows(embed.embed(items[::-1]).rows.flip(0), alone)
    embed.token_budget = 100
    assert 1 < len(list(embed.batches(items))) < len(items)
    assert_same_rows(embed.embed(items).rows, alone)
    one_batch = collate([p.encoded for p in items], range(len(items)))
    assert_same_rows(embed.embed_batch(one_batch, items).rows, alone)
    assert float(torch.corrcoef(alone).fill_diagonal_(0).abs().max()) < 0.9  # rows do differ


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_do_not_depend_on_the_side_of_the_padding(kind):
    backbone = Backbone(tiny_model(kind), tiny_tokenizer())
    items = prepared(embedder(tiny_model(kind)))
    batch = collate([p.encoded for p in items], range(len(items)))
    assert (batch.attention_mask == 0).any()
    right = backbone.hidden_states(batch)
    left = backbone.hidden_states(left_padded(batch))
    alone = torch.cat([backbone.hidden_states(collate([p.encoded], [0])) for p in items])
    assert_same_rows(right, alone)
    assert_same_rows(left, alone)


@pytest.mark.parametrize("chunk_tokens", [1, 3, 7, 10_000])
def test_chunk_borders_change_nothing(monkeypatch, chunk_tokens):
    model = tiny_model("llama")
    expected = embedder(model).embed(prepared(embedder(model)))
    monkeypatch.setitem(features.CHUNK_TOKENS, "cpu", chunk_tokens)
    embed = embedder(model)
    found = embed.embed(prepared(embed))
    assert_same_rows(found.rows, expected.rows)
    for one, other in zip(found.statistics, expected.statistics, strict=True):
        assert dataclasses.astuple(one) == pytest.approx(dataclasses.astuple(other), rel=1e-5)


def autograd(model, item):
    """Minus the gradient of the summed loss for the untied head's weight, and the mean loss."""
    token_ids = torch.from_numpy(item.encoded.token_ids)
    weight = model.get_output_embeddings().weight.requires_grad_()
    logits = model(input_ids=token_ids[None]).logits[0, :-1]
    at = torch.from_numpy(item.encoded.label_mask)[1:]
    log_p = torch.log_softmax(logits.double(), dim=1)
    at_label = log_p.gather(1, token_ids[1:, None])[:, 0][at]
    (gradient,) = torch.autograd.grad(at_label.sum(), weight)
    weight.requires_grad_(requires_grad=False)
    return gradient, at_label.detach()


@pytest.mark.parametrize("kind", ["llama", "granite", "phi", "mixtral"])
def test_a_whole_row_is_the_gradient_and_a_sketched_row_its_sketch(kind):
    """Through the tables: `vocab_order` says where a row of the head's gradient stands."""
    model = tiny_model(kind)
    whole, small = embedder(model, dim=WHOLE), embedder(model)
    items = prepared(whole)
    gradients = torch.stack([autograd(model, p)[0] for p in items])

    order = torch.from_numpy(tables(WHOLE)["vocab_order"])
    assert_same_rows(whole.embed(items).rows, gradients[:, order].flatten(1), 1e-4)

    # The gradient's rows as tokens whose error is one entry: a sketch is linear.
    sketch = make_sketch(tables(), dim=DIM, device=torch.device("cpu"))
    order = torch.from_numpy(tables()["vocab_order"])
    expected = []
    for gradient in gradients:
        sums = sketch.empty(1, gradient)
        owner = torch.zeros(VOCAB, dtype=torch.int64)
        sketch.accumulate(sums, torch.eye(VOCAB), gradient[order], owner)
        expected.append(sketch.rows(sums)[0])
    assert_same_rows(small.embed(items).rows, torch.stack(expected), 1e-4)


@pytest.mark.parametrize("kind", ["llama", "phi", "granite"])
def test_statistics_are_those_of_the_model(kind):
    model = tiny_model(kind)
    embed = embedder(model)
    items = prepared(embed)
    found = embed.embed(items)
    for item, row, statistics in zip(items, found.rows, found.statistics, strict=True):
        _, log_p = autograd(model, item)
        assert statistics.loss == pytest.approx(float(-log_p.mean()), rel=1e-5)
        assert statistics.label_error_mass == pytest.approx(float(1 - log_p.exp().mean()), rel=1e-5)
        assert statistics.norm == pytest.approx(float(row.norm()), rel=1e-6)
        assert statistics.n_tokens == len(item.encoded)
        assert statistics.n_label_tokens == item.encoded.n_label_tokens
        assert not statistics.truncated


def test_a_truncated_sample_says_so():
    embed = embedder(tiny_model("llama"), max_length=40)
    items = prepared(embed, [SAMPLES[1], SAMPLES[0]])
    first, second = embed.embed(items).statistics
    assert first.truncated
    assert first.n_tokens == 40
    assert not second.truncated


@pytest.mark.parametrize("kind", ["llama", *FLOAT32_LOGITS])
def test_a_model_in_bfloat16_gives_float32_rows_near_the_exact_ones(kind):
    exact, half = embedder(tiny_model(kind)), embedder(tiny_model(kind, torch.bfloat16))
    items = prepared(exact)
    rows = half.embed(items).rows
    assert rows.dtype == torch.float32
    assert_same_rows(rows, exact.embed(items).rows, 0.1)


def test_float64_rows_are_float32_rows_to_rounding():
    exact, wide = embedder(tiny_model("llama")), embedder(tiny_model("llama", torch.float64))
    items = prepared(exact)
    assert_same_rows(exact.embed(items).rows, wide.embed(items).rows)


def test_no_samples_make_no_rows():
    found = embedder(tiny_model("llama")).embed([])
    assert found.rows.shape == (0, DIM)
    assert found.statistics == ()


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
    sketch = make_sketch(tables(), dim=DIM, device=torch.device("cpu"))
    maker = Embedder(backbone, backbone.head, encoder=encoder, sketch=sketch)
    row = maker.prepare(pair("a", f"<{VOCAB - 1}>"))
    assert isinstance(row, BadRow)
    assert f"and the model knows {VOCAB}" in row.reason


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_undefined_numbers_are_an_error_that_names_the_sample(broken):
    """A row with NaN would vanish from every search without a word."""
    model = tiny_model("llama")
    embed = embedder(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[285] = broken  # a token that no text has
    good = prepared(embed)
    assert torch.isfinite(embed.embed(good).rows).all()
    sample = Sample((Message(TEXT_ROLE, "z"),), source="train.jsonl", position=7, own_id="bad one")
    encoded = Encoded(np.array([5, 285, 6]), np.array([False, False, True]))
    bad = Prepared(sample, encoded)
    with pytest.raises(ModelError) as error:
        embed.embed([*good, bad])
    assert str(error.value) == (
        "train.jsonl:7: the model gives infinite or undefined numbers for sample bad one; use "
        "--dtype float32, or leave the sample out"
    )
