#!/usr/bin/env python3
"""What another gradient-attribution library keeps of samples: the time it takes and the bytes.

Runs in an environment of its own, with none of this project in it. `bench_ingest.py --peers PYTHON`
starts it once a peer and round. To make that environment (on Linux, torch from PyPI is the CUDA
build, which runs on CPUs too; from a CPU wheel index it is smaller):

    python3 -m venv peers
    peers/bin/pip install torch==2.13.0 transformers==5.23.0 bergson==2.5.1 dattri==0.3.0 \
        kronfluence==1.0.1 captum==0.9.0
    peers/bin/pip install --no-deps --ignore-requires-python logix-ai==0.1.1
    peers/bin/pip uninstall -y torchvision torchaudio    # not needed, and may not fit that torch

Model, samples and labels are given, in float32. Imports, loading the model, what a library prepares
once (its projections) and a pass to warm up are not timed. Samples are sorted by length.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import itertools
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

# dattri compiles its projections; with tens of samples of many lengths it is faster without.
os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")

import numpy as np
import torch
from peer_libraries import BATCH_SAMPLES, IGNORED, PEERS, Sample, collate, label_loss


def main() -> None:
    """Measure one peer and print a JSON document."""
    options = parse_options()
    # Libraries print to stdout, also from C.
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        result = measure(options)
    except ModuleNotFoundError as error:
        result = {"failed": f"not installed ({error})"}
    except Exception as error:  # a library may raise anything, and the next one is to be measured
        reason = str(error).strip().splitlines()
        result = {"failed": f"{type(error).__name__}: {reason[0] if reason else 'no reason given'}"}
    print(json.dumps({"peer": options.peer} | result), file=answer, flush=True)
    # Some leave threads behind that never end.
    os._exit(0)


def parse_options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("peer", choices=list(PEERS), metavar="PEER", help=", ".join(PEERS))
    parser.add_argument("--model", required=True, help="directory with a Llama-like model")
    parser.add_argument("--tokens", type=Path, required=True, help=".npz of the samples")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder")
    parser.add_argument("--threads", type=int, required=True)
    return parser.parse_args()


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Seconds to compute and store what the peer keeps, and its size."""
    distribution, prepare = PEERS[options.peer]
    version = importlib.metadata.version(distribution)
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    samples = read_samples(options.tokens)
    label_loss(model, collate(samples[:BATCH_SAMPLES])).backward()
    model.zero_grad(set_to_none=True)
    peer = prepare(model, samples, options.out)
    started = time.perf_counter()
    peer.store()
    seconds = time.perf_counter() - started
    kept = sum(path.stat().st_size for path in options.out.glob(peer.files))
    if not kept:
        raise RuntimeError(f"it left nothing in {peer.files}")
    return {
        "version": version,
        "seconds": round(seconds, 3),
        "bytes_per_sample": round(kept / len(samples)),
        "samples": len(samples),
        "tokens": sum(len(s.input_ids) for s in samples),
        "label_tokens": sum(label != IGNORED for s in samples for label in s.labels),
        "settings": peer.settings,
        "note": peer.note,
        "peak_rss_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def read_samples(path: Path) -> list[Sample]:
    """The samples, longest first."""
    with np.load(path) as file:
        token_ids, label_mask, offsets = file["token_ids"], file["label_mask"], file["offsets"]
    labels = np.where(label_mask, token_ids, IGNORED)
    parts = [slice(start, end) for start, end in itertools.pairwise(offsets)]
    samples = [Sample(token_ids[part].tolist(), labels[part].tolist()) for part in parts]
    return sorted(samples, key=lambda s: len(s.input_ids), reverse=True)


if __name__ == "__main__":
    main()
