"""Adding a data set: read, leave out what is known, embed the rest, store it bit by bit.

Rows are read in windows, whose samples are sorted by length into batches. Whatever stops an `add`,
the same command goes on where it stopped, and rows are the same to the bit as if it had never
stopped (to rounding where memory ran out): windows depend on what is read alone, and the batches of
one are the same without the first ones.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from os import PathLike

from forvalue_index.exceptions import BadSampleError, SourceError, UsageError
from forvalue_index.gradients.calibrating import CalibrationSample, calibrate
from forvalue_index.gradients.embedder import Embedder, undefined_numbers
from forvalue_index.ingest.parallel import EmbeddedBatch, embedded_batches
from forvalue_index.ingest.planning import Planner, WindowPlan
from forvalue_index.ingest.rejects import Rejects
from forvalue_index.ingest.seen_keys import Repeats
from forvalue_index.ingest.storing import EmbeddedSamples, Unstored
from forvalue_index.ingest.tally import AddReport, Tally
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.progress import OnProgress, Progress
from forvalue_index.sources.sample import BadRow, Source, bad_row
from forvalue_index.store.manifest import REJECTED
from forvalue_index.store.model import IndexModel, embedder_of
from forvalue_index.store.store import Storage
from forvalue_index.threads import prefetched

Reject = Callable[[BadRow], None]


def add(model: IndexModel, sources: Sequence[Source], *, on_bad: str = "fail") -> AddReport:
    """Store the samples of `sources` that the index does not hold yet. The writer's lock is held.

    A sample is known where its key is stored with the same content: it gets new metadata where
    this row has other, and is restored where it was removed. The first of several rows of one key
    counts. With `on_bad="fail"`, sources that can be read twice are checked whole before anything
    is embedded; with "skip", bad rows go to a file in the index.

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
    storage, reader = model.storage, model.reader
    load_s = time.perf_counter() - started
    names = [source.name for source in sources]
    storage.catalog.refer_to(sources)
    ingestion = _Ingestion(storage, reader, model.other_readers, on_progress=model.on_progress)
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
        seconds={
            "load": load_s,
            "forward": forward_s,
            "total": time.perf_counter() - started,
        },
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
        self.tally = Tally()
        self._unstored = Unstored(storage, self.tally)

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
        self._unstored.restart_clock()
        try:
            with closing(Repeats()) as repeats, closing(self._ahead(sources, repeats)) as found:
                for window in found:
                    for bad in window.rejected:
                        reject(bad)
                    self._revise(window)
                    self._embed(window, reject)
                    if self._unstored.is_due():
                        self._unstored.store()
        finally:
            self._unstored.store()
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
                tables, settings = storage.frozen.tables(), storage.manifest.settings
                found = calibrate(reader, tables, settings, chosen, on_progress=self._on_progress)
                storage.frozen.freeze(found)
                self._unstored.restart_clock()
            self._embedders = [embedder_of(storage, reader)]
        if len(self._embedders) == 1 and self._more_than_a_batch(members):
            self._embedders += [embedder_of(self._storage, other) for other in self._others()]
        return self._embedders

    def _more_than_a_batch(self, members: Sequence[Prepared]) -> bool:
        return sum(len(member.encoded) for member in members) > self._reader.token_budget

    def _embed(self, window: WindowPlan, reject: Reject) -> None:
        members = [prepared for _, prepared in window.planned]
        if not members:
            return
        lost: list[tuple[int, str]] = []
        embedders = self._calibrated(members)
        for done in embedded_batches(embedders, members, lost):
            self.tally.forward_s += done.seconds
            self.tally.tokens += sum(s.n_tokens for s in done.embedded.statistics)
            self._unstored.append(self._usable(window, done))
            for place in _undefined(done):  # last, as a refusal ends the batch
                sample = members[place].sample
                reject(bad_row(sample, undefined_numbers(sample)))
            embedded_so_far = self.tally.added + len(self._unstored)
            progress = Progress("embedding", embedded_so_far, self._total, self.tally.tokens)
            self._on_progress(progress)
            if self._unstored.is_due(done.seconds):
                self._unstored.store()
        for place, reason in lost:  # of images that were there when the rows were read
            reject(bad_row(members[place].sample, reason))

    def _usable(self, window: WindowPlan, done: EmbeddedBatch) -> EmbeddedSamples:
        """The samples of a batch whose rows hold numbers alone."""
        batch, (rows, statistics, finite) = done.batch, done.embedded
        chosen = finite.nonzero()[:, 0].tolist()
        members = [window.planned[batch.indices[i]] for i in chosen]
        stored = self._storage.media.as_stored
        return EmbeddedSamples(
            positions=[position for position, _ in members],
            samples=[stored(prepared.sample) for _, prepared in members],
            statistics=[statistics[i] for i in chosen],
            rows=self._storage.quantized(
                rows if finite.all() else {name: some[finite] for name, some in rows.items()}
            ),
        )


def _undefined(done: EmbeddedBatch) -> list[int]:
    finite = done.embedded.finite.tolist()
    return [i for i, good in zip(done.batch.indices, finite, strict=True) if not good]


def refuse_media_root(storage: Storage, media_root: str | PathLike[str] | None) -> None:
    """Raise UsageError for data files that an index refers to: they are read again as they lie."""
    if media_root is not None and storage.manifest.settings.payload == "reference":
        raise UsageError(
            f"--media-root {media_root}: {storage.path} refers to its data (--payload reference) "
            "and reads images beside it alone; move them there, or build an index with "
            "--payload catalog"
        )


def _refuse(row: BadRow) -> None:
    raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")


def _pass_over(_row: BadRow) -> None:
    """Leave a bad row out; the run after the check writes it down."""
