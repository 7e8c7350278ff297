"""Adding a data set: read, leave out what is known, embed the rest, store it bit by bit.

Rows are read in windows, whose samples are sorted by length into batches. Whatever stops an `add`,
the same command goes on where it stopped, and rows are the same to the bit as if it had never
stopped (to rounding where memory ran out): windows depend on what is read alone, and the batches of
one are the same without the first ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict

from forvalue_index.exceptions import SourceError
from forvalue_index.gradients.calibrating import Choice
from forvalue_index.ingest.embedders import Embedders
from forvalue_index.ingest.ingestion import Ingestion
from forvalue_index.ingest.planning import IngestPlan, Planner
from forvalue_index.ingest.rejects import OnBadRow, Rejects, ignore_bad_row, refuse_bad_row
from forvalue_index.ingest.seen_keys import SeenKeys
from forvalue_index.ingest.tally import AddReport, Tally
from forvalue_index.model.label_tokens import LabelReader
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.sources.sample import Source
from forvalue_index.store.manifest import REJECTED
from forvalue_index.store.store import Storage


def add(
    storage: Storage,
    reader: LabelReader,
    *,
    sources: Sequence[Source],
    others: Callable[[], Sequence[LabelReader]] = tuple,
    on_bad: str = "fail",
    on_progress: OnProgress = ignore_progress,
) -> AddReport:
    """Store the samples of `sources` that the index does not hold yet. The writer's lock is held.

    A sample is known where its key is stored with the same content: it gets new metadata where
    this row has other, and is restored where it was removed. The first of several rows of one key
    counts. With `on_bad="fail"`, sources that can be read twice are checked whole before anything
    is embedded; with "skip", bad rows go to a file in the index.

    The first samples of an index calibrate it: a random choice of them, or of the first window
    where sources cannot be read twice. Where there is more than a batch to embed, `others` read
    batches, too: readers alike, on other devices.

    Raises:
        BadSampleError: a row is not usable and `on_bad` is "fail".
        SourceError: a source cannot be read, or there is no row at all.
    """
    started = time.perf_counter()
    storage.catalog.refer_to(sources)
    choice, total = Choice(storage.manifest.settings.seed), None
    if all(source.rereadable for source in sources):
        on_bad_row = refuse_bad_row if on_bad == "fail" else ignore_bad_row
        with _plans(storage, reader, sources) as plans:
            total = check(plans, choice, on_bad_row=on_bad_row, on_progress=on_progress)
    embedders = Embedders(storage, reader, others, choice=choice, on_progress=on_progress)
    ingestion = Ingestion(storage, embedders, total=total, on_progress=on_progress)
    with (
        closing(Rejects(storage.path / REJECTED)) as rejects,
        _plans(storage, reader, sources) as plans,
    ):
        on_bad_row = refuse_bad_row if on_bad == "fail" else rejects.write
        ingestion.run(sources, plans, on_bad_row=on_bad_row)
    if ingestion.tally.read == 0:
        names = ", ".join(source.name for source in sources)
        raise SourceError(f"{names}: there is no row in it, so nothing was added; check the file")
    return _report(ingestion.tally, rejects, total_s=time.perf_counter() - started)


@contextmanager
def _plans(
    storage: Storage, reader: LabelReader, sources: Sequence[Source]
) -> Iterator[Iterator[IngestPlan]]:
    """The plans for all sources, which are read as the plans are asked for."""
    with closing(SeenKeys()) as seen:
        yield Planner(storage.catalog, storage.media, reader, seen).plans(sources)


def check(
    plans: Iterable[IngestPlan],
    choice: Choice,
    *,
    on_bad_row: OnBadRow,
    on_progress: OnProgress,
) -> int:
    """Read everything once without a change; returns how many samples are new.

    `choice` is offered each of them, to calibrate on.
    """
    read = new = 0
    for plan in plans:
        for bad in plan.rejected:
            on_bad_row(bad)
        for prepared in plan.new.values():
            choice.offer(prepared)
        read, new = read + plan.n_rows, new + len(plan.new)
        on_progress(Progress("checking", read))
    on_progress(Progress("checking", read, read))
    return new


def _report(tally: Tally, rejects: Rejects, *, total_s: float) -> AddReport:
    counts = asdict(tally)
    seconds = {"forward": counts.pop("forward_s"), "total": total_s}
    return AddReport(**counts, rejected=rejects.count, seconds=seconds, rejected_file=rejects.path)
