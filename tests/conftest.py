import signal

import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--fault-points",
        type=int,
        default=50,
        help="at how many random points an ingestion is killed (default 50)",
    )
    parser.addoption(
        "--concurrency-seconds",
        type=float,
        default=60,
        help="how long processes write to and read from one index at once (default 60)",
    )


@pytest.fixture
def interruptible():
    """Ctrl-C as in a terminal, also where a shell that was told to ignore it runs the tests.

    `nohup scripts/test &` is one; a process that it starts ignores interrupts, and so do children.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
