#!/usr/bin/env python3
"""Search kinds beside FAISS's flat index and a scan: time, memory and what is found at both ends.

One query, the 100 best. Warm: the index is open, medians over queries. Cold: a new process opens
the index and answers once, with rows and codes in the page cache or not, as the machine has them;
its own memory is what is not mapped from files. Queries are rows that the index does not hold, and
means of 100 of these; or, with `--index`, rows of that index. Where there are NVIDIA GPUs, `flat`
lies in their memory; `reads` is its warm time by that of moving as many bytes there.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from synthetic_index import Rows, synthetic_index

from forvalue_index.search.building import RowKind, search_index
from forvalue_index.search.contract import SearchIndex
from forvalue_index.search.flat import FlatIndex
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.search.kinds import SEARCH_KINDS
from forvalue_index.settings import ROW_DTYPES
from forvalue_index.store.store import Storage
from forvalue_index.store.view import View

ANSWERS, QUERIES, HELD_OUT = 100, 20, 10**9
COPIED_ROWS = 2**16
Ends = list[tuple[NDArray[np.int64], NDArray[np.int64]]]


def main() -> None:
    """Measure and print."""
    options = parse_options()
    if options.cold:
        cold(options)
        return
    if options.index is None:
        storage = synthetic_index(
            options.work, options.rows, options.dim, row_dtype=options.row_dtype, report=report
        )
        drawn = Rows(options.dim).draw(QUERIES * ANSWERS, HELD_OUT)
        means = drawn.view(QUERIES, ANSWERS, -1).mean(1)
        queries = torch.cat([drawn[:QUERIES], means]).numpy()
    else:
        storage = Storage.open(options.index)
        with storage.view() as view:
            queries = view.some_rows(options.geometry, 2 * QUERIES).numpy()
    result = measure(storage, queries, options)
    print(json.dumps(result, indent=2) if options.json else shown(result))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--row-dtype", choices=tuple(ROW_DTYPES), default="bfloat16")
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--index", type=Path, help="real rows: an index, instead of synthetic ones")
    parser.add_argument("--geometry", default="raw")
    parser.add_argument("--kinds", default="rabitq", help=", ".join(SEARCH_KINDS))
    parser.add_argument("--faiss", action="store_true", help="also FAISS flat, rows in float32")
    parser.add_argument("--cold", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def measure(
    storage: Storage, queries: NDArray[np.float32], options: argparse.Namespace
) -> dict[str, Any]:
    """All kinds and references, each against the right answers."""
    found: dict[str, Any] = {"threads": torch.get_num_threads(), "kinds": {}}
    with storage.view() as view:
        found |= {"rows": view.catalog.count(), "dim": view.manifest.row_width}
        report("right answers")
        right, seconds = scanned(view, queries, options.geometry)
        found["kinds"]["all rows from files"] = {"warm_s": round(seconds, 4)}
        if options.faiss:
            report("FAISS, flat")
            found["kinds"]["FAISS flat float32"] = warm(faiss_flat(view, options), queries, right)
        for kind in options.kinds.split(","):
            report(f"{kind}: codes")
            rows = RowKind(options.geometry)
            started = time.perf_counter()
            index = search_index(view, rows, kind=kind)
            opened = time.perf_counter() - started
            report(f"{kind}: warm")
            one = {"opened_s": round(opened, 2), **warm(index, queries, right)}
            if isinstance(index, GpuIndex):
                read_s = reading_s(index)
                one |= {"read_s": round(read_s, 5), "reads": round(one["warm_s"] / read_s, 2)}
            del index
            folder = view.search_path / rows.name / kind
            size = sum(path.stat().st_size for path in folder.glob("*"))
            one["disk_bytes_per_row"] = round(size / found["rows"])
            one |= cold_process(storage, kind, options)
            one["memory_share_of_rows"] = round(
                one["own_mb"] * 2**20 / (view.manifest.sample_bytes * found["rows"]), 3
            )
            found["kinds"][kind] = one
    return found


def scanned(view: View, queries: NDArray[np.float32], geometry: str) -> tuple[Ends, float]:
    """The right answers by scoring all rows at once, and the time of one query alone that way."""
    asked = torch.from_numpy(queries)
    best = [np.empty((2, 0)) for _ in queries]
    known = [np.empty((2, 0), np.int64) for _ in queries]
    for block in view.blocks(geometry):
        scores = (asked @ block.rows.T).numpy()
        for i, mine in enumerate(scores):
            both = np.concatenate([best[i], [mine, -mine]], axis=1)
            ids = np.concatenate([known[i], [block.ids, block.ids]], axis=1)
            order = np.argsort(-both, axis=1)[:, :ANSWERS]
            best[i] = np.take_along_axis(both, order, 1)
            known[i] = np.take_along_axis(ids, order, 1)
    started = time.perf_counter()
    for _ in view.scan(geometry, lambda block: torch.mv(block.rows, asked[0])):
        pass
    return [(ids[0], ids[1]) for ids in known], time.perf_counter() - started


def faiss_flat(view: View, options: argparse.Namespace) -> SearchIndex:
    """FAISS's own flat index over all rows in float32."""
    index = FlatIndex(view.manifest.row_width)
    for block in view.blocks(options.geometry):
        index.add(block.ids, block.rows.numpy())
    return index


def warm(index: SearchIndex, queries: NDArray[np.float32], right: Ends) -> dict[str, float]:
    """Median time of a query at one end, and the recall at both."""
    index.search(queries[:1], ANSWERS)
    times: list[float] = []
    recalls: dict[str, list[float]] = {"top": [], "bottom": [], "mean_top": [], "mean_bottom": []}
    for number, (query, ends) in enumerate(zip(queries, right, strict=True)):
        for sign, name, wanted in ((1, "top", ends[0]), (-1, "bottom", ends[1])):
            started = time.perf_counter()
            ((ids, _),) = index.search(sign * query[None], ANSWERS)
            times.append(time.perf_counter() - started)
            group = name if number < len(queries) // 2 else f"mean_{name}"
            recalls[group].append(float(np.isin(wanted, ids).mean()))
    shares = {f"recall_{name}": round(statistics.mean(v), 5) for name, v in recalls.items()}
    return {"warm_s": round(statistics.median(times), 5), **shares}


def reading_s(index: GpuIndex) -> float:
    """Seconds in which GPUs move as many bytes as all rows have: what copying half of them takes.

    A sum would not do: torch's over integers reads at a fifth of what the memory gives.
    """
    halves = [values[: len(values) // 2].split(COPIED_ROWS) for values in index.stored_values()]
    copies = [torch.empty_like(blocks[0]) for blocks in halves]
    times = []
    for _ in range(QUERIES):
        _wait(copies)
        started = time.perf_counter()
        for blocks, copy in zip(halves, copies, strict=True):
            for block in blocks:
                copy[: len(block)].copy_(block)
        _wait(copies)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _wait(tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        if tensor.is_cuda:
            torch.cuda.synchronize(tensor.device)


def cold_process(storage: Storage, kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Open and ask in a process of its own."""
    command = [sys.executable, __file__, "--cold", kind, "--index", str(storage.path)]
    command += ["--geometry", options.geometry]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def cold(options: argparse.Namespace) -> None:
    """What the other process does: imports are done, as beside a loaded model."""
    before = own_mb()
    started = time.perf_counter()
    storage = Storage.open(options.index)
    with storage.view() as view:
        query = np.random.default_rng(0).standard_normal((1, view.manifest.row_width))
        index = search_index(view, RowKind(options.geometry), kind=options.cold)
        for sign in (1, -1):
            index.search((sign * query).astype(np.float32), ANSWERS)
        seconds = time.perf_counter() - started
        print(json.dumps({"cold_s": round(seconds, 2), "own_mb": round(own_mb() - before)}))


def own_mb() -> float:
    """Resident memory that is not mapped from files, in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.findall(r"RssAnon:\s+(\d+)", status)[0]) / 1024


def shown(result: dict[str, Any]) -> str:
    """A line for each kind."""
    lines = [f"{result['rows']:,} rows of {result['dim']:,} floats, {result['threads']} threads"]
    for kind, numbers in result["kinds"].items():
        lines.append(f"{kind:28}" + "  ".join(f"{k} {v:g}" for k, v in numbers.items()))
    return "\n".join(lines)


def report(text: str) -> None:
    """One line on stderr, written over and over."""
    print(f"\r{text:60}", end="", file=sys.stderr)


if __name__ == "__main__":
    main()
