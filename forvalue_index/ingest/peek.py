"""How the first rows of a data set are read: what `add` would do, before anything is embedded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import SourceError, UsageError
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.model.token_texts import pieces
from forvalue_index.settings import require
from forvalue_index.sources.data import Data, DataOptions
from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.sources.source import RowSource
from forvalue_index.store.catalog.sample_rows import clean_text, unstorable
from forvalue_index.store.create import wanted_settings
from forvalue_index.store.reading import RowReading

# What an index has of its own. Its model may run code only where that is said again.
SAID_AGAIN = "trust_remote_code"


@dataclass(frozen=True)
class TextRun:
    """Text of tokens that follow each other and are all labels, or all none."""

    text: str
    is_label: bool
    n_tokens: int


@dataclass(frozen=True)
class PeekedRow:
    """How one row is read, or the `reason` why it is no usable sample.

    `sample` is None where a row makes none. `runs` are what the model reads, in order: joined,
    their texts are its text, but for images, which stand as `[image 64 x 48, PATH]`. `truncated`
    says that more follows after `--max-length`; `unrendered` are fields of turns that the chat
    template leaves out.
    """

    source: str
    position: int
    sample: Sample | None = None
    reason: str | None = None
    runs: tuple[TextRun, ...] = ()
    truncated: bool = False
    unrendered: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether `add` would embed it."""
        return self.reason is None

    @property
    def n_tokens(self) -> int:
        """How many tokens the model reads."""
        return sum(run.n_tokens for run in self.runs)

    @property
    def n_label_tokens(self) -> int:
        """How many of them are scored."""
        return sum(run.n_tokens for run in self.runs if run.is_label)


@dataclass(frozen=True)
class PeekedSource:
    """The first rows of a source; `problem` is why no more could be read, if that is so."""

    source: str
    rows: tuple[PeekedRow, ...]
    problem: str | None = None

    @property
    def usable(self) -> int:
        """How many of the rows are usable samples."""
        return sum(row.usable for row in self.rows)


def peek(
    data: Any,
    *,
    model: str | None = None,
    index: str | PathLike[str] | None = None,
    count: int = 3,
    **options: Any,
) -> list[PeekedSource]:
    """How the first rows of each source are read for a model, whose weights are not loaded.

    What a row is does not depend on others here: keys are not compared with those of other rows,
    or of an index. Nothing is written.

    Args:
        data: see `Data`; bad rows are told, whatever its `on_bad` is.
        model: hub id, local directory or GGUF file.
        index: an index that is there, for its model and settings, in place of `model`.
        count: so many rows of each source are looked at, and no more are read.
        options: how rows are read, see `Data`; with `model` the fields of `Settings`, of an
            adapter the chat template alone; with `index` only `trust_remote_code`.

    Raises:
        UsageError: `count` is below 1, there is not one of `model` and `index`, or a setting
            cannot work or is that of the index.
        ModelError, BrokenIndexError: there is no such model, or index.
        SettingsMismatchError: the model of the index has another tokenizer by now.
        SourceError: the data cannot be read, or hold no row.
    """
    require(count >= 1, "count", count, "use 1 or more")
    reading: DataOptions = {
        name: options.pop(name) for name in DataOptions.__annotations__ if name in options
    }  # type: ignore[assignment]
    wanted = Data.of(data, reading)
    rows = _row_reading(model, index, options)
    sources = wanted.open(images=rows.reads_images)
    peeked = [_peeked_source(source, rows, count) for source in sources]
    if not any(one.rows for one in peeked):
        names = ", ".join(one.source for one in peeked)
        problems = [one.problem for one in peeked if one.problem is not None]
        raise SourceError(*problems[:1] or [f"{names}: there is no row in it; check the file"])
    return peeked


def _row_reading(
    model: str | None, index: str | PathLike[str] | None, settings: dict[str, Any]
) -> RowReading:
    if model is not None and index is None:
        return RowReading.for_settings(wanted_settings(model, settings))
    if index is None or model is not None:
        raise UsageError(
            "give either --model, to see how rows are read for it, or --index, for the model and "
            "settings of an index"
        )
    trusted = settings.pop(SAID_AGAIN, False)
    if settings:
        names = ", ".join("--" + name.replace("_", "-") for name in settings)
        raise UsageError(f"{names}: {index} has settings of its own; leave it out, or use --model")
    return RowReading.of_index(Path(index), trust_remote_code=trusted)


def _peeked_source(source: RowSource, reading: RowReading, count: int) -> PeekedSource:
    name, rows, problem = clean_text(source.name), list[PeekedRow](), None
    try:
        rows.extend(_peeked_row(row, reading) for row in source.first(count).samples())
    except SourceError as error:  # of one file: the others are looked at all the same
        problem = clean_text(str(error))
    return PeekedSource(name, tuple(rows), problem)


def _peeked_row(row: Sample | BadRow, reading: RowReading) -> PeekedRow:
    read = reading.prepare(row) if isinstance(row, Sample) else row
    source, position = clean_text(row.source), row.position
    if isinstance(read, BadRow):
        # What no catalog can hold, no document and no terminal can either.
        sample = row if isinstance(row, Sample) and not unstorable(row) else None
        return PeekedRow(source, position, sample, clean_text(read.reason))
    encoded = read.encoded
    return PeekedRow(
        source,
        position,
        read.sample,
        runs=tuple(_runs(read, reading)),
        truncated=encoded.truncated,
        unrendered=encoded.unrendered,
    )


def _runs(prepared: Prepared, reading: RowReading) -> Iterator[TextRun]:
    encoded = prepared.encoded
    texts = pieces(reading.encoder.decode, encoded.token_ids.tolist())
    for image, (start, end) in zip(prepared.sample.images, encoded.image_tokens, strict=True):
        texts[start:end] = [f"[{image}]", *[""] * (end - start - 1)]
    labelled = zip(encoded.label_mask.tolist(), texts, strict=True)
    for is_label, tokens in groupby(labelled, key=lambda one: one[0]):
        run = [text for _, text in tokens]
        yield TextRun("".join(run), is_label, len(run))
