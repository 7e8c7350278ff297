#!/usr/bin/env python3
"""Sketched scores against exact ones, on a real model and the demo's data.

Exact scores come from the kernel form over the full vocabulary; sketched ones are inner
products of rows. Reported for each number of floats: rank correlation for the mean of the
validation set and for its single samples, how much of the exact top 10 (and bottom 10) is kept,
the error in units of the norms beside 1 / sqrt(D), and beside the standard errors that are printed.
"""

from __future__ import annotations

import argparse
import json
import math
from itertools import zip_longest
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from forvalue_index.backbone import Backbone, default_device
from forvalue_index.demo_data import write_demo_data
from forvalue_index.exact_matrices import exact_matrix
from forvalue_index.features import Embedder, features_of
from forvalue_index.geometry import Geometry
from forvalue_index.hash_tables import (
    RAW,
    ModelProfile,
    SketchError,
    draw_tables,
    geometry_tables,
    part_widths,
)
from forvalue_index.label_tokens import Prepared
from forvalue_index.loading import make_reader
from forvalue_index.model_profile import profile_model
from forvalue_index.rescoring import gradient_norms
from forvalue_index.settings import Settings
from forvalue_index.sources import open_sources

TRAINING = ("start.jsonl", "more.jsonl")
VALIDATION = ("sentences_validation.jsonl", "math_validation.jsonl")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory, GGUF file or hub id")
    parser.add_argument("--dims", default="1024,4096,8192", help="floats a row, several")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sketch")
    parser.add_argument("--training", type=int, default=400, help="training samples")
    parser.add_argument("--validation", type=int, default=100, help="validation samples")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    backbone = Backbone.load(Settings(options.model), device=default_device())
    profile = profile_model(backbone, backbone.head, context=backbone.context)
    dims = [int(dim) for dim in options.dims.split(",")]
    embedders = {dim: embedder_of(backbone, profile, dim, options.seed) for dim in dims}
    first, _ = next(iter(embedders.values()))
    with TemporaryDirectory() as folder:
        write_demo_data(Path(folder))
        training = prepare(first, Path(folder), TRAINING)[: options.training]
        validation = prepare(first, Path(folder), VALIDATION)[: options.validation]

    exact, norms = exact_scores(first, validation, training)
    results = []
    for dim, (embedder, widths) in embedders.items():
        rows = sketched_rows(embedder, validation, training)
        results.append({"dim": dim, **compare(exact, norms, rows, widths)})
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        for result in results:
            print("  ".join(f"{name} {value:.4g}" for name, value in result.items()))


def embedder_of(
    backbone: Backbone, profile: ModelProfile, dim: int, seed: int
) -> tuple[Embedder, tuple[int, ...]]:
    """An embedder as an index of this model would have it, and the widths of its rows' parts."""
    vocab_size, hidden_size = backbone.head.weight.shape
    drawn = draw_tables(vocab_size, hidden_size, dim=dim, seed=seed, profile=profile)
    template = "chat" if backbone.tokenizer.chat_template else "plain"
    settings = Settings("model", dim=dim, template=template, max_length=2048)
    reader = make_reader(backbone, settings, drawn)
    features = features_of(reader, drawn, settings, None, [RAW])
    return Embedder(reader, features), part_widths(geometry_tables(drawn, RAW), dim)


def prepare(embedder: Embedder, folder: Path, names: tuple[str, ...]) -> list[Prepared]:
    """The samples of files, in turn, tokenised."""
    sources = open_sources([folder / name for name in names])
    rows = zip_longest(*(source.samples() for source in sources))
    return [embedder.prepare(row) for group in rows for row in group if row is not None]


def exact_scores(
    embedder: Embedder, validation: list[Prepared], training: list[Prepared]
) -> tuple[np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Scores [validation, training] in kernel form, and the norms of the gradients of both."""
    reader, raw = embedder.reader, Geometry(RAW)
    norms = tuple(gradient_norms(reader, raw, samples) for samples in (validation, training))
    return exact_matrix(reader, raw, validation, training), norms


def sketched_rows(
    embedder: Embedder, validation: list[Prepared], training: list[Prepared]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both sides, the training side in bfloat16 as an index stores it."""
    stored = embedder.embed(training).rows[RAW].bfloat16().float()
    return embedder.embed(validation).rows[RAW].numpy(), stored.numpy()


def compare(
    exact: np.ndarray,
    norms: tuple[np.ndarray, np.ndarray],
    rows: tuple[np.ndarray, np.ndarray],
    widths: tuple[int, ...],
) -> dict[str, float]:
    """What rows, of parts of `widths` floats, keep of the exact scores [validation, training]."""
    sketched = rows[0].astype(np.float64) @ rows[1].T.astype(np.float64)
    formula = SketchError(widths)
    promised = np.stack([formula.standard_errors(query, rows[1]) for query in rows[0]])
    errors = sketched - exact
    kept = [overlap(e, s) for e, s in zip(exact, sketched, strict=True)]
    kept_bottom = [overlap(-e, -s) for e, s in zip(exact, sketched, strict=True)]
    single = [rank_correlation(e, s) for e, s in zip(exact, sketched, strict=True)]
    return {
        "mean_query_rank_correlation": rank_correlation(exact.mean(axis=0), sketched.mean(axis=0)),
        "single_query_rank_correlation": float(np.mean(single)),
        "mean_query_top10_kept": overlap(exact.mean(axis=0), sketched.mean(axis=0)),
        "mean_query_bottom10_kept": overlap(-exact.mean(axis=0), -sketched.mean(axis=0)),
        "top10_kept": float(np.mean(kept)),
        "bottom10_kept": float(np.mean(kept_bottom)),
        "error_times_sqrt_dim": rms(errors / np.outer(*norms)) * math.sqrt(sum(widths)),
        "error_over_stderr": rms(errors) / rms(promised),
    }


def rms(values: np.ndarray) -> float:
    """Root of the mean square."""
    return float(np.sqrt(np.mean(np.square(values))))


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's, for scores without ties."""
    return float(np.corrcoef(a.argsort().argsort(), b.argsort().argsort())[0, 1])


def overlap(exact: np.ndarray, sketched: np.ndarray, k: int = 10) -> float:
    """The share of the exact top k that is among the sketched top k."""
    return len(set(exact.argsort()[-k:]) & set(sketched.argsort()[-k:])) / k


if __name__ == "__main__":
    main()
