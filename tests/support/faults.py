"""Fixtures that kill and fail real ingestions: a preloaded C library, and a driver that forks."""

import json
import os
import queue
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pytest

HERE = Path(__file__).parent
SIGKILLED = -9
PARALLEL = 2

T = TypeVar("T")
R = TypeVar("R")
Step = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Outcome:
    """How a process ended."""

    code: int
    """Its exit code, or minus the signal that ended it."""
    results: list[Any]
    """What each step that ended well returned."""
    error: dict[str, Any] | None
    """The step, kinds and message of the exception that ended the others."""
    seconds: float
    op: str
    """The call that the fault hit, empty where it came to none."""
    path: str

    @property
    def killed(self) -> bool:
        return self.code == SIGKILLED

    @property
    def result(self) -> Any:
        """The result of the only step, which must have ended well."""
        assert self.code == 0, self
        assert self.error is None, self
        (only,) = self.results
        return only


class _Driver:
    """A process that loaded the model, and runs requests itself or in a child."""

    def __init__(self, shim: Path, model: Path, errors: Path) -> None:
        self._errors = errors
        environment = os.environ | {
            "LD_PRELOAD": str(shim),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        with errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, str(HERE / "fault_driver.py"), str(model)],
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout

    def answer(self, request: dict[str, Any] | None = None) -> str:
        """The next line, which answers the request; the first one says that it is ready."""
        with suppress(BrokenPipeError):  # its last words are below
            if request is not None:
                self._requests.write(json.dumps(request) + "\n")
                self._requests.flush()
        line = self._answers.readline()
        if not line:
            raise RuntimeError(f"the fault driver ended: {self._errors.read_text()}")
        return line

    def close(self) -> None:
        with suppress(BrokenPipeError):
            self._requests.close()
        self._process.wait(timeout=30)
        self._answers.close()


class Drivers:
    """Runs operations on indexes that are killed or fail at a chosen point, several at a time."""

    def __init__(self, shim: Path, model: Path, directory: Path) -> None:
        self._all = [_Driver(shim, model, directory / f"stderr-{i}") for i in range(PARALLEL)]
        self._free: queue.Queue[_Driver] = queue.Queue()
        for driver in self._all:
            self._free.put(driver)

    def wait(self) -> None:
        """Return when all of them have loaded the model."""
        for driver in self._all:
            assert driver.answer() == "ready\n"

    def run(
        self,
        path: Path,
        *steps: Step,
        fault: tuple[int, str] | None = None,
        kill_after: float | None = None,
        log: Path | None = None,
    ) -> Outcome:
        """Run steps on the index at `path`; each opens and closes it.

        With `fault`, the number of a call below `path` and what happens there (see fault_shim.c),
        `kill_after`, in seconds, or `log`, a file for all such calls, in a process of their own.
        """
        request = {
            "root": str(path),
            "steps": [(name, {"path": str(path)} | arguments) for name, arguments in steps],
            "fault": fault,
            "kill_after": kill_after,
            "log": None if log is None else str(log),
        }
        driver = self._free.get()
        try:
            return Outcome(**json.loads(driver.answer(request)))
        finally:
            self._free.put(driver)

    def each(self, trial: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Run a trial for each item, as many at a time as there are drivers."""
        with ThreadPoolExecutor(PARALLEL) as pool:
            return list(pool.map(trial, items))

    def close(self) -> None:
        for driver in self._all:
            driver.close()


def build_shim(directory: Path) -> Path:
    """Compile the library; a test run without a C compiler fails with what to install."""
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.fail(
            "the fault tests compile tests/support/fault_shim.c; install a C compiler (gcc)"
        )
    library = directory / "fault_shim.so"
    command = [compiler, "-O2", "-Wall", "-Wextra", "-fPIC", "-shared", "-o", str(library)]
    done = subprocess.run(
        [*command, str(HERE / "fault_shim.c")], capture_output=True, text=True, check=False
    )
    if done.returncode or done.stderr:
        pytest.fail(f"{compiler} does not compile tests/support/fault_shim.c: {done.stderr}")
    return library


@pytest.fixture(scope="session")
def drivers(tmp_path_factory, model_dir):
    directory = tmp_path_factory.mktemp("drivers")
    started = Drivers(build_shim(directory), model_dir, directory)
    try:
        started.wait()
        yield started
    finally:
        started.close()
