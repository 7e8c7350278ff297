#!/usr/bin/env python3
"""The catalog alone, in SQLite, with many samples: no model and no rows, only what SQL holds.

Samples are written in segments of 8,192 as `add` does it. Most have an id of their own, in an
order that looks random; every fifth one is known by its content. The rates are samples by seconds
within the catalog, and `cpu` counts the seconds of this process alone, whatever else runs on the
machine. Times of reading are medians, each of them through a connection of its own as a command has
it; `list` reads 50 samples and counts all that match.
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import statistics
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.records import SegmentRecord

SEGMENT = 8_192
PAGE = 50
SOURCES = 10
TEXT = (
    "the of model gradient river answer question house seven because light between value number "
    "sample language stone carefully never and to a is that word reverse sentence training loss"
)
UID = uuid.UUID(int=0).hex


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=5, help="of each reading")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "catalog.sqlite"
        result = {"samples": options.samples} | measure(path, options.samples, options.rounds)
    result["peak_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        width = max(map(len, result))
        for name, value in result.items():
            print(f"{name:>{width}}  {value:,}")


def measure(path: Path, n_samples: int, rounds: int) -> dict[str, float]:
    """Fill a catalog, read it, remove a tenth of it."""
    result = fill(path, n_samples)
    result["bytes_per_sample"] = round(size(path) / n_samples)
    keys = next(segments(n_samples, start=n_samples // 2 // SEGMENT * SEGMENT))[:1024]
    readings: dict[str, Callable[[Snapshot], object]] = {
        "info_s": Snapshot.summary,
        "known_1024_s": lambda snapshot: snapshot.known(keys),
        "list_source_s": listing("source = 'data/part-3.jsonl'"),
        "list_loss_half_s": listing("loss > 2"),
        "list_loss_few_s": listing("loss > 3.999"),
        "list_source_and_loss_s": listing("source = 'data/part-3.jsonl' AND loss > 3"),
        "list_label_error_mass_s": listing("label_error_mass > 0.5"),
        "list_metadata_s": listing("metadata.topic = 'law' AND metadata.year > 2020"),
    }
    for name, read in readings.items():
        result[name] = round(statistics.median(timed(path, read) for _ in range(rounds)), 4)
    with Catalog.open(path, UID) as catalog:
        started = time.perf_counter()
        catalog.remove(range(0, n_samples, 10))
        result["remove_tenth_s"] = round(time.perf_counter() - started, 2)
    result["info_after_removal_s"] = round(timed(path, Snapshot.summary), 4)
    return result


def fill(path: Path, n_samples: int) -> dict[str, float]:
    """Write all samples; the rates count the time within the catalog alone."""
    walls, cpus = [], []
    with Catalog.create(path, UID, "fingerprint") as catalog:
        for new in segments(n_samples):
            measured = [statistics_of(sample.position) for sample in new]
            record = SegmentRecord(uuid.uuid4().hex, len(new), len(new) * 8192, "0" * 64)
            started, cpu_started = time.perf_counter(), time.process_time()
            catalog.commit_segment(record, new, measured)
            walls.append((time.perf_counter() - started) / len(new))
            cpus.append((time.process_time() - cpu_started) / len(new))
    last = -max(1, len(walls) // 10)
    return {
        "inserted_per_s": round(1 / statistics.mean(walls)),
        "inserted_per_s_last_tenth": round(1 / statistics.mean(walls[last:])),
        "inserted_per_cpu_s": round(1 / statistics.mean(cpus)),
        "inserted_per_cpu_s_last_tenth": round(1 / statistics.mean(cpus[last:])),
    }


def segments(n_samples: int, *, start: int = 0) -> Iterator[list[Sample]]:
    """The samples, a segment at a time."""
    for first in range(start, n_samples, SEGMENT):
        made = [sample(number) for number in range(first, min(first + SEGMENT, n_samples))]
        for one in made:
            one.content_hash  # noqa: B018  # `add` has it by then, and keeps it
        yield made


def sample(number: int) -> Sample:
    """A question and an answer of 200 to 400 characters together."""
    chosen = random.Random(number)
    words = " ".join(chosen.choices(TEXT.split(), k=chosen.randrange(32, 62)))
    cut = len(words) // 3
    messages = (
        Message("user", f"{number}: {words[:cut]}?"),
        Message("assistant", words[cut:].strip() + "."),
    )
    own_id = None if number % 5 == 0 else f"{chosen.getrandbits(64):016x}-{number}"
    source = f"data/part-{number // SEGMENT % SOURCES}.jsonl"
    topic = chosen.choice(("law", "art", "war", "sport"))
    metadata = {"topic": topic, "year": 1990 + number % 35, "quality": chosen.random()}
    return Sample(messages, source, number + 1, own_id, metadata)


def statistics_of(number: int) -> SampleStatistics:
    """What a model would say; losses are spread over 0 to 4."""
    chosen = random.Random(-number)
    loss = chosen.random() * 4
    return SampleStatistics(120, 60, number % 50 == 0, loss, chosen.random(), 30 * loss)


def listing(where: str) -> Callable[[Snapshot], object]:
    """What `forvalue list` does."""
    return lambda snapshot: (snapshot.list_samples(where, limit=PAGE), snapshot.count(where))


def timed(path: Path, read: Callable[[Snapshot], object]) -> float:
    """Wall-clock seconds of one reading, through a new connection."""
    with Catalog.open(path, UID) as catalog, catalog.snapshot() as snapshot:
        started = time.perf_counter()
        read(snapshot)
        return time.perf_counter() - started


def size(path: Path) -> int:
    """Bytes of a database and its log."""
    return sum(file.stat().st_size for file in path.parent.glob(f"{path.name}*"))


if __name__ == "__main__":
    main()
