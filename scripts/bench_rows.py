#!/usr/bin/env python3
"""What the precision of stored rows costs: bytes, and how far scores and rankings move.

The samples of `forvalue make-demo-data` are embedded once in float32, in all geometries. Each is
then scored for each of the validation set with rows as every precision keeps them. An error is
measured in standard errors of the sketch, |q| |r| / sqrt(dim), which a score is off by anyway: an
error of 0.1 makes that 0.5 % larger. The speed of rows is what scripts/bench_values.py measures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.demo_data import write_demo_data
from forvalue_index.settings import GEOMETRIES, ROW_DTYPES
from forvalue_index.store.rows import quantized

ENDS = 10
COLUMNS = ("geometry", "row_dtype", "bytes_per_sample", "error_rms", "error_mean", "error_max")
COLUMNS += ("top_kept", "bottom_kept", "rank_correlation")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory, GGUF file or hub id")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--geometries", default=",".join(GEOMETRIES))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    names = options.geometries.split(",")
    rows, queries = embedded(options.model, options.dim, names)
    found = [
        {"geometry": name, "row_dtype": row_dtype, **compared(rows[name], queries[name], row_dtype)}
        for name in names
        for row_dtype in ROW_DTYPES
        if row_dtype != "float32"
    ]
    if options.json:
        print(json.dumps({"samples": len(rows[names[0]]), "dim": options.dim, "rows": found}))
        return
    print("  ".join(f"{name:>16}" for name in COLUMNS))
    for row in found:
        print("  ".join(f"{row[name]!s:>16}" for name in COLUMNS))


def embedded(
    model: str, dim: int, names: list[str]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rows of the training and of the validation samples in each geometry, in float32."""
    with tempfile.TemporaryDirectory() as folder:
        write_demo_data(Path(folder))
        settings = {"dim": dim, "geometry": ",".join(names), "row_dtype": "float32"}
        with ValuationIndex.create(Path(folder) / "index", model, **settings) as index:
            index.add([Path(folder) / "start.jsonl", Path(folder) / "more.jsonl"])
            with index.storage.view() as view:
                rows = {n: torch.cat([b.rows for b in view.blocks(n)]) for n in names}
        with ValuationIndex.create(Path(folder) / "validation", model, **settings) as index:
            index.calibrate(Path(folder) / "start.jsonl")
            index.add(Path(folder) / "validation.jsonl")
            with index.storage.view() as view:
                queries = {n: torch.cat([b.rows for b in view.blocks(n)]) for n in names}
    return rows, queries


def compared(rows: torch.Tensor, queries: torch.Tensor, row_dtype: str) -> dict[str, Any]:
    """Scores with rows of a precision beside those with rows in float32; queries are not stored."""
    stored = quantized(rows, row_dtype)
    n_bytes = stored.values[0].nbytes + 4 + (0 if stored.scales is None else 4)
    right = (queries.double() @ rows.double().T).numpy()
    found = (queries.double() @ stored.floats().double().T).numpy()
    norms = torch.outer(queries.double().norm(dim=1), rows.double().norm(dim=1)).numpy()
    errors = (found - right) / (norms / rows.shape[1] ** 0.5)
    return {
        "bytes_per_sample": n_bytes,
        "error_rms": round(float(np.sqrt((errors**2).mean())), 4),
        "error_mean": round(float(errors.mean()), 4),
        "error_max": round(float(np.abs(errors).max()), 3),
        "top_kept": round(kept(-right, -found), 4),
        "bottom_kept": round(kept(right, found), 4),
        "rank_correlation": round(correlation(right, found), 5),
    }


def kept(right: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """Of the lowest ten of each query, the mean share that is found."""
    pairs = zip(np.argsort(right)[:, :ENDS], np.argsort(found)[:, :ENDS], strict=True)
    return float(np.mean([np.isin(mine, theirs).mean() for mine, theirs in pairs]))


def correlation(right: NDArray[np.float64], found: NDArray[np.float64]) -> float:
    """The mean rank correlation over queries."""
    ranks = [np.argsort(np.argsort(scores)).astype(np.float64) for scores in (right, found)]
    return float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*ranks, strict=True)]))


if __name__ == "__main__":
    main()
