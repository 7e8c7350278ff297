import importlib
import os
import signal
import time

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: several processes share the machine

# What a module of ours imports, jaxtyping's hook compiles anew in each process, which takes 11 s
# for these: so they come before.
for name in (
    *("transformers.modeling_utils", "transformers.processing_utils", "pandas", "scipy.stats"),
    *("sklearn.metrics", "sqlalchemy.dialects.sqlite", "beartype.door"),
):
    importlib.import_module(name)


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="run everything: whole grids of parameters, and the large counts of what is repeated",
    )
    parser.addoption(
        "--fault-points",
        type=int,
        help="at how many random points an ingestion is killed (default 12, thorough 50)",
    )
    parser.addoption(
        "--concurrency-seconds",
        type=float,
        help="how long processes write to and read from one index (default 10, thorough 60)",
    )


STARTED = pytest.StashKey[float]()


def pytest_configure(config):
    config.stash[STARTED] = time.perf_counter()


def pytest_collection_modifyitems(config, items):
    """The longest files first, so that two processes end together; the rest as it was collected.

    What is marked `thorough` is no part of an ordinary run.
    """
    items.sort(key=lambda i: (i.path.name != "test_real_model.py", "system" not in i.path.parts))
    if config.getoption("--thorough"):
        return
    left = [item for item in items if item.get_closest_marker("thorough")]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]


def pytest_terminal_summary(terminalreporter, config):
    if config.getoption("--thorough"):
        minutes = (time.perf_counter() - config.stash[STARTED]) / 60
        terminalreporter.write_line(f"everything, with --thorough, took {minutes:.1f} minutes")


@pytest.fixture(scope="session")
def thorough(request):
    """Whether everything is to be tried, however long it takes."""
    return request.config.getoption("--thorough")


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal, also where a shell that was told to ignore it runs the tests.

    `nohup scripts/test &` is one; a process that it starts ignores interrupts, and so do children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
