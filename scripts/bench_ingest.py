#!/usr/bin/env python3
"""Ingestion against the bare forward pass, on the same model, data and batches.

The reference runs the trunk on all tokens of a batch, and the head and log-softmax on its label
tokens, and keeps nothing. Ours is `add` whole: reading, checking, tokenising, the forward pass,
prediction errors, sketch, segment files and SQL. The two are interleaved; `ratio` is the median
over rounds of ours divided by the reference of the same round. Ours reads what all samples of a
batch begin with once, such as the system prompt of a chat template; with `--template plain` these
samples begin with nothing in common. An index is calibrated once, on 128 samples at most, which is
measured apart.

With `--images` each sample has a picture, of the sizes of photographs made smaller, and the model
must be one that reads them (scripts/random_model.py makes one). The reference has them read and
resized already, as it has its texts tokenised.

`--peers PYTHON` also measures other libraries, in every round; scripts/peers.py says how to make
the environment of that interpreter and what is timed.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from peer_runs import PeerRuns, peers_table
from PIL import Image

from forvalue_index import ValuationIndex
from forvalue_index.devices import default_device
from forvalue_index.evaluation.demo_data import math_problems, sentence_transformations
from forvalue_index.model.encoded import Batch
from forvalue_index.model.label_tokens import CHUNK_TOKENS, ModelReader, Prepared
from forvalue_index.settings import ROW_DTYPES
from forvalue_index.sources.source import open_sources

SIZES = ((640, 480), (480, 640), (500, 375), (1024, 768), (320, 320))


def main() -> None:
    """Measure and print."""
    options = parse_options()
    with tempfile.TemporaryDirectory() as folder:
        data = write_data(Path(folder) / "data.jsonl", options.samples, images=options.images)
        peers = PeerRuns(options.peers, options.model, Path(folder), options.only_peers)
        forward_s, ingest_s, calibrate_s, sizes = measure(Path(folder), data, options, peers)
    ratios = [ours / bare for ours, bare in zip(ingest_s, forward_s, strict=True)]
    result = {
        "forward_s": round(statistics.median(forward_s), 3),
        "ingest_s": round(statistics.median(ingest_s), 3),
        "calibrate_s": round(statistics.median(calibrate_s), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "tokens_per_s": round(sizes["tokens"] / statistics.median(ingest_s), 1),
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "bytes_per_sample": round(sizes["row_bytes"] / options.samples),
        "samples": options.samples,
        "tokens": sizes["tokens"],
        "images": sizes["images"],
        "label_tokens": sizes["label_tokens"],
        "labels": options.labels,
        "dim": options.dim,
        "geometry": options.geometry,
        "template": options.template,
        "row_dtype": options.row_dtype,
        "chunk_tokens": CHUNK_TOKENS[default_device().type],
        "device": default_device().type,
        "threads": torch.get_num_threads(),
    }
    found = peers.results(forward_s, ingest_s, result["bytes_per_sample"])
    if options.json:
        print(json.dumps(result | ({"peers": found} if options.peers else {}), indent=2))
    else:
        for name, value in result.items():
            print(f"{name:>16}  {value}")
        print(peers_table(found), end="")


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory, GGUF file or hub id")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dim", type=int, default=4096)
    parser.add_argument("--geometry", default="raw")
    parser.add_argument("--labels", choices=("response", "all"), default="response")
    parser.add_argument("--template", choices=("auto", "plain"), default="auto")
    parser.add_argument("--row-dtype", choices=tuple(ROW_DTYPES), default="bfloat16")
    parser.add_argument("--images", action="store_true", help="a picture with each sample")
    parser.add_argument("--chunk-tokens", type=int, help="label tokens that the head takes at once")
    parser.add_argument("--peers", metavar="PYTHON", help="interpreter that has other libraries")
    parser.add_argument("--only-peers", metavar="NAME,...", help="of them, these alone")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if options.peers and torch.cuda.is_available():
        parser.error("peers run on the CPU; hide the GPU with CUDA_VISIBLE_DEVICES=")
    if options.chunk_tokens:
        CHUNK_TOKENS.update(dict.fromkeys(CHUNK_TOKENS, options.chunk_tokens))
    return options


def write_data(path: Path, n_samples: int, *, images: bool) -> Path:
    """Sentence transformations and arithmetic with reasons, in turn, as one JSONL file."""
    sentences, _ = sentence_transformations(seed=0)
    problems, _ = math_problems(seed=0, reasons=True)
    rows = [row for pair in zip(sentences, problems, strict=True) for row in pair]
    rows = rows[:n_samples]
    if images:
        rows = [row | {"image": write_picture(path.parent, i)} for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_picture(folder: Path, number: int) -> str:
    """A JPEG file with about as much detail as a photograph; returns its name."""
    random = np.random.default_rng(number)
    width, height = SIZES[number % len(SIZES)]
    coarse = random.integers(0, 256, (height // 16, width // 16, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.normal(0, 6, (height, width, 3))
    pixels = np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=90)
    return f"{number}.jpg"


def measure(
    folder: Path, data: Path, options: argparse.Namespace, peers: PeerRuns
) -> tuple[list[float], list[float], list[float], dict[str, int]]:
    """Seconds of each round, after one to warm up: the bare forward pass, `add`, calibrating.

    Peers have a process each, which warms up by itself.
    """
    forward_s, ingest_s, calibrate_s = [], [], []
    chosen = ("dim", "labels", "geometry", "template", "row_dtype")
    settings = {name: getattr(options, name) for name in chosen}
    sizes = {}
    for round_ in range(-1, options.rounds):
        with ValuationIndex.create(folder / f"{round_}", options.model, **settings) as index:
            prepared = prepare(index, data)
            batches = list(index.reader.batches(prepared))
            images = sum(len(batch.inputs) for batch in batches)  # read before anything is timed
            calibrated_s = timed(lambda: index.calibrate(data))
            tasks = [lambda: bare_forward(index, batches), lambda: index.add(data)]  # noqa: B023
            # Each goes first in every other round, so that neither finds the warmer caches.
            order = (0, 1) if round_ % 2 else (1, 0)
            seconds = {i: timed(tasks[i]) for i in order}
        if round_ < 0:
            sizes["images"] = images
            sizes["tokens"] = sum(len(p.encoded) for p in prepared)
            sizes["label_tokens"] = sum(p.encoded.n_label_tokens for p in prepared)
            segments = (folder / f"{round_}" / "segments").glob("*.safetensors")
            sizes["row_bytes"] = sum(segment.stat().st_size for segment in segments)
            peers.write_samples([p.encoded for p in prepared])
            continue
        peers.run_round()
        forward_s.append(seconds[0])
        ingest_s.append(seconds[1])
        calibrate_s.append(calibrated_s)
    return forward_s, ingest_s, calibrate_s, sizes


def prepare(index: ValuationIndex, data: Path) -> list[Prepared]:
    """The samples, tokenised as the index does it."""
    rows = [row for source in open_sources(data) for row in source.samples()]
    return [index.reader.prepare(row) for row in rows]


@torch.inference_mode()
def bare_forward(index: ValuationIndex, batches: list[Batch]) -> None:
    """The trunk on all tokens, head and log-softmax on label tokens, in the index's batches."""
    reader: ModelReader = index.reader
    chunk = CHUNK_TOKENS[reader.head.weight.device.type]
    for batch in batches:
        for hidden in reader.trunk.differentiable_states(batch).split(chunk):
            torch.log_softmax(reader.head.logits(hidden), dim=-1)


def timed(task) -> float:  # noqa: ANN001
    """Wall-clock seconds of a task."""
    started = time.perf_counter()
    task()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
