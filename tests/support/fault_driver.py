"""Runs operations on indexes in processes that can be killed, for `faults.py`.

Imports and the model are loaded once; what is killed or fails then costs a fork. A request is a
line of JSON on standard input and its outcome a line on standard output:

{"root": directory, "steps": [[operation, {argument: value}], ...],
 "fault": [n, mode] or null, "kill_after": seconds or null, "log": file or null}
"""

import contextlib
import ctypes
import gc
import hashlib
import importlib
import io
import json
import os
import select
import signal
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import torch

from forvalue_index import ValuationIndex, cli
from forvalue_index.devices import default_device
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.ingest import planning, storing
from forvalue_index.model import label_tokens
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.store.create import wanted_settings

SHIM = ctypes.CDLL(None)
SHIM.fault_arm.argtypes = (ctypes.c_char_p, ctypes.c_long, ctypes.c_char_p, ctypes.c_int)
SHIM.fault_op.restype = SHIM.fault_path.restype = ctypes.c_char_p

# Windows of 16 samples, batches of two or three, and a commit after each batch.
TOKEN_BUDGET = 128
INGEST = ((planning, "WINDOW_ROWS", 0.125), (storing, "COMMIT_BYTES", 1))
# Rows of the first geometry depend on the calibration, with which an `add` begins.
SETTINGS = {"dim": 128, "row_dtype": "float32", "geometry": "fisher,raw"}
# Seconds after which a child that neither ends nor is killed hangs.
PATIENCE = 60
# Keys of the samples that went through the model.
EMBEDDED = []


def configure(model):
    """The one place where the product is changed."""
    for module, name, value in INGEST:
        assert hasattr(module, name), name
        setattr(module, name, value)
    label_tokens.TOKEN_BUDGET = dict.fromkeys(label_tokens.TOKEN_BUDGET, TOKEN_BUDGET)
    backbone = Backbone.load(wanted_settings(model, {}), device=default_device())
    Backbone.load = staticmethod(lambda *_, **__: backbone)
    embed_batch = Embedder.embed_batch

    def counting(self, batch, prepared):
        EMBEDDED.extend(prepared[i].sample.key for i in batch.indices)
        return embed_batch(self, batch, prepared)

    Embedder.embed_batch = counting


def create(path, model, catalog="sqlite"):
    ValuationIndex.create(path, model, catalog=catalog, **SETTINGS).close()


def add(path, data, close=True):
    EMBEDDED.clear()
    with contextlib.ExitStack() as stack:
        opened = ValuationIndex.open(path)
        if close:
            stack.callback(opened.close)
        report = opened.add(data)
    return asdict(report) | {"embedded": len(EMBEDDED)}


def remove(path, names):
    with ValuationIndex.open(path) as opened:
        return opened.remove(names)


def compact(path):
    with ValuationIndex.open(path) as opened:
        return asdict(opened.compact())


def repair(path):
    with ValuationIndex.open(path) as opened:
        return _findings(opened.check(repair=True))


def examine(path):
    """What a reader finds, and what a check complains of.

    By key: digests of its rows, and the sample with its statistics.
    """
    with ValuationIndex.open(path) as opened:
        with opened.storage.view() as view:
            rows = {}
            for geometry in opened.manifest.settings.geometries:
                for block in view.blocks(geometry):
                    for id_, row in zip(block.ids.tolist(), block.rows, strict=True):
                        digest = hashlib.blake2b(row.numpy().tobytes(), digest_size=16)
                        rows[id_] = f"{rows.get(id_, '')} {digest.hexdigest()}".strip()
            stored = view.catalog.samples(rows)
            live = view.catalog.live_ids().tolist()
            files = [segment.file.uid for segment in view.catalog.segments()]
        findings = _findings(opened.check())
    if sorted(rows) != live or stored.keys() != rows.keys():
        raise AssertionError(f"rows {sorted(rows)}, but samples {live}")
    found = {
        one.sample.key: f"{rows[id_]} {one.sample} {one.statistics}" for id_, one in stored.items()
    }
    return {"found": found, "files": files, "findings": findings}


def _findings(report):
    return [[f.kind, str(f.what), f.repaired] for f in report.findings]


def command(path, arguments):
    """The command line, as a user runs it: its exit code and what it says on standard error."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main([part.replace("INDEX", path) for part in arguments])
        except SystemExit as end:
            code = end.code
    return {"code": code, "said": said.getvalue()}


OPERATIONS = {f.__name__: f for f in (create, add, remove, compact, repair, examine, command)}


def perform(steps):
    """Run steps until one fails."""
    started = time.perf_counter()
    results, error = [], None
    for name, arguments in steps:
        try:
            results.append(OPERATIONS[name](**arguments))
        except BaseException as raised:
            error = {
                "step": name,
                "kinds": [kind.__name__ for kind in type(raised).__mro__],
                "message": str(raised),
            }
            break
    return {"results": results, "error": error, "seconds": time.perf_counter() - started}


def child(request, report):
    """Arm the shim, run the steps, report, and leave without clearing up; never returns."""
    n, mode = request["fault"] or (0, "count")
    log = -1
    if request["log"]:
        log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    if SHIM.fault_arm(os.fsencode(request["root"]), n, mode.encode(), log):
        raise ValueError(f"{request} cannot be armed")
    os.write(report, b"\n")
    outcome = perform(request["steps"])
    SHIM.fault_disarm()
    with os.fdopen(report, "wb") as pipe:
        pipe.write(json.dumps(outcome).encode())
    os._exit(0)


def fork(request):
    """Run the steps in a child, kill it after a delay if asked to, and say how it ended."""
    SHIM.fault_forget()
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(reading)
            child(request, writing)
        finally:
            os._exit(70)
    os.close(writing)
    received = b""
    with os.fdopen(reading, "rb", buffering=0) as pipe:
        pipe.read(1)
        deadline = time.perf_counter() + (request["kill_after"] or PATIENCE)
        while True:
            left = max(0.0, deadline - time.perf_counter())
            if not select.select([pipe], [], [], left)[0]:
                # It may have ended this very moment, so what it has said is read all the same.
                os.kill(pid, signal.SIGKILL)
            part = pipe.read(1 << 16)
            if not part:
                break
            received += part
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    outcome = json.loads(received) if code == 0 else {"results": [], "error": None, "seconds": 0}
    path = os.fsdecode(SHIM.fault_path())
    return outcome | {"code": code, "op": SHIM.fault_op().decode(), "path": path}


def run(request):
    """Where nothing is to happen to it, a request is run right here, which is faster."""
    if request["fault"] or request["kill_after"] or request["log"]:
        return fork(request)
    return perform(request["steps"]) | {"code": 0, "op": "", "path": ""}


def main(model):
    # Answers alone may go to the pipe, whatever a library prints.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    configure(model)
    with tempfile.TemporaryDirectory() as directory:
        # Once here, so that the children find everything imported and compiled.
        path = f"{directory}/index"
        create(path, model)
        data = Path(directory, "data.jsonl")
        data.write_text('{"prompt": "a", "response": "b"}\n', encoding="utf-8")
        command(path, ["add", "INDEX", str(data)])
        repair(path)
        examine(path)
    with contextlib.suppress(ImportError):
        importlib.import_module("psycopg")
    gc.collect()
    gc.freeze()
    answers.write("ready\n")
    answers.flush()
    for line in sys.stdin:
        answers.write(json.dumps(run(json.loads(line))) + "\n")
        answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
