"""Other gradient-attribution libraries beside `add`, for scripts/bench/bench_ingest.py.

Each has a process of its own under the interpreter of their environment (scripts/bench/peers.py),
once a round, on the samples as the index tokenised them.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_libraries import PEERS

from forvalue_index.model.encoded import Encoded

TIMEOUT_S = 3600
SCRIPT = Path(__file__).with_name("peers.py")
COLUMNS = {
    "peer": 12,
    "version": 8,
    "seconds": 9,
    "to_forward": 11,
    "to_ours": 8,
    "bytes_per_sample": 17,
    "bytes_to_ours": 14,
}


class PeerRuns:
    """Runs peers round by round; with no interpreter, none."""

    def __init__(self, python: str | None, model: str, folder: Path, only: str | None) -> None:
        self._python = python
        self._model = model
        self._tokens = folder / "tokens.npz"
        self._out = folder / "peer"
        names = only.split(",") if only else PEERS
        self._rounds: dict[str, list[dict[str, Any]]] = {name: [] for name in names if python}

    def write_samples(self, encoded: Sequence[Encoded]) -> None:
        """Keep the samples where peers read them: flat arrays, and where each sample starts."""
        if self._python:
            np.savez(
                self._tokens,
                token_ids=np.concatenate([e.token_ids for e in encoded]),
                label_mask=np.concatenate([e.label_mask for e in encoded]),
                offsets=np.cumsum([0] + [len(e) for e in encoded]),
            )

    def run_round(self) -> None:
        """Run each peer once, in another order every round; one that failed is not tried again."""
        names = [name for name, runs in self._rounds.items() if not runs or _worked(runs)]
        shift = max((len(runs) for runs in self._rounds.values()), default=0)
        for name in names[shift % max(1, len(names)) :] + names[: shift % max(1, len(names))]:
            print(f"peer {name} ...", file=sys.stderr, flush=True)
            self._rounds[name].append(self._run(name))

    def results(
        self, forward_s: Sequence[float], ingest_s: Sequence[float], our_bytes: int
    ) -> list[dict[str, Any]]:
        """Of each peer: medians of seconds and of ratios within rounds; or why it failed."""
        found = []
        for name, runs in self._rounds.items():
            if not _worked(runs):
                found.append({"peer": name, "failed": runs[-1]["failed"]})
                continue
            seconds = [run["seconds"] for run in runs]
            size = runs[-1]["bytes_per_sample"]
            found.append(
                runs[-1]
                | {
                    "seconds": round(statistics.median(seconds), 3),
                    "rounds_s": seconds,
                    "to_forward": _median_ratio(seconds, forward_s),
                    "to_ours": _median_ratio(seconds, ingest_s),
                    "bytes_to_ours": round(size / our_bytes, 3),
                }
            )
        return found

    def _run(self, name: str) -> dict[str, Any]:
        shutil.rmtree(self._out, ignore_errors=True)
        self._out.mkdir()
        threads = str(torch.get_num_threads())
        command = [str(self._python), str(SCRIPT), name, "--model", self._model]
        command += ["--tokens", str(self._tokens), "--out", str(self._out), "--threads", threads]
        # What this process imports from is not theirs.
        theirs = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        theirs |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": threads}
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                env=theirs,
                check=False,
                timeout=TIMEOUT_S,
            )
            result: dict[str, Any] = json.loads(done.stdout)
        except OSError as error:
            return {"failed": f"{self._python}: {error.strerror}"}
        except subprocess.TimeoutExpired:
            return {"failed": f"not done after {TIMEOUT_S} s"}
        except json.JSONDecodeError:
            last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
            return {"failed": f"exit {done.returncode}: {last[0]}"}
        finally:
            shutil.rmtree(self._out, ignore_errors=True)
        return result


def peers_table(found: Sequence[dict[str, Any]]) -> str:
    """A line a peer, and under them what each was asked to do."""
    if not found:
        return ""
    lines = ["", "".join(f"{name:>{width}}" for name, width in COLUMNS.items())]
    for peer in found:
        if "failed" in peer:
            lines.append(f"{peer['peer']:>12}  failed: {peer['failed']}")
        else:
            lines.append("".join(f"{peer[name]:>{width}}" for name, width in COLUMNS.items()))
    lines.append("")
    for peer in found:
        if "failed" not in peer:
            said = "; ".join(part for part in (peer["settings"], peer["note"]) if part)
            lines.append(f"{peer['peer']}: {said}")
    return "\n".join(lines) + "\n"


def _worked(runs: Sequence[dict[str, Any]]) -> bool:
    return not any("failed" in run for run in runs)


def _median_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    pairs = zip(seconds, reference, strict=True)
    return round(statistics.median(mine / theirs for mine, theirs in pairs), 3)
