"""Adding a data set: read, leave out what is known, embed the rest, store it window by window.

A window is about a minute's work on a CPU: it is sorted by length for batches and stored in input
order. Whatever stops an `add`, finished windows are stored, and what is finished of the last one;
the same command then goes on where it stopped.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import torch

from forvalue_index.catalog_rows import unstorable
from forvalue_index.contracts import OnProgress, Source, ignore_progress
from forvalue_index.exceptions import BadSampleError, SourceError
from forvalue_index.features import Embedder, Prepared
from forvalue_index.manifest import REJECTED
from forvalue_index.records import (
    AddReport,
    BadRow,
    Progress,
    Sample,
    SampleStatistics,
    bad_row,
)
from forvalue_index.storage import Storage

READ_ROWS = 1024
WINDOW_BATCHES = 16
WINDOW_SAMPLES = 8192
WINDOW_FLOATS = 2**25


@dataclass
class _Tally:
    """Counts of one `add` while it runs."""

    read: int = 0
    added: int = 0
    known: int = 0
    truncated: int = 0
    label_tokens: int = 0
    tokens: int = 0
    segments: int = 0
    forward_s: float = 0.0
    rejected: list[BadRow] = field(default_factory=list)


def add(
    storage: Storage,
    embedder: Embedder,
    *,
    sources: Sequence[Source],
    on_bad: str = "fail",
    on_progress: OnProgress = ignore_progress,
) -> AddReport:
    """Store the samples of `sources` that the index does not hold yet.

    A sample is known where its key is stored with the same content. With `on_bad="fail"`, sources
    that can be read twice are checked whole before anything is embedded; with "skip", bad rows go
    to a file in the index.

    Raises:
        BadSampleError: a row is not usable and `on_bad` is "fail".
        SourceError: a source cannot be read, or there is no row at all.
    """
    started = time.perf_counter()
    ingestion = _Ingestion(storage, embedder, strict=on_bad == "fail", on_progress=on_progress)
    rereadable = all(source.rereadable for source in sources)
    total = ingestion.check(sources) if rereadable else None
    try:
        ingestion.run(sources, total)
    finally:
        tally = ingestion.tally
        rejected_file = _write_rejected(storage.path / REJECTED, tally.rejected)
    if tally.read == 0:
        names = ", ".join(source.name for source in sources)
        raise SourceError(f"{names}: there is no row in it, so nothing was added; check the file")
    return AddReport(
        read=tally.read,
        added=tally.added,
        known=tally.known,
        rejected=len(tally.rejected),
        truncated=tally.truncated,
        label_tokens=tally.label_tokens,
        tokens=tally.tokens,
        segments=tally.segments,
        seconds={"forward": tally.forward_s, "total": time.perf_counter() - started},
        rejected_file=rejected_file,
    )


class _Ingestion:
    """One run of `add`."""

    def __init__(
        self, storage: Storage, embedder: Embedder, *, strict: bool, on_progress: OnProgress
    ) -> None:
        self._storage = storage
        self._embedder = embedder
        self._strict = strict
        self._on_progress = on_progress
        self._total: int | None = None
        self.tally = _Tally()

    def check(self, sources: Sequence[Source]) -> int:
        """Read everything once: how many samples are new. Strict: fail on the first bad row."""
        read = new = 0
        for rows in _chunks(_rows(sources)):
            read, new = read + len(rows), new + sum(1 for _ in self._new(rows, pending={}))
            self._on_progress(Progress("checking", read))
        self._on_progress(Progress("checking", read, read))
        self.tally = _Tally()
        return new

    def run(self, sources: Sequence[Source], total: int | None) -> None:
        """Embed and store what is new."""
        self._total = total
        window: dict[str, Prepared] = {}
        n_tokens = 0
        for rows in _chunks(_rows(sources)):
            self.tally.read += len(rows)
            for prepared in self._new(rows, pending=window):
                window[prepared.sample.key] = prepared
                n_tokens += len(prepared.encoded)
                if len(window) >= self._window_samples or n_tokens >= self._window_tokens:
                    self._embed(list(window.values()))
                    window.clear()
                    n_tokens = 0
        self._embed(list(window.values()))

    @property
    def _window_tokens(self) -> int:
        return WINDOW_BATCHES * self._embedder.token_budget

    @property
    def _window_samples(self) -> int:
        return min(WINDOW_SAMPLES, max(1, WINDOW_FLOATS // self._storage.manifest.row_width))

    def _new(
        self, rows: Sequence[Sample | BadRow], pending: Mapping[str, Prepared]
    ) -> Iterator[Prepared]:
        """The usable samples among rows that are neither stored nor pending."""
        samples = [row for row in rows if isinstance(row, Sample)]
        held = self._storage.catalog.known(samples)
        held.update((key, prepared.sample.content_hash) for key, prepared in pending.items())
        for row in rows:
            if isinstance(row, BadRow):
                self._reject(row)
                continue
            content_hash = held.get(row.key)
            if content_hash is None:
                prepared = self._prepare(row)
                if prepared is not None:
                    held[row.key] = row.content_hash
                    yield prepared
            elif content_hash == row.content_hash:
                self.tally.known += 1
            else:
                reason = (
                    f"its id {row.key!r} is taken by a sample of other content; give it another"
                )
                self._reject(bad_row(row, reason))

    def _prepare(self, sample: Sample) -> Prepared | None:
        reason = unstorable(sample)
        prepared = bad_row(sample, reason) if reason else self._embedder.prepare(sample)
        if isinstance(prepared, Prepared):
            return prepared
        self._reject(prepared)
        return None

    def _reject(self, row: BadRow) -> None:
        if self._strict:
            raise BadSampleError(f"{row}. Mend the row, or use --on-bad skip")
        self.tally.rejected.append(row)

    def _embed(self, window: Sequence[Prepared]) -> None:
        """Embed a window and store it; where it is cut short, store what is finished."""
        done: dict[int, tuple[torch.Tensor, SampleStatistics]] = {}
        try:
            for batch in self._embedder.batches(window):
                started = time.perf_counter()
                embedded = self._embedder.embed_batch(batch, window)
                self.tally.forward_s += time.perf_counter() - started
                done.update(
                    zip(
                        batch.indices,
                        zip(embedded.rows, embedded.statistics, strict=True),
                        strict=True,
                    )
                )
                self.tally.tokens += sum(s.n_tokens for s in embedded.statistics)
                embedded_so_far = self.tally.added + len(done)
                self._on_progress(
                    Progress("embedding", embedded_so_far, self._total, self.tally.tokens)
                )
        finally:
            if done:
                with _interrupts_held():
                    self._store([(window[i].sample, *done[i]) for i in sorted(done)])

    def _store(self, finished: Sequence[tuple[Sample, torch.Tensor, SampleStatistics]]) -> None:
        samples, rows, statistics = zip(*finished, strict=True)
        self._storage.append(torch.stack(rows), samples, statistics)
        self.tally.added += len(samples)
        self.tally.segments += 1
        self.tally.truncated += sum(s.truncated for s in statistics)
        self.tally.label_tokens += sum(s.n_label_tokens for s in statistics)


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """Let a Ctrl-C wait until a window is stored: half stored, its forward passes would be lost."""
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is None:
        yield
        return
    held: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: held.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if held:
            signal.raise_signal(signal.SIGINT)


def _rows(sources: Sequence[Source]) -> Iterator[Sample | BadRow]:
    for source in sources:
        yield from source.samples()


def _chunks(rows: Iterable[Sample | BadRow]) -> Iterator[list[Sample | BadRow]]:
    rows = iter(rows)
    while chunk := list(islice(rows, READ_ROWS)):
        yield chunk


def _write_rejected(directory: Path, rejected: Sequence[BadRow]) -> str | None:
    """Write rejected rows, with their reasons, to a new JSONL file; its path, or None."""
    if not rejected:
        return None
    directory.mkdir(exist_ok=True)
    path = directory / f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for row in rejected:
            entry = {"source": row.source, "position": row.position, "reason": row.reason}
            file.write(json.dumps({**entry, "row": row.raw}, default=str) + "\n")
    return str(path)
