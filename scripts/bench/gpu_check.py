#!/usr/bin/env python3
"""Whether an NVIDIA GPU does what docs/search-and-speed.md says: tests and benchmarks, in one call.

Runs the tests that need a GPU and those of the code that they share with the CPU, then the
benchmarks, each in a process of its own with a limit, and prints a table. What failed, or took too
long, is a row of the table, and the exit status is 1 where anything did, or missed its target.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from forvalue_index.devices import gpus

HERE = Path(__file__).parent
TESTS = (
    *("search/test_gpu", "search/test_gpu_rows", "test_devices", "ingest/test_parallel"),
    "model/huggingface/test_backbone",
)
# Label tokens that the head takes at once: from what stays in a GPU's cache to a whole batch's.
CHUNKS = (128, 512, 2048, 8192)
DEFAULT_CHUNK = 2048
MOST_INGEST, MOST_READS, MOST_COLD_S = 1.10, 2.0, 3.0


class Row(NamedTuple):
    """A line of the table; `reached` is None where there is no target."""

    what: str
    measured: str
    target: str = ""
    reached: bool | None = None


def main() -> None:
    """Run everything and print the table."""
    options = parse_options()
    found = gpus()
    if not found:
        sys.exit(f"torch {torch.__version__} sees no NVIDIA GPU; there is nothing to check here")
    names = ", ".join(torch.cuda.get_device_name(gpu) for gpu in found)
    print(f"{names}; torch {torch.__version__}, CUDA {torch.version.cuda}", flush=True)
    rows = [row for step in steps(options) for row in shown(step())]
    sys.exit(any(row.reached is False for row in rows))


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="for ingestion: directory, GGUF file or hub id")
    parser.add_argument("--samples", type=int, default=2048)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--work", type=Path, default=Path(".cache/bench"))
    parser.add_argument("--limit-s", type=float, default=240, help="seconds for each step")
    return parser.parse_args()


def steps(options: argparse.Namespace) -> Iterator[Callable[[], list[Row]]]:
    """What is to be done, the cheapest first."""
    yield lambda: tests(options)
    if options.model:
        yield from (lambda chunk=chunk: ingestion(options, chunk) for chunk in CHUNKS)
    yield lambda: search(options)
    yield lambda: values(options)


def tests(options: argparse.Namespace) -> list[Row]:
    """The tests of what runs on GPUs."""
    files = [str(HERE.parents[1] / "tests" / f"{name}.py") for name in TESTS]
    done = run(["-m", "pytest", "-q", "-p", "no:cacheprovider", *files], options.limit_s)
    counts = re.findall(r"\d+ (?:passed|failed|errors?|skipped)", done.stdout)
    passed = done.returncode == 0
    if not passed:
        print(done.stdout[-6000:], done.stderr[-2000:], sep="\n", flush=True)
    return [Row("tests", ", ".join(counts) or "did not end", "all pass", passed)]


def ingestion(options: argparse.Namespace, chunk: int) -> list[Row]:
    """`add` against the bare forward pass."""
    given = ["--model", options.model, "--samples", str(options.samples), "--rounds", "3"]
    # On one GPU, as the bare forward pass is.
    one = {"CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]}
    chosen = [*given, "--chunk-tokens", str(chunk)]
    found = benchmark("bench_ingest", chosen, options.limit_s, one)
    what = f"ingestion by the bare forward pass, head on {chunk:,} tokens at once"
    if isinstance(found, str):
        return [Row(what, found, reached=False)]
    measured = f"{found['ratio']:.3f} ({found['tokens_per_s']:,.0f} tokens/s)"
    if chunk != DEFAULT_CHUNK:
        return [Row(what, measured)]
    return [Row(what, measured, f"<= {MOST_INGEST:.2f}", found["ratio"] <= MOST_INGEST)]


def search(options: argparse.Namespace) -> list[Row]:
    """One query over all rows, beside moving as many bytes."""
    found = benchmark("bench_search", [*sizes(options), "--kinds", "flat"], options.limit_s)
    what = f"search of {options.rows:,} x {options.dim:,}"
    if isinstance(found, str):
        return [Row(what, found, reached=False)]
    flat = found["kinds"]["flat"]
    if "reads" not in flat:
        return [Row(what, "rows are not in the memory of the GPUs", reached=False)]
    missed = [name for name, value in flat.items() if name.startswith("recall") and value < 1]
    return [
        Row(
            f"{what}, by moving as many bytes",
            f"{flat['reads']:.2f} ({flat['warm_s'] * 1e3:.2f} ms; for {flat['read_s'] * 1e3:.2f})",
            f"<= {MOST_READS:.0f}",
            flat["reads"] <= MOST_READS,
        ),
        Row(f"{what}, recall at both ends", "1" if not missed else str(missed), "1", not missed),
        Row(
            f"{what}, opened and asked by a new process",
            f"{flat['cold_s']:.2f} s",
            f"<= {MOST_COLD_S:.0f} s",
            flat["cold_s"] <= MOST_COLD_S,
        ),
    ]


def values(options: argparse.Namespace) -> list[Row]:
    """A score for every row."""
    found = benchmark("bench_values", [*sizes(options), "--rounds", "3"], options.limit_s)
    what = f"values of {options.rows:,} x {options.dim:,}"
    if isinstance(found, str):
        return [Row(what, found, reached=False)]
    rows = [Row(f"{what}, from files on the CPU", f"{found['values_s']:.3f} s")]
    if "gpu_values_s" in found:
        measured = f"{found['gpu_values_s']:.4f} s, {found['gpu_open_s']:.1f} s to copy them there"
        rows.append(Row(f"{what}, in the memory of the GPUs", measured))
    return rows


def sizes(options: argparse.Namespace) -> list[str]:
    """The synthetic index that benchmarks share."""
    rows, dim = str(options.rows), str(options.dim)
    return ["--rows", rows, "--dim", dim, "--work", str(options.work)]


def benchmark(
    name: str, given: list[str], limit_s: float, more: Mapping[str, str] | None = None
) -> dict[str, Any] | str:
    """What a benchmark measured, with `more` in its environment, or why it did not."""
    done = run([str(HERE / f"{name}.py"), *given, "--json"], limit_s, more)
    if done.returncode:
        said = done.stderr.strip().splitlines()
        return said[-1] if said else f"exit status {done.returncode}"
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def run(
    command: list[str], limit_s: float, more: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run Python with a limit; what takes longer is stopped, with all that it started."""
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=pipe,
        stderr=pipe,
        text=True,
        env=os.environ | dict(more or {}),
        start_new_session=True,
    )
    try:
        out, said = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, said = process.communicate()
        said += f"\nstopped after {limit_s:.0f} s"
    return subprocess.CompletedProcess(command, process.returncode, out, said)


def shown(rows: list[Row]) -> list[Row]:
    """Print rows as they come, so that a run that is cut off has said what it found."""
    marks = {True: "reached", False: "MISSED", None: ""}
    for row in rows:
        line = f"{row.what:72}{row.measured:44}{row.target:10}{marks[row.reached]}"
        print(line.rstrip(), flush=True)
    return rows


if __name__ == "__main__":
    main()
