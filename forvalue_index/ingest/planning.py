"""What is to be done about the rows of a data set: embed, restore, update, pass over or reject."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from forvalue_index.ingest.notices import Notices
from forvalue_index.ingest.relabelling import Place, Relabelling
from forvalue_index.ingest.seen_keys import NewMetadata, SeenKeys
from forvalue_index.ingest.tally import Repeat
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.sources.sample import BadRow, Sample, Source, bad_row
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.sample_rows import changed_metadata, clean_metadata, unstorable
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.media import Media
from forvalue_index.store.records import KnownSample

# A window holds this many rows for each token of a batch's budget, or fewer long ones.
WINDOW_ROWS = 0.25
WINDOW_CHARACTERS = 2**22
# Bytes of images, which are held as they came, that count as much as a character, which is split
# into tokens and messages.
IMAGE_BYTES = 16


@dataclass
class IngestPlan:
    """The rows of a window, sorted by what is to be done about them.

    `new` are the samples to embed, by their positions in the order of reading, and `replaced` the
    ids of those that they take the place of. `restored` goes by the ids of known samples.
    `with_images` are the known ones that have some. `duplicates` repeat an earlier row of the data,
    `differing` ones with other metadata.
    """

    n_rows: int
    known: int = 0
    returned: int = 0
    moved: int = 0
    duplicates: int = 0
    differing: list[Repeat] = field(default_factory=list)
    rejected: list[BadRow] = field(default_factory=list)
    new: dict[int, Prepared] = field(default_factory=dict)
    replaced: dict[int, int] = field(default_factory=dict)
    restored: dict[int, Sample] = field(default_factory=dict)
    with_images: list[Sample] = field(default_factory=list)
    notices: Notices = field(default_factory=Notices)

    def reject(self, sample: Sample, reason: str) -> None:
        """Leave a sample out."""
        self.rejected.append(bad_row(sample, reason))


class _Held(NamedTuple):
    """What the catalog holds of a window: samples by key, and the ids of those that have moved.

    `at_places` are those that came from the places of its rows, where that is asked for.
    """

    samples: Mapping[str, KnownSample]
    moved: set[int]
    at_places: Mapping[Place, KnownSample]


class Planner:
    """Plans windows by what the catalog holds and by the keys seen before; stores nothing.

    One planner reads a data set once, and notes the keys of its rows in `seen`. With `relabel`,
    samples that are read or labelled otherwise now are embedded anew.
    """

    def __init__(
        self,
        catalog: Catalog,
        media: Media,
        reader: ModelReader,
        seen: SeenKeys,
        *,
        relabel: bool = False,
    ) -> None:
        self._relabelling = Relabelling(catalog, reader) if relabel else None
        self._catalog = catalog
        self._media = media
        self._reader = reader
        self._seen = seen

    def plans(self, sources: Sequence[Source]) -> Generator[IngestPlan]:
        """A plan for each window of all sources."""
        most_rows = max(1, int(WINDOW_ROWS * self._reader.token_budget))
        rows = (row for source in sources for row in source.samples())
        first = 0
        for window in windows(rows, most_rows=most_rows, most_characters=WINDOW_CHARACTERS):
            yield self._plan(window, first)
            first += len(window)

    def new_metadata(self) -> Iterator[list[NewMetadata]]:
        """What the rows say of samples that were there when they were read, once all are planned.

        Not before: of several rows of a key the last counts.
        """
        return self._seen.new_metadata()

    def _plan(self, rows: Sequence[Sample | BadRow], first: int) -> IngestPlan:
        held, plan = self._held(rows), IngestPlan(len(rows))
        for position, row in enumerate(rows, first):
            if isinstance(row, BadRow):
                plan.rejected.append(row)
            else:
                self._plan_sample(row, position, held, plan)
        return plan

    def _plan_sample(self, row: Sample, position: int, held: _Held, plan: IngestPlan) -> None:
        plan.notices.notice(row)
        if reason := unstorable(row):
            plan.reject(row, reason)
            return
        seen, known = self._seen.content_of(row.key), held.samples.get(row.key)
        if seen is None and self._plan_relabelled(row, position, held, plan):
            return
        content = seen or (known.content_hash if known else row.content_hash)
        if content != row.content_hash:
            plan.reject(
                row,
                f"its id {row.key!r} is taken by a sample of other content; give it another, or "
                "where several rows have one id by nature, read with --columns id= (no column is "
                "the id then, and the id is metadata)",
            )
        elif seen is not None:
            self._plan_repeat(row, plan)
        elif known is not None:
            self._plan_known(row, known, plan, moved=known.id in held.moved)
        else:
            self._plan_new(row, position, plan)

    def _plan_relabelled(self, row: Sample, position: int, held: _Held, plan: IngestPlan) -> bool:
        """Plan to embed a row in place of the sample that it was stored as; returns whether it is.

        A row that is refused now leaves that sample as it is, and is named.
        """
        if self._relabelling is None:
            return False
        known, at_place = held.samples.get(row.key), held.at_places.get((row.source, row.position))
        before = self._relabelling.outdated(row, known, at_place)
        if before is None:
            return False
        self._plan_new(row, position, plan)
        if position in plan.new:
            plan.replaced[position] = before.id
        return True

    def _plan_repeat(self, row: Sample, plan: IngestPlan) -> None:
        """Of several rows of one key the first is embedded, and the metadata of the last counts."""
        plan.duplicates += 1
        repeat = self._seen.repeat(row)
        if repeat.metadata:
            plan.differing.append(repeat)

    def _plan_known(
        self, row: Sample, known: KnownSample, plan: IngestPlan, *, moved: bool
    ) -> None:
        # One that moved counts as updated at once.
        self._seen.note(row, was_known=not (known.removed or moved))
        if row.images:
            plan.with_images.append(row)
        stored = self._media.as_stored(row)
        if known.removed:
            plan.returned += 1
            plan.restored[known.id] = stored
        else:
            plan.known += 1
            self._plan_changes(stored, known, plan, moved=moved)

    def _plan_changes(
        self, row: Sample, known: KnownSample, plan: IngestPlan, *, moved: bool
    ) -> None:
        """Plan what a row changes of a sample that is known, and not removed."""
        plan.moved += moved
        if moved or known.location not in (None, (row.source, row.position, row.offset)):
            plan.restored[known.id] = replace(row, metadata=known.metadata)
        if changed_metadata(known.metadata, row.metadata) is not None:
            metadata = clean_metadata(row.metadata)
            self._seen.keep_metadata(row.key, metadata, was_known=not moved)

    def _plan_new(self, row: Sample, position: int, plan: IngestPlan) -> None:
        if reason := self._media.refusal(row):
            plan.reject(row, reason)
            return
        prepared = self._reader.prepare(row)
        if isinstance(prepared, BadRow):
            plan.rejected.append(prepared)
            return
        self._seen.note(row)
        plan.notices.notice_encoded(prepared.encoded)
        plan.new[position] = prepared

    def _held(self, rows: Sequence[Sample | BadRow]) -> _Held:
        samples = [row for row in rows if isinstance(row, Sample)]
        with self._catalog.snapshot() as snapshot:
            known = snapshot.known(samples)
            with_images = [sample for sample in samples if sample.images]
            places = self._relabelling.at_places(snapshot, samples) if self._relabelling else {}
            return _Held(known, self._moved(snapshot, with_images, known), places)

    def _moved(
        self, snapshot: Snapshot, rows: Sequence[Sample], known: Mapping[str, KnownSample]
    ) -> set[int]:
        """The ids of known samples whose images lie elsewhere by now than the catalog says."""
        if not self._media.keeps_paths:
            return set()
        rows_by_id: dict[int, Sample] = {}
        for row in rows:  # of several with one key the first counts
            sample = known.get(row.key)
            if sample is not None and sample.content_hash == row.content_hash:
                rows_by_id.setdefault(sample.id, row)
        stored = snapshot.samples(rows_by_id)
        return {
            id_
            for id_, row in rows_by_id.items()
            if any(map(self._media.has_moved, row.images, stored[id_].sample.images))
        }


def windows(
    rows: Iterable[Sample | BadRow], *, most_rows: int, most_characters: int
) -> Iterator[list[Sample | BadRow]]:
    """Rows in lists, which depend on the rows alone: of so many, or of fewer long ones."""
    window: list[Sample | BadRow] = []
    characters = 0
    for row in rows:
        window.append(row)
        characters += _characters(row)
        if len(window) == most_rows or characters >= most_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window


def _characters(row: Sample | BadRow) -> int:
    """How long a row is, its images included. Whatever a bad row holds does not count."""
    if isinstance(row, BadRow):
        return 0
    text = sum(len(message.content) for message in row.messages)
    return text + sum(len(image.content or b"") for image in row.images) // IMAGE_BYTES
