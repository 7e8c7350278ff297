"""What is to be done about the rows of a data set: embed, restore, update, pass over or reject."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from forvalue_index.ingest.seen_keys import Repeats
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.sources.sample import BadRow, Sample, Source, bad_row
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.sample_rows import changed_metadata, unstorable
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.media import Media
from forvalue_index.store.records import KnownSample

# A window holds this many rows for each token of a batch's budget, or fewer long ones.
WINDOW_ROWS = 0.25
WINDOW_CHARACTERS = 2**22


@dataclass
class WindowPlan:
    """The rows of a window, sorted by what is to be done about them.

    `planned` are the new samples with their places in the order of reading, `with_images` the known
    ones that have some.
    """

    n_rows: int
    known: int = 0
    returned: int = 0
    changed: int = 0
    rejected: list[BadRow] = field(default_factory=list)
    planned: list[tuple[int, Prepared]] = field(default_factory=list)
    restored: dict[int, Sample] = field(default_factory=dict)
    updated: dict[int, dict[str, Any]] = field(default_factory=dict)
    with_images: list[Sample] = field(default_factory=list)


class Planner:
    """Plans windows by what the catalog holds; changes nothing."""

    def __init__(self, catalog: Catalog, media: Media, reader: ModelReader) -> None:
        self._catalog = catalog
        self._media = media
        self._reader = reader

    def plans(self, sources: Sequence[Source], repeats: Repeats) -> Generator[WindowPlan]:
        """A plan for each window of all sources; the content of keys is noted in `repeats`."""
        most = max(1, int(WINDOW_ROWS * self._reader.token_budget))
        rows = (row for source in sources for row in source.samples())
        place = 0
        for some in windows(rows, most_rows=most, most_characters=WINDOW_CHARACTERS):
            yield self._plan(some, repeats, place)
            place += len(some)

    def _plan(self, rows: Sequence[Sample | BadRow], repeats: Repeats, place: int) -> WindowPlan:
        with self._catalog.snapshot() as snapshot:
            samples = [row for row in rows if isinstance(row, Sample)]
            held = snapshot.known(samples)
            moved = self._moved(snapshot, [row for row in samples if row.images], held)
        window = WindowPlan(len(rows))
        for offset, row in enumerate(rows):
            if isinstance(row, BadRow):
                window.rejected.append(row)
                continue
            first, known = repeats.content_of(row.key), held.get(row.key)
            content = first or (known.content_hash if known else row.content_hash)
            if content != row.content_hash:
                taken = f"its id {row.key!r} is taken by a sample of other content"
                window.rejected.append(bad_row(row, f"{taken}; give it another"))
            elif first is not None:
                window.known += 1
            elif known is not None:
                repeats.note(row)
                window.with_images += [row] if row.images else []
                _plan_known(self._media.as_stored(row), known, window, moved=known.id in moved)
            elif reason := unstorable(row) or self._media.refusal(row):
                window.rejected.append(bad_row(row, reason))
            elif isinstance(prepared := self._reader.prepare(row), Prepared):
                repeats.note(row)
                window.planned.append((place + offset, prepared))
            else:
                window.rejected.append(prepared)
        return window

    def _moved(
        self, snapshot: Snapshot, rows: Sequence[Sample], held: Mapping[str, KnownSample]
    ) -> set[int]:
        """The ids of known samples whose images lie elsewhere by now than the catalog says."""
        if not self._media.keeps_paths:
            return set()
        known: dict[int, Sample] = {}
        for row in rows:  # of several with one key the first counts
            found = held.get(row.key)
            if found is not None and found.content_hash == row.content_hash:
                known.setdefault(found.id, row)
        stored = snapshot.samples(known)
        return {
            id_
            for id_, row in known.items()
            if any(map(self._media.has_moved, row.images, stored[id_].sample.images))
        }


def _plan_known(row: Sample, known: KnownSample, window: WindowPlan, *, moved: bool) -> None:
    if known.removed:
        window.returned += 1
        window.restored[known.id] = row
        return
    window.known += 1
    metadata = changed_metadata(known.metadata, row.metadata)
    window.changed += moved or metadata is not None
    if moved or known.place not in (None, (row.source, row.position, row.offset)):
        window.restored[known.id] = replace(row, metadata=metadata or known.metadata)
    elif metadata is not None:
        window.updated[known.id] = metadata


# Bytes of images, which are held as they came, that count as much as a character, which is split
# into tokens and messages.
IMAGE_BYTES = 16


def windows(
    rows: Iterable[Sample | BadRow], *, most_rows: int, most_characters: int
) -> Iterator[list[Sample | BadRow]]:
    """Rows in lists, which depend on the rows alone: of so many, or of fewer long ones."""
    window: list[Sample | BadRow] = []
    characters = 0
    for row in rows:
        window.append(row)
        if isinstance(row, Sample):
            characters += sum(len(message.content) for message in row.messages)
            characters += sum(len(image.content or b"") for image in row.images) // IMAGE_BYTES
        if len(window) == most_rows or characters >= most_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
