#!/usr/bin/env python3
"""Do the values predict what training does? The tables behind the defaults, made anew.

First on small models: Llamas with vocabularies of 2,048 and 32,768 tokens are pretrained on
docstrings of installed packages, and fine-tuned on random halves of 780 chunks of other ones. The
linear datamodelling score (see `forvalue_index.evaluation.lds`) of each geometry is measured, exact
and sketched in several layouts of equally many floats, beside BM25, hidden states and full
gradients. Sketched scores are means over sketches of several seeds; intervals are those of other
queries.

With `--model`, evaluations of a real model on the demo's data come after it, see `real_model`.

All that takes long is kept in the work directory, so a run that was killed goes on: models, losses
half by half, score matrices, documents of a real model. Small models of other settings are refused.
Delete the folders `scores` and `real` in it after changes to the code that makes what they hold.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lds_scores import (
    Experiment,
    Matrix,
    Scores,
    baseline_scores,
    exact_scores,
    full_gradient_scores,
    kept,
    sketched_scores,
)
from numpy.typing import NDArray
from real_model import real_model_part
from small_models import build

from forvalue_index.evaluation.lds import LdsStudy, linear_datamodelling_score, measured_losses
from forvalue_index.evaluation.metrics import mean_interval, spearman
from forvalue_index.evaluation.training import Recipe
from forvalue_index.gradients.hash_tables import Layout
from forvalue_index.progress import Progress
from forvalue_index.settings import Settings

GEOMETRIES = ("raw", "centered", "fisher", "kfac")
DIMS = (4096, 16384)
# Principal directions of h: a count sketch of e to dim / directions buckets for each of them.
DIRECTIONS = (1, 2, 4, 8, 16, 32)
TENSOR_SKETCH = "TensorSketch"
SEED = 0

OTHER_MODELS = (
    "of GPT-2 fine-tuned on WikiText (bergson's leaderboard): another model, other data and other "
    "halves, so they say what is usual and cannot be compared number by number"
)
PUBLISHED_LDS = {
    "MAGIC": 0.931,
    "EK-FAC": 0.454,
    "TrackStar": 0.276,
    "BM25": 0.220,
    "gradient cosine": 0.156,
}


@dataclass(frozen=True)
class Setting:
    """One small model, and how it is trained."""

    vocab_size: int
    pretraining: Recipe
    fine_tuning: Recipe


SETTINGS = (
    Setting(
        2048,
        Recipe(epochs=6, learning_rate=2e-3, weight_decay=0.1, warmup_steps=50),
        Recipe(epochs=4, learning_rate=5e-4),
    ),
    # Nearly all of the work is that of the head, and bfloat16 does it in a third of the time.
    Setting(
        32768,
        Recipe(epochs=2, learning_rate=2e-3, weight_decay=0.1, warmup_steps=50, bfloat16=True),
        Recipe(epochs=2, learning_rate=1e-3, bfloat16=True),
    ),
)


class Measured(NamedTuple):
    """What scores are held against: who was in which half, and the losses after it."""

    members: NDArray[np.bool_]
    losses: Matrix

    def correlations(self, matrix: Matrix) -> Matrix:
        """Of each query; their mean is the linear datamodelling score."""
        return linear_datamodelling_score(matrix, self.members, self.losses).correlations


class Method(NamedTuple):
    """A row of the table: scores of one or several seeds, and the exact ones of its geometry."""

    name: str
    kind: str
    dim: int | None
    scores: list[Scores]
    exact: Scores | None = None


def main() -> None:
    """Measure and print."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    wanted = {int(size) for size in options.vocabularies.split(",") if size}
    results = {
        "lds": [lds_part(s, options) for s in SETTINGS if s.vocab_size in wanted],
        "published_lds": {"figures": PUBLISHED_LDS, "remark": OTHER_MODELS},
    }
    if options.model is not None:
        results["real_model"] = real_model_part(
            options.model, options.work / "real", dims=DIMS, on_progress=report
        )
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print_tables(results["lds"])
        print(f"\nPublished LDS, {OTHER_MODELS}:")
        print("  ".join(f"{name} {value:.3f}" for name, value in PUBLISHED_LDS.items()))
        print_real_model(results.get("real_model", {"tables": []}))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, default=Path(".cache/reproduce"))
    parser.add_argument(
        "--model", type=Path, help="a real model: directory, GGUF file or hub id; else left out"
    )
    parser.add_argument("--vocabularies", default="2048,32768", help="of small models; or none")
    parser.add_argument("--subsets", type=int, default=32, help="random halves")
    parser.add_argument("--sketch-seeds", type=int, default=3)
    parser.add_argument("--damping", type=float, default=Settings.damping)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def lds_part(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """The table of one small model."""
    directory = build(
        options.work / f"v{setting.vocab_size}",
        vocab_size=setting.vocab_size,
        recipe=setting.pretraining,
        seed=SEED,
        on_progress=report,
    )
    experiment = Experiment.load(directory, damping=options.damping)
    training, queries = experiment.encoded
    study = LdsStudy(training, queries, setting.fine_tuning, options.subsets, SEED)
    losses = measured_losses(experiment.backbone, study, directory / "losses", on_progress=report)
    measured = Measured(study.members, losses)
    methods = all_methods(experiment, directory / "scores", options.sketch_seeds)
    return {
        "vocabulary": setting.vocab_size,
        "training_samples": len(training),
        "queries": len(queries),
        "subsets": options.subsets,
        "fine_tuning": asdict(setting.fine_tuning),
        "damping": options.damping,
        "spread_of_losses": float(losses.std(axis=0).mean()),
        "rows": [row for method in methods for row in table_rows(method, measured)],
    }


def all_methods(experiment: Experiment, folder: Path, seeds: int) -> Iterator[Method]:
    """Baselines, then each geometry, exact and sketched; what was made before is read."""
    baselines = kept(folder / "baselines.npz", lambda: baseline_scores(experiment))
    gradients = kept(folder / "full-gradients.npz", lambda: gradient_scores(experiment))
    for name, scores in {**baselines, **gradients}.items():
        yield Method(name, "exact", None, [scores])
    calibration = experiment.calibration(SEED)
    damping = f"damping-{experiment.settings.damping:g}"
    exact = {}
    for name in GEOMETRIES:
        exact |= kept(
            folder / f"exact-{name}-{damping}.npz",
            lambda n=name: {n: exact_scores(experiment, n, calibration)},
        )
        report(Progress("exact scores", len(exact), len(GEOMETRIES)))
        yield Method(name, "exact", None, [exact[name]])
    for dim, name in product(DIMS, GEOMETRIES):
        sized = replace(experiment, settings=replace(experiment.settings, dim=dim))
        found = []
        for seed in range(seeds):
            path = folder / f"sketched-{name}-{damping}-dim-{dim}-seed-{seed}.npz"
            make = partial(sketched_scores, sized, name, calibration, layouts_of(dim), seed)
            found.append(kept(path, make))
            report(Progress(f"{name}, {dim:,} floats", seed + 1, seeds))
        for layout in found[0]:
            yield Method(name, layout, dim, [scores[layout] for scores in found], exact[name])


def gradient_scores(experiment: Experiment) -> dict[str, Scores]:
    """Plain gradient products, over all weights and over those of the body."""
    return {
        "gradient of all weights": full_gradient_scores(experiment, body_alone=False),
        "gradient of the body": full_gradient_scores(experiment, body_alone=True),
    }


def layouts_of(dim: int) -> dict[str, Layout]:
    """Ways to spend the floats of a row, by name."""
    counts = {f"{dim // q:,} buckets x {q}": Layout(q, dim // q) for q in DIRECTIONS}
    return {TENSOR_SKETCH: Layout(0, 0), **counts}


def table_rows(method: Method, measured: Measured) -> Iterator[dict[str, Any]]:
    """The method's scores as they are, and divided by the norms of samples."""
    for normalised in (False, True):
        if normalised and all((s.norms == 1).all() for s in method.scores):
            continue  # its scores are no inner products
        matrices = [s.cosines if normalised else s.matrix for s in method.scores]
        correlations = np.mean([measured.correlations(m) for m in matrices], axis=0)
        mean = mean_interval(correlations, seed=SEED)
        yield {
            "method": method.name,
            "kind": method.kind,
            "dim": method.dim,
            "normalised": normalised,
            "seeds": len(matrices),
            "lds": mean.value,
            "low": mean.low,
            "high": mean.high,
            **({} if method.exact is None else agreement(method.scores, method.exact)),
        }


def agreement(sketched: list[Scores], exact: Scores) -> dict[str, float]:
    """How near sketched scores are to exact ones: by rank, and in units of both norms."""
    scale = np.outer(exact.query_norms, exact.norms)
    ranks = [spearman(a, b) for s in sketched for a, b in zip(s.matrix, exact.matrix, strict=True)]
    errors = [(s.matrix - exact.matrix) / scale for s in sketched]
    means = [spearman(s.matrix.mean(axis=0), exact.matrix.mean(axis=0)) for s in sketched]
    return {
        "rank_correlation": float(np.mean(ranks)),
        "mean_query_rank_correlation": float(np.mean(means)),
        "relative_error": float(np.sqrt(np.mean(np.square(errors)))),
    }


def print_tables(parts: list[dict[str, Any]]) -> None:
    """The rows as lines, a block for each small model."""
    for part in parts:
        print(f"\nvocabulary {part['vocabulary']:,}, {part['subsets']} halves")
        for row in part["rows"]:
            what = f"{row['method']}{' / norm' if row['normalised'] else ''}"
            size = f"{row['dim']:,} floats" if row["dim"] else ""
            interval = f"{row['lds']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"
            ranks = f"  ranks {row['rank_correlation']:.2f}" if "rank_correlation" in row else ""
            print(f"{what:35} {row['kind']:22} {size:14} {interval}{ranks}")


def print_real_model(part: dict[str, Any]) -> None:
    """A line for each method of each table of a real model, with all its numbers."""
    for name, figures in part.get("published", {}).items():
        print(f"\npublished, {name}: {figures}")
    for table in part["tables"]:
        print(f"\n{table['table']}, {table['dim']:,} floats")
        for method in table["methods"]:
            numbers = {k: v["value"] if isinstance(v, dict) else v for k, v in method.items()}
            shown = (f"{k} {v:.3f}" if isinstance(v, float) else str(v) for k, v in numbers.items())
            print("  ".join(shown))


def report(progress: Progress) -> None:
    """One line on stderr, written over and over."""
    print(f"\r{progress.stage} {progress.done}/{progress.total}   ", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
