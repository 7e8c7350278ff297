#!/usr/bin/env python3
"""What an index costs as it grows: adding samples with the model, asking, memory and disk.

One index of a real model grows by synthetic rows to each size. There `add` embeds the same number
of new samples, none of which it knew, and then reads them again, when it knows them all. A query
is the 100 best and the 100 worst rows for one row, in a new process that opens the index (cold)
and again in this one (warm); `values` scores all rows. `add_ratio` is the time of `add` by that of
the bare forward pass on the same samples, measured just before or after it, in turn.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from bench_ingest import bare_forward, prepare, timed, write_data
from bench_search import ANSWERS, cold_process
from synthetic_index import grow

from forvalue_index import ValuationIndex
from forvalue_index.search.building import RowKind, search_index, update_codes
from forvalue_index.search.kinds import search_kind
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import ValidationRows
from forvalue_index.valuation.values import scanned_values

QUERIES, ROUNDS = 9, 3


def main() -> None:
    """Measure and print."""
    options = parse_options()
    sizes = [int(size) for size in options.sizes.split(",")]
    with tempfile.TemporaryDirectory(dir=options.work) as folder:
        data = write_data(Path(folder) / "data.jsonl", options.samples * (2 * len(sizes) + 2))
        lines = data.read_text().splitlines(keepends=True)
        parts = []
        for start in range(0, len(lines), options.samples):
            parts.append(Path(folder) / f"part-{start}.jsonl")
            parts[-1].write_text("".join(lines[start : start + options.samples]))
        found = measure(Path(folder) / "index", parts, sizes, options)
    result = {"dim": options.dim, "threads": torch.get_num_threads(), "sizes": found}
    print(json.dumps(result, indent=2) if options.json else shown(found))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory, GGUF file or hub id")
    parser.add_argument("--sizes", default="1000,10000,100000,1000000")
    parser.add_argument("--samples", type=int, default=64, help="that are added at each size")
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--row-dtype", default="bfloat16")
    parser.add_argument("--work", type=Path, help="a directory with room for the rows")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(
    path: Path, parts: list[Path], sizes: list[int], options: argparse.Namespace
) -> list[dict[str, Any]]:
    """All costs at each size."""
    found = []
    settings = {"dim": options.dim, "row_dtype": options.row_dtype, "geometry": "raw"}
    with ValuationIndex.create(path, options.model, **settings) as index:
        index.calibrate(parts[0])
        index.add(parts.pop(0))  # warms up
        bare_forward(index, prepare(index, parts[0]))
        for size in sizes:
            report(f"{size:,}: growing")
            grow(index.storage, size, report=report)
            with index.storage.view() as view:
                update_codes(view)
            report(f"{size:,}: measuring")
            two = [parts.pop(0), parts.pop(0)]
            found.append({"rows": size, **added(index, two), **asked(index, options)})
    return found


def added(index: ValuationIndex, parts: list[Path]) -> dict[str, float]:
    """Milliseconds for each sample that is new, and for each that is known."""
    new_s, known_s, ratios = [], [], []
    for number, part in enumerate(parts):
        prepared = prepare(index, part)
        tasks: list[Callable[[], Any]] = [
            lambda: index.add(part),  # noqa: B023
            lambda: bare_forward(index, prepared),  # noqa: B023
        ]
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {i: timed(tasks[i]) for i in order}
        new_s.append(seconds[0] / len(prepared))
        ratios.append(seconds[0] / seconds[1])
        known_s.append(timed(lambda: index.add(part)) / len(prepared))  # noqa: B023
    return {
        "add_ms": round(1000 * statistics.mean(new_s), 1),
        "add_ratio": round(statistics.mean(ratios), 3),
        "known_ms": round(1000 * statistics.mean(known_s), 2),
    }


def asked(index: ValuationIndex, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a query and of `values`, and the memory and disk that they take."""
    storage, kind = index.storage, search_kind(len(index))
    cold = cold_process(storage, kind, argparse.Namespace(geometry="raw"))
    queries = np.random.default_rng(0).standard_normal((QUERIES, options.dim)).astype(np.float32)
    warm_s, values_s = [], []
    with storage.view() as view:
        search = search_index(view, RowKind("raw"), kind=kind)
        for query in queries:
            started = time.perf_counter()
            for sign in (1, -1):
                search.search(sign * query[None], ANSWERS)
            warm_s.append(time.perf_counter() - started)
        errors = storage.frozen.sketch_error("raw")
        embedded = ValidationRows(queries[:1], 0.5)
        for _ in range(ROUNDS):
            values_s.append(timed(lambda: scanned_values(view, embedded, Scoring(), errors=errors)))
    size = sum(path.stat().st_size for path in index.path.rglob("*") if path.is_file())
    return {
        "search": kind,
        "query_cold_s": cold["cold_s"],
        "query_warm_s": round(statistics.median(warm_s), 4),
        "values_s": round(statistics.median(values_s), 3),
        "query_own_mb": cold["own_mb"],
        "disk_bytes_per_sample": round(size / len(index)),
    }


def shown(found: list[dict[str, Any]]) -> str:
    """A column for each size."""
    return "\n".join(
        f"{name:24}" + "".join(f"{row[name]!s:>12}" for row in found) for name in found[0]
    )


def report(text: str) -> None:
    """One line on stderr, written over and over."""
    print(f"\r{text:60}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
