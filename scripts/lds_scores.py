"""What each method says of training samples: score matrices for scripts/reproduce.py.

A matrix is [query, sample], larger is more helpful. Exact scores come from whole head gradients,
sketched ones from rows as an index would store them, gradients of all weights from autograd.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from small_models import encoder_of, load, read
from torch import Tensor

from forvalue_index.evaluation.training import add_gradients, trainable
from forvalue_index.gradients.calibrating import CALIBRATION_SAMPLES, calibrate
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.embedder import Embedder, Feature, geometry_of
from forvalue_index.gradients.exact import gradient
from forvalue_index.gradients.hash_tables import Layout, draw_tables, geometry_tables
from forvalue_index.gradients.model_profile import profile_model
from forvalue_index.gradients.sketch import make_sketch
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.label_tokens import LabelTokens, ModelReader, Prepared
from forvalue_index.settings import Settings
from forvalue_index.sources.sample import Sample
from forvalue_index.store.durable import write_durably
from forvalue_index.valuation.scorers.bm25 import bm25_scores
from forvalue_index.valuation.scorers.hidden_states import hidden_similarity

Matrix = NDArray[np.float64]

# Training samples whose gradients are in memory at once.
GROUP = 16


class Scores(NamedTuple):
    """`matrix` [query, sample]; `norms` of queries and of samples are those of their gradients."""

    matrix: Matrix
    query_norms: Matrix
    norms: Matrix

    @property
    def cosines(self) -> Matrix:
        """The same as cosines, but for the query's own norm, which orders nothing."""
        return self.matrix / self.norms


@dataclass(frozen=True, eq=False)
class Experiment:
    """A model, its training samples and its queries, tokenised, and a calibration on a choice."""

    backbone: Backbone
    training: list[Prepared]
    queries: list[Prepared]
    settings: Settings

    @classmethod
    def load(cls, directory: Path, *, damping: float) -> Experiment:
        """What `small_models.build` made."""
        backbone = load(directory)
        encoder = encoder_of(backbone)

        def prepared(samples: Sequence[Sample]) -> list[Prepared]:
            return [Prepared(sample, encoder.encode(sample)) for sample in samples]

        return cls(
            backbone,
            prepared(read(directory, "training")),
            prepared(read(directory, "validation")),
            Settings(str(directory / "model"), damping=damping, geometry="raw"),
        )

    @property
    def encoded(self) -> tuple[list[Encoded], list[Encoded]]:
        """Tokens of training samples and of queries."""
        training, queries = ([p.encoded for p in some] for some in (self.training, self.queries))
        return training, queries

    def reader(self, vocab_order: NDArray[np.int64] | None = None) -> ModelReader:
        """Reads samples with the vocabulary in an order."""
        size = self.backbone.head.weight.shape[0]
        order = torch.arange(size) if vocab_order is None else torch.from_numpy(vocab_order)
        encoder = encoder_of(self.backbone)
        return ModelReader(self.backbone, self.backbone.head, encoder=encoder, vocab_order=order)

    def calibration(self, seed: int) -> Calibration:
        """Moments from as many random training samples as an index calibrates on."""
        random = np.random.default_rng(seed)
        chosen = random.permutation(len(self.training))[:CALIBRATION_SAMPLES]
        vocab_size, hidden_size = self.backbone.head.weight.shape
        tables = draw_tables(vocab_size, hidden_size, dim=self.settings.dim, seed=seed)
        reader = self.reader(tables["vocab_order"])
        return calibrate(reader, tables, self.settings, [self.training[i] for i in chosen])


def kept(path: Path, make: Callable[[], dict[str, Scores]]) -> dict[str, Scores]:
    """What `make` gives, from a file if it was made before."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        named = make()
        file = io.BytesIO()
        np.savez(file, **{f"{n}/{f}": a for n, s in named.items() for f, a in s._asdict().items()})
        write_durably(path, file.getvalue())
    with np.load(path) as stored:
        names = dict.fromkeys(key.rpartition("/")[0] for key in stored.files)
        return {n: Scores(*(stored[f"{n}/{field}"] for field in Scores._fields)) for n in names}


@torch.inference_mode()
def exact_scores(experiment: Experiment, name: str, calibration: Calibration) -> Scores:
    """Inner products of whole head gradients in a geometry."""
    reader = experiment.reader()
    geometry = geometry_of(name, reader, calibration, experiment.settings)

    def gradients(samples: Sequence[Prepared]) -> Tensor:
        found = torch.empty(len(samples), reader.head.weight.numel())
        for row, sample in zip(found, samples, strict=True):
            tokens = tokens_of(reader, sample)
            mapped = geometry.error(tokens.error), geometry.hidden(tokens.hidden)
            row.copy_(gradient(*mapped).flatten())
        return found

    return _products(gradients(experiment.queries), experiment.training, gradients)


def tokens_of(reader: ModelReader, sample: Prepared) -> LabelTokens:
    """All label tokens of one sample."""
    (batch,) = reader.batches([sample])
    chunks = zip(*reader.label_tokens(batch), strict=True)
    return LabelTokens(*(torch.cat(parts) for parts in chunks))


def full_gradient_scores(experiment: Experiment, *, body_alone: bool) -> Scores:
    """Inner products of the gradients of all weights, or of all but embedding and head."""
    backbone = experiment.backbone
    with trainable(backbone):
        weights = [
            weight
            for name, weight in backbone.model.named_parameters()
            if not body_alone or ("embed" not in name and "lm_head" not in name)
        ]
        size = sum(weight.numel() for weight in weights)

        def gradients(samples: Sequence[Prepared]) -> Tensor:
            found = torch.empty(len(samples), size)
            for row, sample in zip(found, samples, strict=True):
                backbone.model.zero_grad()
                add_gradients(backbone, [sample.encoded])
                row.copy_(torch.cat([w.grad.flatten() for w in weights if w.grad is not None]))
            return found

        return _products(gradients(experiment.queries), experiment.training, gradients)


def _products(
    queries: Tensor, training: Sequence[Prepared], gradients: Callable[[list[Prepared]], Tensor]
) -> Scores:
    columns, norms = [], []
    for start in range(0, len(training), GROUP):
        group = gradients(list(training[start : start + GROUP]))
        columns.append((queries @ group.T).double())
        norms.append(torch.linalg.vector_norm(group, dim=1).double())
    query_norms = torch.linalg.vector_norm(queries, dim=1).double()
    return Scores(torch.cat(columns, 1).numpy(), query_norms.numpy(), torch.cat(norms).numpy())


def sketched_scores(
    experiment: Experiment,
    name: str,
    calibration: Calibration,
    layouts: dict[str, Layout],
    seed: int,
) -> dict[str, Scores]:
    """Scores of rows of a geometry in each layout; training rows in bfloat16, as indexes keep them.

    All layouts have `experiment.settings.dim` floats, and the same order of the vocabulary.
    """
    dim, backbone = experiment.settings.dim, experiment.backbone
    vocab_size, hidden_size = backbone.head.weight.shape
    profile = profile_model(backbone, backbone.head, context=backbone.context)
    tables = draw_tables(
        vocab_size, hidden_size, dim=dim, seed=seed, profile=profile, layouts=layouts
    )
    reader = experiment.reader(tables["vocab_order"])
    geometry = geometry_of(name, reader, calibration, experiment.settings)
    features = {}
    for title, layout in layouts.items():
        count = layout.directions
        directions = geometry.directions(calibration.moments, count).numpy() if count else None
        mine = geometry_tables(tables, title, directions)
        sketch = make_sketch(mine, dim=dim, device=backbone.device)
        features[title] = Feature(geometry, sketch)
    embedder = Embedder(reader, features)
    queries = embedder.embed(experiment.queries).rows
    training = embedder.embed(experiment.training).rows
    return {t: _scores_of_rows(queries[t], training[t].bfloat16()) for t in layouts}


def _scores_of_rows(queries: Tensor, training: Tensor) -> Scores:
    rows = [part.double().numpy() for part in (queries, training)]
    norms = [np.linalg.norm(part, axis=1) for part in rows]
    return Scores(rows[0] @ rows[1].T, norms[0], norms[1])


@torch.inference_mode()
def baseline_scores(experiment: Experiment) -> dict[str, Scores]:
    """Words in common, and likeness of mean hidden states."""
    both = (experiment.queries, experiment.training)
    reader = experiment.reader()
    texts = [[p.sample.response for p in some] for some in both]
    means = [
        torch.stack([tokens_of(reader, sample).hidden.mean(0) for sample in some]).numpy()
        for some in both
    ]
    return {
        "BM25": _without_norms(bm25_scores(*texts)),
        "hidden state, centred cosine": _without_norms(hidden_similarity(*means)),
    }


def _without_norms(matrix: NDArray[np.float32]) -> Scores:
    return Scores(matrix.astype(np.float64), np.ones(len(matrix)), np.ones(matrix.shape[1]))
