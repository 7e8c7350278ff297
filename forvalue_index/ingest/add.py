"""Adding a data set: read, leave out what is known, embed the rest, store it bit by bit.

Rows are read in windows, whose samples are sorted by length into batches. What is finished is
stored after whole batches, before the next one would end later than COMMIT_S after the last time
or where COMMIT_BYTES are full. Whatever stops an `add`, the same command goes on where it stopped,
and rows are the same to the bit as if it had never stopped (to rounding where memory ran out):
windows depend on what is read alone, and the batches of one are the same without the first ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from typing import NamedTuple

from forvalue_index.exceptions import BadSampleError, SourceError
from forvalue_index.gradients.calibrating import CalibrationSample, calibrate
from forvalue_index.gradients.embedder import Embedder, undefined_numbers
from forvalue_index.ingest.parallel import embedded_batches
from forvalue_index.ingest.planning import Planner, WindowPlan
from forvalue_index.ingest.rejects import Rejects
from forvalue_index.ingest.seen_keys import Repeats
from forvalue_index.ingest.tally import AddReport, Tally
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.sources.sample import BadRow, Sample, Source, bad_row
from forvalue_index.store.durable import interrupts_held
from forvalue_index.store.manifest import REJECTED
from forvalue_index.store.rows import StoredRows, joined
from forvalue_index.store.store import Storage
from forvalue_index.threads import prefetched

Reject = Callable[[BadRow], None]

COMMIT_S = 30.0
COMMIT_BYTES = 2**26


class _Finished(NamedTuple):
    place: int
    sample: Sample
    rows: dict[str, StoredRows]
    statistics: SampleStatistics


def add(
    storage: Storage,
    reader: ModelReader,
    *,
    sources: Sequence[Source],
    others: Callable[[], Sequence[ModelReader]] = tuple,
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
    names = [source.name for source in sources]
    storage.catalog.refer_to(sources)
    ingestion = _Ingestion(storage, reader, others, on_progress=on_progress)
    with closing(Rejects(storage.path / REJECTED)) as rejects:
        total = None
        if all(source.rereadable for source in sources):
            total = ingestion.check(sources, reject=_refuse if on_bad == "fail" else _pass_over)
        ingestion.run(sources, total, reject=_refuse if on_bad == "fail" else rejects.write)
    tally = ingestion.tally
    if tally.read == 0:
        raise SourceError(
            f"{', '.join(names)}: there is no row in it, so nothing was added; check the file"
        )
    counts = asdict(tally)
    forward_s = counts.pop("forward_s")
    return AddReport(
        **counts,
        rejected=rejects.count,
        seconds={"forward": forward_s, "total": time.perf_counter() - started},
        rejected_file=rejects.path,
    )


class _Ingestion:
    """One run of `add`."""

    def __init__(
        self,
        storage: Storage,
        reader: ModelReader,
        others: Callable[[], Sequence[ModelReader]],
        *,
        on_progress: OnProgress,
    ) -> None:
        self._storage = storage
        self._reader, self._others = reader, others
        self._planner = Planner(storage.catalog, storage.media, reader)
        self._embedders: list[Embedder] = []
        self._choice = CalibrationSample(storage.manifest.settings.seed)
        self._on_progress = on_progress
        self._total: int | None = None
        self._finished: list[_Finished] = []
        self._stored_at = time.perf_counter()
        self.tally = Tally()

    def check(self, sources: Sequence[Source], *, reject: Reject) -> int:
        """Read everything once without a change; returns how many samples are new."""
        read = new = 0
        with closing(Repeats()) as repeats:
            for window in self._planner.plans(sources, repeats):
                for bad in window.rejected:
                    reject(bad)
                read, new = read + window.n_rows, new + len(window.planned)
                for _, prepared in window.planned:
                    self._choice.offer(prepared)
                self._on_progress(Progress("checking", read))
        self._on_progress(Progress("checking", read, read))
        return new

    def run(self, sources: Sequence[Source], total: int | None, *, reject: Reject) -> None:
        """Embed and store what is new; change what is known where the rows say so."""
        self._total = total
        run_id = self._storage.catalog.start_run([source.name for source in sources])
        self._stored_at = time.perf_counter()
        try:
            with closing(Repeats()) as repeats, closing(self._ahead(sources, repeats)) as found:
                for window in found:
                    for bad in window.rejected:
                        reject(bad)
                    self._revise(window)
                    self._embed(window, reject)
                    if self._is_due(0.0):
                        self._store()
        finally:
            self._store()
        self._storage.catalog.finish_run(run_id)

    def _ahead(self, sources: Sequence[Source], repeats: Repeats) -> Generator[WindowPlan]:
        """The windows of all sources, read while others are embedded where sources are files.

        Whoever gave an iterable may count on it being read by the thread that calls.
        """
        found = map(self._with_kept_images, self._planner.plans(sources, repeats))
        ahead = all(source.path is not None for source in sources)
        return prefetched(found) if ahead else (window for window in found)

    def _with_kept_images(self, window: WindowPlan) -> WindowPlan:
        """The same window with its images kept.

        Before anything is embedded: what is embedded is not to be lost for an image.
        """
        planned, window.planned = window.planned, []
        for place, prepared in planned:
            try:
                self._storage.media.keep(prepared.sample)
            except BadSampleError as error:
                window.rejected.append(bad_row(prepared.sample, str(error)))
            else:
                window.planned.append((place, prepared))
        return window

    def _revise(self, window: WindowPlan) -> None:
        self.tally.read += window.n_rows
        self.tally.known += window.known
        self.tally.restored += window.returned
        self.tally.updated += window.changed
        for sample in window.with_images:
            with suppress(BadSampleError):  # which was read a moment ago
                self._storage.media.restore(sample)
        if window.restored:
            self._storage.catalog.restore(window.restored)
        if window.updated:
            self._storage.catalog.update_metadata(window.updated)

    def _calibrated(self, members: Sequence[Prepared]) -> Sequence[Embedder]:
        """What embeds samples, one a device; calibrates an index that holds none yet."""
        if not self._embedders:
            storage, reader = self._storage, self._reader
            if storage.uncalibrated:
                for member in members:
                    self._choice.offer(member)
                chosen = self._choice.samples()
                tables, settings = storage.tables(), storage.manifest.settings
                found = calibrate(reader, tables, settings, chosen, on_progress=self._on_progress)
                storage.freeze(found)
                self._stored_at = time.perf_counter()
            self._embedders = [storage.embedder(reader)]
        if len(self._embedders) == 1 and self._more_than_a_batch(members):
            self._embedders += [self._storage.embedder(other) for other in self._others()]
        return self._embedders

    def _more_than_a_batch(self, members: Sequence[Prepared]) -> bool:
        return sum(len(member.encoded) for member in members) > self._reader.token_budget

    def _embed(self, window: WindowPlan, reject: Reject) -> None:
        members = [prepared for _, prepared in window.planned]
        if not members:
            return
        lost: list[tuple[int, str]] = []
        embedders = self._calibrated(members)
        for batch, embedded, elapsed_s in embedded_batches(embedders, members, lost):
            self.tally.forward_s += elapsed_s
            self.tally.tokens += sum(s.n_tokens for s in embedded.statistics)
            rows = self._storage.quantized(embedded.rows)
            undefined = []
            for at, i in enumerate(batch.indices):
                sample, statistics = members[i].sample, embedded.statistics[at]
                if embedded.finite[at]:
                    row = {name: mine[at : at + 1] for name, mine in rows.items()}
                    stored = self._storage.media.as_stored(sample)
                    self._finished.append(_Finished(window.planned[i][0], stored, row, statistics))
                else:
                    undefined.append(bad_row(sample, undefined_numbers(sample)))
            for bad in undefined:  # last, as a refusal ends the batch
                reject(bad)
            embedded_so_far = self.tally.added + len(self._finished)
            progress = Progress("embedding", embedded_so_far, self._total, self.tally.tokens)
            self._on_progress(progress)
            if self._is_due(elapsed_s):
                self._store()
        for place, reason in lost:  # of images that were there when the rows were read
            reject(bad_row(members[place].sample, reason))

    def _is_due(self, batch_s: float) -> bool:
        """Whether to store what is finished, if the next batch takes as long as the last one."""
        n_bytes = len(self._finished) * self._storage.manifest.sample_bytes
        since_s = time.perf_counter() - self._stored_at
        return n_bytes >= COMMIT_BYTES or since_s + batch_s > COMMIT_S

    def _store(self) -> None:
        """Store what is finished, in order of reading."""
        finished, self._finished = sorted(self._finished, key=lambda f: f.place), []
        if not finished:
            return
        samples, statistics = [f.sample for f in finished], [f.statistics for f in finished]
        with interrupts_held():
            names = finished[0].rows
            rows = {name: joined([f.rows[name] for f in finished]) for name in names}
            self._storage.append(rows, samples, statistics)
            self.tally.added += len(finished)
            self.tally.segments += 1
            self.tally.truncated += sum(s.truncated for s in statistics)
            self.tally.label_tokens += sum(s.n_label_tokens for s in statistics)
        self._stored_at = time.perf_counter()


def _refuse(row: BadRow) -> None:
    raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")


def _pass_over(_row: BadRow) -> None:
    """Leave a bad row out; the run after the check writes it down."""
