"""What turns samples into rows, made of a tiny model, and samples for it."""

import numpy as np
import torch
from models import HIDDEN, VOCAB, tiny_tokenizer

from forvalue_index.gradients.embedder import Embedder, Feature
from forvalue_index.gradients.geometry import Geometry, Moments
from forvalue_index.gradients.hash_tables import draw_tables, geometry_tables, row_layout
from forvalue_index.gradients.sketch import make_sketch
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.sample import TEXT_ROLE, Message, Sample

DIM = 256


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
