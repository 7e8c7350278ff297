"""Carrying out plans: known samples are changed, new ones are embedded and stored."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.gradients.embedder import undefined_numbers
from forvalue_index.ingest.embedders import Embedders
from forvalue_index.ingest.parallel import EmbeddedBatch, embedded_batches
from forvalue_index.ingest.planning import IngestPlan, Planner
from forvalue_index.ingest.rejects import OnBadRow
from forvalue_index.ingest.seen_keys import NewMetadata
from forvalue_index.ingest.storing import EmbeddedSamples, Unstored
from forvalue_index.ingest.tally import MOST_EXAMPLES, Tally
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.progress import OnProgress, Progress
from forvalue_index.sources.sample import BadRow, Source, bad_row
from forvalue_index.store.catalog.sample_rows import changed_metadata
from forvalue_index.store.store import Storage
from forvalue_index.threads import prefetched


class Ingestion:
    """One run of `add`, after the check. `total` is the number of new samples, where it is known.

    What it did is counted in `tally`.
    """

    def __init__(
        self, storage: Storage, embedders: Embedders, *, total: int | None, on_progress: OnProgress
    ) -> None:
        self._storage = storage
        self._embedders = embedders
        self._total = total
        self._on_progress = on_progress
        self.tally = Tally()
        self._unstored = Unstored(storage, self.tally)

    def run(self, sources: Sequence[Source], planner: Planner, *, on_bad_row: OnBadRow) -> None:
        """Carry out the plans for all sources. Whatever stops it, what is embedded is stored."""
        run_id = self._storage.catalog.start_run([source.name for source in sources])
        try:
            with closing(self._ahead(sources, planner.plans(sources))) as with_images:
                for plan in with_images:
                    for bad in plan.rejected:
                        on_bad_row(bad)
                    self._revise(plan)
                    self._embed(plan, on_bad_row)
                    if self._unstored.is_due():
                        self._unstored.store()
        finally:
            self._unstored.store()
        for chunk in planner.new_metadata():
            self._renew(chunk)
        self._storage.catalog.finish_run(run_id)

    def _ahead(
        self, sources: Sequence[Source], plans: Iterator[IngestPlan]
    ) -> Generator[IngestPlan]:
        """The plans, made while others are carried out where sources are files.

        Whoever gave an iterable may count on it being read by the thread that calls.
        """
        with_images = map(self._with_kept_images, plans)
        if all(source.path is not None for source in sources):
            return prefetched(with_images)
        return (plan for plan in with_images)

    def _with_kept_images(self, plan: IngestPlan) -> IngestPlan:
        """The same plan with its images kept.

        Before anything is embedded: what is embedded is not to be lost for an image.
        """
        for position, prepared in list(plan.new.items()):
            try:
                self._storage.media.keep(prepared.sample)
            except BadSampleError as error:
                del plan.new[position]
                plan.reject(prepared.sample, str(error))
        return plan

    def _revise(self, plan: IngestPlan) -> None:
        """Change what is known where the rows say so."""
        self.tally.read += plan.n_rows
        self.tally.known += plan.known
        self.tally.restored += plan.returned
        self.tally.updated += plan.moved
        self.tally.duplicates += plan.duplicates
        self.tally.notices.add(plan.notices)
        self.tally.differing += len(plan.differing)
        self.tally.examples += plan.differing[: MOST_EXAMPLES - len(self.tally.examples)]
        for sample in plan.with_images:
            with suppress(BadSampleError):  # which was read a moment ago
                self._storage.media.restore(sample)
        if plan.restored:
            self._storage.catalog.restore(plan.restored)

    def _renew(self, new: Sequence[NewMetadata]) -> None:
        """Give samples the metadata that their last rows have."""
        with self._storage.catalog.snapshot() as snapshot:
            held = snapshot.live_by_key(said.key for said in new)
        changed: dict[int, dict[str, Any]] = {}
        for said in new:
            sample = held.get(said.key)  # none where the model gave no numbers for a new one
            if sample is None:
                continue
            metadata = changed_metadata(sample.metadata, said.metadata)
            if metadata is not None:
                changed[sample.id] = metadata
                self.tally.updated += said.was_known
        if changed:
            self._storage.catalog.update_metadata(changed)

    def _embed(self, plan: IngestPlan, on_bad_row: OnBadRow) -> None:
        """Embed what is new, and store it as often as that is due."""
        if not plan.new:
            return
        self._unstored.replaced |= plan.replaced
        positions, samples = list(plan.new), list(plan.new.values())
        lost: dict[int, str] = {}
        for done in embedded_batches(self._embedders.of(samples), samples, lost):
            self.tally.forward_s += done.seconds
            self.tally.tokens += sum(one.n_tokens for one in done.embedded.statistics)
            self._unstored.append(self._usable(done, positions, samples), done.seconds)
            for bad in _unusable(done, samples):  # last, as a refusal ends the batch
                on_bad_row(bad)
            self._report()
            if self._unstored.is_due(done.seconds):
                self._unstored.store()
        for index, reason in lost.items():  # of images that were there when the rows were read
            on_bad_row(bad_row(samples[index].sample, reason))

    def _usable(
        self, done: EmbeddedBatch, positions: Sequence[int], samples: Sequence[Prepared]
    ) -> EmbeddedSamples:
        """The samples of a batch whose rows hold numbers alone, as they are stored."""
        rows, statistics, finite = done.embedded
        if not finite.all():
            rows = {geometry: some[finite] for geometry, some in rows.items()}
        usable = finite.nonzero()[:, 0].tolist()
        indices = [done.batch.indices[i] for i in usable]
        as_stored = self._storage.media.as_stored
        return EmbeddedSamples(
            positions=[positions[i] for i in indices],
            samples=[as_stored(samples[i].sample) for i in indices],
            statistics=[statistics[i] for i in usable],
            rows=self._storage.quantized(rows),
        )

    def _report(self) -> None:
        embedded = self.tally.added + len(self._unstored)
        self._on_progress(Progress("embedding", embedded, self._total, self.tally.tokens))


def _unusable(done: EmbeddedBatch, samples: Sequence[Prepared]) -> Iterator[BadRow]:
    """The samples of a batch for which the model gives no usable numbers."""
    for index, finite in zip(done.batch.indices, done.embedded.finite.tolist(), strict=True):
        if not finite:
            sample = samples[index].sample
            yield bad_row(sample, undefined_numbers(sample))
