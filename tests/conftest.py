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
