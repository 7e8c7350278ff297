#!/usr/bin/env python3
"""What finds wrong captions of images, over several seeds: pictures, flips and model of each.

For every seed a model is trained by shapes.py, all samples are indexed in every geometry, and each
method ranks them. `sign` is the share of wrong captions with a negative mean value over the
validation set, and, after the stroke, that of right ones; `ends` the share of wrong captions among
the 5 % of lowest values and, after the stroke, among the 5 % of highest.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import shapes
from numpy.typing import NDArray

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.evidence import EvaluationData
from forvalue_index.evaluation.mislabeled import evaluate_mislabeled
from forvalue_index.settings import GEOMETRIES

END_SHARE = 0.05


def main() -> None:
    """Measure each seed that was not measured before, and print what came of all."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR", help="where all is kept")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--dims", type=int, nargs="+", default=[4096, 16384])
    options = parser.parse_args()
    for dim in options.dims:
        print(f"--dim {dim}", flush=True)
        found = [measured(options.directory / f"seed-{seed}", seed, dim) for seed in options.seeds]
        print_table(found)


def measured(directory: Path, seed: int, dim: int) -> dict[str, dict[str, float]]:
    """AUC and shares of wrong captions by method, read from a file where they were measured."""
    path = directory / f"{dim}.json"
    if not path.is_file():
        if not (directory / "model" / "config.json").is_file():
            shapes.make_shapes(directory, seed)
            shapes.train(directory, seed)
        path.write_text(json.dumps(study(directory, dim)))
    found: dict[str, dict[str, float]] = json.loads(path.read_text())
    return found


def study(directory: Path, dim: int) -> dict[str, dict[str, float]]:
    """Index the samples of a directory, and rank them by every method."""
    started = time.perf_counter()
    path, validation = directory / f"index-{dim}", directory / "validation.jsonl"
    model = str(directory / "model")
    with ValuationIndex.create(path, model, geometry=",".join(GEOMETRIES), dim=dim) as index:
        index.add(directory / "train.jsonl")
        result = evaluate_mislabeled(index, EvaluationData(validation), flag="flipped")
        found = {one.method: {"auc": one.auc.value} for one in result.methods}
        flipped = np.array([row["flipped"] for row in shapes.read(directory, "train")])
        for geometry in GEOMETRIES:
            for normalize in (False, True):
                name = f"for-value {geometry}{', cosine' if normalize else ''}"
                given = {"geometry": geometry, "normalize": normalize}
                found[name] |= shares(index.values(validation, **given).scores, flipped)
    print(f"{directory}: {time.perf_counter() - started:.0f} s", flush=True)
    return found


def shares(scores: NDArray[np.floating], flipped: NDArray[np.bool_]) -> dict[str, float]:
    """How many wrong captions have negative values, and how many lie at the two ends."""
    order = np.argsort(scores)
    count = int(END_SHARE * len(order))
    return {
        "negative_wrong": float((scores[flipped] < 0).mean()),
        "negative_right": float((scores[~flipped] < 0).mean()),
        "wrong_lowest": float(flipped[order[:count]].mean()),
        "wrong_highest": float(flipped[order[-count:]].mean()),
    }


def print_table(found: list[dict[str, dict[str, float]]]) -> None:
    """Each method's AUC of every seed, and means of the shares."""
    print(f"{'method':28}{'AUC of each seed':26}{'sign':14}ends")
    for method, first in found[0].items():
        aucs = "  ".join(f"{one[method]['auc']:.3f}" for one in found)
        mean = {name: np.mean([one[method][name] for one in found]) for name in first}
        sign = ends = ""
        if "negative_wrong" in mean:
            sign = f"{mean['negative_wrong']:.2f} / {mean['negative_right']:.2f}"
            ends = f"{mean['wrong_lowest']:.2f} / {mean['wrong_highest']:.2f}"
        print(f"{method:28}{aucs:26}{sign:14}{ends}".rstrip(), flush=True)


if __name__ == "__main__":
    main()
