#!/usr/bin/env python3
"""`values` over all rows of an index against a plain copy of the same bytes.

The reference copies the row tensors of all segments, from the mapped files to memory; ours is what
`values` does once a query is embedded: every row checked, scored, and given its standard error.
Interleaved; `share` is the copy's time by ours, the part of its bandwidth that is reached. Where
there are NVIDIA GPUs with the room, `gpu_values_s` is the time once rows lie in their memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from synthetic_index import synthetic_index

from forvalue_index.devices import gpus
from forvalue_index.search.building import RowKind, search_index
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.search.kinds import FLAT
from forvalue_index.settings import ROW_DTYPES
from forvalue_index.store.store import Storage
from forvalue_index.valuation.row_scorer import RowScorer
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import ValidationRows
from forvalue_index.valuation.values import resident_values, scanned_values


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--row-dtype", choices=tuple(ROW_DTYPES), default="bfloat16")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    storage = synthetic_index(
        options.work, options.rows, options.dim, row_dtype=options.row_dtype, report=report
    )
    query = np.random.default_rng(0).standard_normal((1, options.dim)).astype(np.float32)
    embedded = ValidationRows(query, 0.5)
    copies, ours = [], []
    for number in range(options.rounds + 1):
        report(f"round {number}")
        if number % 2:
            copied, scored = copy_s(storage), values_s(storage, embedded)
        else:
            scored, copied = values_s(storage, embedded), copy_s(storage)
        if number:  # the first brings the files into the page cache
            copies.append(copied)
            ours.append(scored)
    size = storage.manifest.sample_bytes * options.rows
    result = {
        "rows": options.rows,
        "dim": options.dim,
        "row_dtype": options.row_dtype,
        "copy_s": round(statistics.median(copies), 3),
        "values_s": round(statistics.median(ours), 3),
        "values_gb_per_s": round(size / statistics.median(ours) / 1e9, 2),
        "share": round(statistics.median(c / o for c, o in zip(copies, ours, strict=True)), 3),
        "threads": torch.get_num_threads(),
    }
    if gpus():
        report("rows to the GPUs")
        result |= on_gpus(storage, embedded, options.rounds)
    print(json.dumps(result, indent=2) if options.json else result)


def on_gpus(storage: Storage, embedded: ValidationRows, rounds: int) -> dict[str, float]:
    """Seconds to copy the rows to the GPUs, and to score them all there."""
    with storage.view() as view:
        started = time.perf_counter()
        search = search_index(view, RowKind("raw"), kind=FLAT)
        if not isinstance(search, GpuIndex):
            return {}
        scorer = RowScorer(storage, view, Scoring(), search)
        opened, times = time.perf_counter() - started, []
        for _ in range(rounds):
            started = time.perf_counter()
            resident_values(scorer, search, embedded, view.catalog)
            times.append(time.perf_counter() - started)
    return {"gpu_open_s": round(opened, 2), "gpu_values_s": round(statistics.median(times), 4)}


def copy_s(storage: Storage) -> float:
    """Copy the bytes of all rows, a segment at a time, to the same memory."""
    with storage.catalog.snapshot() as snapshot:
        paths = [storage.segments.path(s.file.uid) for s in snapshot.segments()]
    target = torch.empty(0)
    started = time.perf_counter()
    for path in paths:
        with safe_open(path, framework="pt") as file:
            rows = file.get_tensor("raw")
            if len(target) < len(rows):
                target = torch.zeros_like(rows)
            target[: len(rows)].copy_(rows)
    return time.perf_counter() - started


def values_s(storage: Storage, embedded: ValidationRows) -> float:
    """Score all rows, but for opening the index."""
    with storage.view() as view:
        started = time.perf_counter()
        errors = storage.frozen.sketch_error("raw")
        scanned_values(view, embedded, Scoring(), errors=errors)
        return time.perf_counter() - started


def report(text: str) -> None:
    """One line on stderr, written over and over."""
    print(f"\r{text:60}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
