"""Adding a data set: read, leave out what is known, embed the rest, store it bit by bit.

Rows are read in windows, whose samples are sorted by length into batches. Whatever stops an `add`,
the same command goes on where it stopped, and rows are the same to the bit as if it had never
stopped (to rounding where memory ran out): windows depend on what is read alone, and the batches of
one are the same without the first ones.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from os import PathLike

from forvalue_index.exceptions import SourceError, UsageError
from forvalue_index.gradients.calibrating import CalibrationSample
from forvalue_index.ingest.embedders import Embedders
from forvalue_index.ingest.ingestion import Ingestion
from forvalue_index.ingest.planning import IngestPlan, Planner
from forvalue_index.ingest.rejects import OnBadRow, Rejects, ignore_bad_row, refuse_bad_row
from forvalue_index.ingest.seen_keys import SeenKeys
from forvalue_index.ingest.tally import AddReport, Tally
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.progress import OnProgress, Progress
from forvalue_index.sources.sample import Source
from forvalue_index.store.manifest import REJECTED
from forvalue_index.store.model import IndexModel
from forvalue_index.store.store import Storage


def add(
    model: IndexModel, sources: Sequence[Source], *, on_bad: str = "fail", relabel: bool = False
) -> AddReport:
    """Store the samples of `sources` that the index does not hold yet. The writer's lock is held.

    A sample is known where its key is stored with the same content: it gets new metadata where
    this row has other, and is restored where it was removed. Of several rows of one key the first
    is embedded, and each later one does what it would do in an `add` of its own. With `relabel`,
    a sample that is read or labelled otherwise now is embedded anew, and its old row removed.

    With `on_bad="fail"`, sources that can be read twice are checked whole before anything is
    embedded; with "skip", bad rows go to a file in the index.

    The first samples of an index calibrate it: a random choice of them, or of the first window
    where sources cannot be read twice. Where there is more than a batch to embed, other GPUs read
    batches, too.

    Raises:
        BadSampleError: a row is not usable and `on_bad` is "fail".
        SourceError: a source cannot be read, or there is no row at all.
        SettingsMismatchError: the model is not the one that the index was built with.
    """
    started = time.perf_counter()
    model.refuse_swapped_calibration()
    storage, reader, on_progress = model.storage, model.reader, model.on_progress
    load_s = time.perf_counter() - started
    storage.catalog.refer_to(sources)
    choice, total = CalibrationSample(storage.manifest.settings.seed), None
    if all(source.rereadable for source in sources):
        on_bad_row = refuse_bad_row if on_bad == "fail" else ignore_bad_row
        with _planner(storage, reader, relabel=relabel) as planner:
            total = check(
                planner.plans(sources), choice, on_bad_row=on_bad_row, on_progress=on_progress
            )
    embedders = Embedders(model, choice)
    ingestion = Ingestion(storage, embedders, total=total, on_progress=on_progress)
    with (
        closing(Rejects(storage.path / REJECTED)) as rejects,
        _planner(storage, reader, relabel=relabel) as planner,
    ):
        on_bad_row = refuse_bad_row if on_bad == "fail" else rejects.write
        ingestion.run(sources, planner, on_bad_row=on_bad_row)
    if ingestion.tally.read == 0:
        names = ", ".join(source.name for source in sources)
        raise SourceError(f"{names}: there is no row in it, so nothing was added; check the file")
    seconds = {
        "load": load_s,
        "forward": ingestion.tally.forward_s,
        "total": time.perf_counter() - started,
    }
    return _report(ingestion.tally, rejects, seconds)


@contextmanager
def _planner(storage: Storage, reader: ModelReader, *, relabel: bool) -> Iterator[Planner]:
    with closing(SeenKeys()) as seen:
        yield Planner(storage.catalog, storage.media, reader, seen, relabel=relabel)


def check(
    plans: Iterable[IngestPlan],
    choice: CalibrationSample,
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


def refuse_media_root(storage: Storage, media_root: str | PathLike[str] | None) -> None:
    """Raise UsageError for data files that an index refers to: they are read again as they lie."""
    if media_root is not None and storage.manifest.settings.payload == "reference":
        raise UsageError(
            f"--media-root {media_root}: {storage.path} refers to its data (--payload reference) "
            "and reads images beside it alone; move them there, or build an index with "
            "--payload catalog"
        )


def _report(tally: Tally, rejects: Rejects, seconds: Mapping[str, float]) -> AddReport:
    counts = vars(tally) | vars(tally.notices) | {"examples": tuple(tally.examples)}
    del counts["forward_s"], counts["notices"]
    return AddReport(
        **counts,
        rejected=rejects.count,
        reasons=rejects.reasons.counts,
        rejected_file=rejects.path,
        seconds=seconds,
    )
