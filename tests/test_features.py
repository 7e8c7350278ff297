import dataclasses
import math

import numpy as np
import pytest
import torch
from models import FLOAT32_LOGITS, HIDDEN, KINDS, VOCAB, tiny_model, tiny_tokenizer

from forvalue_index.exceptions import ModelError
from forvalue_index.gradients.embedder import Embedder, Feature
from forvalue_index.gradients.geometry import Geometry, Moments
from forvalue_index.gradients.hash_tables import draw_tables, geometry_tables, row_layout
from forvalue_index.gradients.sketch import make_sketch
from forvalue_index.model import label_tokens
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.sample import TEXT_ROLE, Message, Sample

DIM = 256
WHOLE = VOCAB * HIDDEN


def embedder(model, *, dim=DIM, max_length=512, hardest=None, geometries=("raw",)):
    """With moments that a seed gives, where a geometry takes any."""
    backbone = Backbone(model, tiny_tokenizer())
    encoder = PromptEncoder(
        backbone.tokenizer, template="chat", labels="response", max_length=max_length
    )
    drawn = tables(dim, geometries)
    order = torch.from_numpy(drawn["vocab_order"])
    reader = ModelReader(
        backbone, backbone.head, encoder=encoder, vocab_order=order, hardest=hardest
    )
    features = {}
    for name in geometries:
        directions = np.eye(2, HIDDEN) if name in ("fisher", "kfac") else None
        mine = geometry_tables(drawn, name, directions)
        geometry = Geometry(name, None if name == "raw" else some_moments())
        features[name] = Feature(geometry, make_sketch(mine, dim=dim, device=torch.device("cpu")))
    return Embedder(reader, features)


def some_moments():
    random = torch.Generator().manual_seed(8)
    mixed = torch.randn(HIDDEN, HIDDEN, generator=random)
    return Moments(
        torch.rand(VOCAB, generator=random),
        torch.randn(HIDDEN, generator=random),
        mixed @ mixed.T / HIDDEN,
    )


def tables(dim=DIM, geometries=("raw",)):
    layouts = {
        name: row_layout(name, dim=dim, vocab_size=VOCAB, hidden_size=HIDDEN, profile=None)
        for name in geometries
    }
    return draw_tables(VOCAB, HIDDEN, dim=dim, seed=3, layouts=layouts)


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


def rows_of(embedder, items, geometry="raw"):
    return embedder.embed(items).rows[geometry]


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
    alone = torch.cat([rows_of(embed, [p]) for p in items])
    together = rows_of(embed, items)
    assert_same_rows(together, alone)
    assert_same_rows(rows_of(embed, items[::-1]).flip(0), alone)
    embed.reader.token_budget = 100
    assert 1 < len(list(embed.batches(items))) < len(items)
    assert_same_rows(rows_of(embed, items), alone)
    one_batch = collate([p.encoded for p in items], range(len(items)))
    assert_same_rows(embed.embed_batch(one_batch, items).rows["raw"], alone)
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
    monkeypatch.setitem(label_tokens.CHUNK_TOKENS, "cpu", chunk_tokens)
    embed = embedder(model)
    found = embed.embed(prepared(embed))
    assert_same_rows(found.rows["raw"], expected.rows["raw"])
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
    assert_same_rows(rows_of(whole, items), gradients[:, order].flatten(1), 1e-4)

    # The gradient's rows as tokens whose error is one entry: a sketch is linear.
    sketch = make_sketch(tables(), dim=DIM, device=torch.device("cpu"))
    order = torch.from_numpy(tables()["vocab_order"])
    expected = []
    for gradient in gradients:
        sums = sketch.empty(1, gradient)
        owner = torch.zeros(VOCAB, dtype=torch.int64)
        sketch.accumulate(sums, torch.eye(VOCAB), gradient[order], owner)
        expected.append(sketch.rows(sums)[0])
    assert_same_rows(rows_of(small, items), torch.stack(expected), 1e-4)


@pytest.mark.parametrize("kind", ["llama", "phi", "granite"])
def test_statistics_are_those_of_the_model(kind):
    model = tiny_model(kind)
    embed = embedder(model)
    items = prepared(embed)
    found = embed.embed(items)
    for item, row, statistics in zip(items, found.rows["raw"], found.statistics, strict=True):
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
    rows = rows_of(half, items)
    assert rows.dtype == torch.float32
    assert_same_rows(rows, rows_of(exact, items), 0.1)


def test_float64_rows_are_float32_rows_to_rounding():
    exact, wide = embedder(tiny_model("llama")), embedder(tiny_model("llama", torch.float64))
    items = prepared(exact)
    assert_same_rows(rows_of(exact, items), rows_of(wide, items))


def test_no_samples_make_no_rows():
    found = embedder(tiny_model("llama")).embed([])
    assert found.rows["raw"].shape == (0, DIM)
    assert found.statistics == ()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_undefined_numbers_are_an_error_that_names_the_sample(broken):
    """A row with NaN would vanish from every search without a word."""
    model = tiny_model("llama")
    embed = embedder(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[285] = broken  # a token that no text has
    good = prepared(embed)
    assert torch.isfinite(rows_of(embed, good)).all()
    sample = Sample((Message(TEXT_ROLE, "z"),), source="train.jsonl", position=7, own_id="bad one")
    encoded = Encoded(np.array([5, 285, 6]), np.array([False, False, True]))
    bad = Prepared(sample, encoded)
    with pytest.raises(ModelError) as error:
        embed.embed([*good, bad])
    assert str(error.value) == (
        "train.jsonl:7: the model gives infinite or undefined numbers for sample bad one; use "
        "--dtype float32, or leave the sample out"
    )


def test_undefined_numbers_of_a_batch_are_told_sample_by_sample():
    """What `add --on-bad skip` leaves out; the others have the rows that they have alone."""
    model = tiny_model("llama")
    embed = embedder(model, geometries=("raw", "fisher", "kfac"))
    with torch.no_grad():
        model.get_input_embeddings().weight[285] = float("nan")
    good = prepared(embed)
    bad = Prepared(SAMPLES[0], Encoded(np.array([5, 285, 6]), np.array([False, False, True])))
    items = [*good[:2], bad, *good[2:]]
    batch = collate([p.encoded for p in items], range(len(items)))
    found = embed.embed_batch(batch, items)
    assert found.finite.tolist() == [True, True, False, True, True, True]
    for geometry in ("raw", "fisher", "kfac"):
        kept = found.rows[geometry][found.finite]
        assert_same_rows(kept, rows_of(embed, good, geometry))


@pytest.mark.parametrize("geometry", ["centered", "fisher", "kfac"])
def test_a_whole_row_of_a_geometry_is_the_mapped_gradient(geometry):
    """The rows' error sides in the order of the vocabulary that the moments are given in."""
    embed = embedder(tiny_model("llama"), dim=WHOLE, geometries=(geometry,))
    items = prepared(embed)
    mapping = Geometry(geometry, some_moments())
    expected = torch.zeros(len(items), VOCAB, HIDDEN, dtype=torch.float64)
    for batch in embed.batches(items):
        for tokens in embed.reader.label_tokens(batch):
            error = mapping.error(tokens.error.double())
            hidden = mapping.hidden(tokens.hidden.double())
            for e, h, owner in zip(error, hidden, tokens.owner, strict=True):
                expected[batch.indices[int(owner)]] += torch.outer(e, h)
    assert_same_rows(rows_of(embed, items, geometry), expected.flatten(1))


def test_rows_of_a_geometry_are_the_same_with_and_without_others():
    model = tiny_model("llama")
    both, alone = embedder(model, geometries=("raw", "kfac")), embedder(model)
    items = prepared(alone)
    assert both.embed(items).rows.keys() == {"raw", "kfac"}
    assert_same_rows(rows_of(both, items), rows_of(alone, items), 1e-6)
    norms = [statistics.norm for statistics in both.embed(items).statistics]
    assert norms == pytest.approx(rows_of(both, items).norm(dim=1).tolist(), rel=1e-6)
    assert norms != pytest.approx(rows_of(both, items, "kfac").norm(dim=1).tolist(), rel=0.1)


@pytest.mark.parametrize("hardest", [0.3, 0.6])
def test_a_row_of_the_hardest_tokens_does_not_depend_on_its_batch(hardest):
    embed = embedder(tiny_model("llama"), hardest=hardest, geometries=("raw", "fisher"))
    items = prepared(embed)
    for geometry in ("raw", "fisher"):
        alone = torch.cat([rows_of(embed, [p], geometry) for p in items])
        embed.reader.token_budget = 10_000
        assert_same_rows(rows_of(embed, items, geometry), alone)
        assert_same_rows(rows_of(embed, items[::-1], geometry).flip(0), alone)
        embed.reader.token_budget = 100
        assert_same_rows(rows_of(embed, items, geometry), alone)
    every = embedder(tiny_model("llama"))
    gaps = (rows_of(embed, items) - rows_of(every, items)).norm(dim=1)
    assert (gaps[:4] > 0.01 * rows_of(every, items).norm(dim=1)[:4]).all(), "it has an effect"


def test_statistics_are_those_of_the_tokens_that_count():
    model = tiny_model("llama")
    embed = embedder(model, hardest=0.4)
    items = prepared(embed)
    for item, statistics in zip(items, embed.embed(items).statistics, strict=True):
        _, log_p = autograd(model, item)
        kept = math.ceil(0.4 * item.encoded.n_label_tokens)
        hardest = log_p.sort().values[:kept]
        assert statistics.n_label_tokens == kept
        assert statistics.n_tokens == len(item.encoded)
        assert statistics.loss == pytest.approx(float(-hardest.mean()), rel=1e-5)
        mass = float(1 - hardest.exp().mean())
        assert statistics.label_error_mass == pytest.approx(mass, rel=1e-5)


class SmallMemory:
    """A sketch that has the memory for so many samples at once."""

    def __init__(self, sketch, most):
        self._sketch, self._most = sketch, most

    def __getattr__(self, name):
        return getattr(self._sketch, name)

    def empty(self, n_samples, like):
        if n_samples > self._most:
            torch.empty(2**48)
        return self._sketch.empty(n_samples, like)


def with_memory_for(embedder, most):
    for name, feature in embedder._features.items():
        embedder._features[name] = feature._replace(sketch=SmallMemory(feature.sketch, most))
    return embedder


@pytest.mark.parametrize("most", [1, 2, 4])
def test_a_batch_that_memory_is_too_small_for_is_embedded_in_halves(most):
    model = tiny_model("llama")
    ample = embedder(model, geometries=("raw", "fisher"))
    items = prepared(ample)
    batch = collate([item.encoded for item in items], [3, 0, 4, 1, 2])
    expected = ample.embed_batch(batch, items)
    found = with_memory_for(embedder(model, geometries=("raw", "fisher")), most).embed_batch(
        batch, items
    )
    for name in ("raw", "fisher"):
        torch.testing.assert_close(found.rows[name], expected.rows[name], rtol=1e-4, atol=1e-5)
    assert found.finite.tolist() == [True] * 5
    for mine, theirs in zip(found.statistics, expected.statistics, strict=True):
        assert dataclasses.astuple(mine) == pytest.approx(dataclasses.astuple(theirs), rel=1e-4)


def test_a_sample_that_memory_is_too_small_for_is_named():
    poor = with_memory_for(embedder(tiny_model("llama")), 0)
    with pytest.raises(ModelError, match=r"s:0: there is not the memory on cpu.*smaller --dim"):
        poor.embed(prepared(poor))
