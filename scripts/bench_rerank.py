#!/usr/bin/env python3
"""Exact re-scoring of candidates against a forward pass over them, same model and batches.

The reference runs the trunk on all tokens, and head and log-softmax on label tokens. Ours is what
`query --rerank` does with its candidates: the same pass, prediction errors in a geometry, and one
more head-sized product a label token. Interleaved; `ratio` is the median over rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.demo_data import math_problems, sentence_transformations
from forvalue_index.gradients.exact_values import exact_values, validation_gradient
from forvalue_index.model.label_tokens import CHUNK_TOKENS, ModelReader, Prepared
from forvalue_index.sources.source import open_sources


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="directory, GGUF file or hub id")
    parser.add_argument("--candidates", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--geometry", default="fisher")
    parser.add_argument("--labels", choices=("response", "all"), default="response")
    parser.add_argument("--normalize", action="store_true")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        settings = {"geometry": options.geometry, "labels": options.labels}
        with ValuationIndex.create(Path(folder) / "index", options.model, **settings) as index:
            result = measure(index, options)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        for name, value in result.items():
            print(f"{name:>12}  {value}")


def measure(index: ValuationIndex, options: argparse.Namespace) -> dict[str, object]:
    """Seconds of both, after a round to warm up."""
    reader = index.reader
    training, held_out = rows()
    index.calibrate(training[: options.candidates])
    candidates = prepare(reader, training[: options.candidates])
    validation = prepare(reader, held_out[:20])
    target = validation_gradient(
        reader, index.geometry(options.geometry), validation, normalize=options.normalize
    )
    tasks = (
        lambda: bare_forward(reader, candidates),
        lambda: exact_values(reader, target, candidates),
    )
    rounds = []
    for number in range(-1, options.rounds):
        order = (0, 1) if number % 2 else (1, 0)
        seconds = {i: timed(tasks[i]) for i in order}
        rounds += [] if number < 0 else [(seconds[0], seconds[1])]
    ratios = [ours / bare for bare, ours in rounds]
    return {
        "forward_s": round(statistics.median(bare for bare, _ in rounds), 3),
        "rerank_s": round(statistics.median(ours for _, ours in rounds), 3),
        "ratio": round(statistics.median(ratios), 4),
        "ratios": [round(ratio, 4) for ratio in ratios],
        "candidates": len(candidates),
        "tokens": sum(len(p.encoded) for p in candidates),
        "label_tokens": sum(p.encoded.n_label_tokens for p in candidates),
        "geometry": options.geometry,
        "normalize": options.normalize,
        "labels": options.labels,
        "threads": torch.get_num_threads(),
    }


def rows() -> tuple[list[dict], list[dict]]:
    """Sentence transformations and arithmetic with reasons, in turn: training and validation."""
    pairs = zip(sentence_transformations(seed=0), math_problems(seed=0, reasons=True), strict=True)
    training, validation = (
        [row for pair in zip(sentences, problems, strict=True) for row in pair]
        for sentences, problems in pairs
    )
    return training, validation


def prepare(reader: ModelReader, data: list[dict]) -> list[Prepared]:
    """Rows, tokenised as the index does it."""
    return [reader.prepare(row) for source in open_sources(data) for row in source.samples()]


@torch.inference_mode()
def bare_forward(reader: ModelReader, prepared: list[Prepared]) -> None:
    """The trunk on all tokens, head and log-softmax on label tokens, in the same batches."""
    chunk = CHUNK_TOKENS[reader.head.weight.device.type]
    for batch in reader.batches(prepared):
        for hidden in reader.trunk.hidden_states(batch).split(chunk):
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
