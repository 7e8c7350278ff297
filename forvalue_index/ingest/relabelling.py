"""Samples that were read or labelled otherwise when they were stored than they are now.

Rules of what is read and what is a label get better, and rows that were stored stay as they are.
How many tokens and labels a sample had is stored with it, and what its data had beside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.label_tokens import ModelReader
from forvalue_index.progress import Progress
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.sources.shapes.conventions import IGNORED
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.snapshot import Snapshot
from forvalue_index.store.model import IndexModel
from forvalue_index.store.records import KnownSample, Measured, StoredSample
from forvalue_index.store.results import CheckReport, Finding

OTHERWISE = "other labels"
MOST_NAMED = 5
Place = tuple[str, int]


class Relabelling:
    """Finds the stored sample that a row takes the place of, as `add` meets it."""

    def __init__(self, catalog: Catalog, reader: ModelReader) -> None:
        self._catalog = catalog
        self._reader = reader

    def at_places(self, snapshot: Snapshot, rows: Sequence[Sample]) -> dict[Place, KnownSample]:
        """The live samples, known by their content, that came from the places of rows."""
        positions: dict[str, list[int]] = {}
        for row in rows:
            positions.setdefault(row.source, []).append(row.position)
        return {
            (source, position): sample
            for source, at in positions.items()
            for position, sample in snapshot.at_positions(source, min(at), max(at)).items()
        }

    def outdated(
        self, row: Sample, known: KnownSample | None, at_place: KnownSample | None
    ) -> KnownSample | None:
        """The sample whose row would be another now, None where the row is new or stays.

        `known` is stored under the key of the row, `at_place` came from its file and line. What the
        assistant says at the end tells that it is the same row, read otherwise.
        """
        stored = known or (at_place if row.own_id is None else None)
        if stored is None or stored.removed:
            return None
        if stored.content_hash == row.content_hash:
            return stored if self._is_measured_otherwise(row, stored.measured) else None
        with self._catalog.snapshot() as snapshot:
            before = snapshot.samples([stored.id])[stored.id].sample
        return stored if before.response == row.response else None

    def _is_measured_otherwise(self, row: Sample, measured: Measured) -> bool:
        prepared = self._reader.prepare(row)
        return isinstance(prepared, BadRow) or _measured(self._reader, prepared.encoded) != measured


def with_relabelled(model: IndexModel, report: CheckReport) -> CheckReport:
    """A report of `check` with the samples that would be read or labelled otherwise now."""
    found: dict[str, dict[str, str]] = {}
    with model.storage.catalog.snapshot() as snapshot:
        for done, (_, stored) in enumerate(snapshot.every_sample(), 1):
            model.report(Progress("checking", done, report.samples))
            if isinstance(stored, str) or stored.removed or stored.text_error:
                continue
            reason = _change(model.reader, stored)
            if reason is not None:
                found.setdefault(stored.sample.source, {})[stored.sample.key] = reason
    findings = (_finding(source, reasons) for source, reasons in found.items())
    return replace(report, findings=(*report.findings, *findings))


def _finding(source: str, reasons: Mapping[str, str]) -> Finding:
    named = [f"{key} ({reason})" for key, reason in list(reasons.items())[:MOST_NAMED]]
    more = [f"and {len(reasons) - MOST_NAMED:,} more"] if len(reasons) > MOST_NAMED else []
    return Finding(
        OTHERWISE,
        f"{len(reasons):,} samples of {source} are read or labelled otherwise now: "
        + ", ".join([*named, *more]),
        f"run with the options that it was added with: forvalue add INDEX {source} --relabel",
        samples=tuple(reasons),
    )


def _change(reader: ModelReader, stored: StoredSample) -> str | None:
    """How a stored sample is read or labelled otherwise now, if it is."""
    again = _read_again(stored)
    if isinstance(again, str):
        return again
    if again.content_hash != stored.sample.content_hash:
        return "what stands beside it is read now"
    prepared = reader.prepare(again)
    if isinstance(prepared, BadRow):
        return f"refused now: {prepared.reason}"
    statistics, now = stored.statistics, _measured(reader, prepared.encoded)
    before = Measured(statistics.n_tokens, statistics.n_label_tokens, statistics.truncated)
    return None if now == before else f"{_told(before)}, and {_told(now)} now"


def _measured(reader: ModelReader, encoded: Encoded) -> Measured:
    return Measured(len(encoded), reader.count_labels(encoded), encoded.truncated)


def _told(measured: Measured) -> str:
    return f"{measured.n_tokens:,} tokens with {measured.n_label_tokens:,} labels"


def _read_again(stored: StoredSample) -> Sample | str:
    """A stored sample read from its turns and its metadata, or why it is refused now."""
    sample = stored.sample
    if sample.images or sample.is_text or sample.is_tokens:
        return sample
    messages = sample.messages
    said: dict[str, Any] = {"messages": [message.as_row() for message in messages]}
    if [(m.role, m.extra) for m in messages] == [("user", {}), ("assistant", {})]:
        said = {"prompt": messages[0].content, "response": messages[1].content}
    tools = {"tools": list(sample.tools)} if sample.tools else {}
    beside = {n: v for n, v in sample.metadata.items() if n not in said}
    # What was left out on purpose is left out again.
    columns = {name: name for name in said}
    columns |= {f: column for f, column in stored.columns.items() if f == IGNORED}
    try:
        return to_sample({**beside, **said, **tools}, columns)
    except BadSampleError as error:
        return f"refused now: {error}"
