"""What the catalog says of stored samples and segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Message, Sample


@runtime_checkable
class Texts(Protocol):
    """The texts of samples that the catalog only refers to."""

    def locate(self, name: str, path: Path | None) -> str:
        """A file's path as the catalog stores it. Raises UsageError where none can be stored."""
        ...

    def read(self, references: Sequence[Reference]) -> list[Conversation | str]:
        """What each sample says, or why it is not there any more."""
        ...


class Conversation(NamedTuple):
    """What a sample says: its messages, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class SegmentRecord:
    """A segment file as it was written. `sha256` is that of the whole file."""

    uid: str
    n_rows: int
    n_bytes: int
    sha256: str


@dataclass(frozen=True)
class StoredSegment:
    """A segment that the catalog vouches for: it holds the ids first_id .. first_id + n_rows."""

    first_id: int
    file: SegmentRecord


class Measured(NamedTuple):
    """How many tokens were read of a sample, how many of these are labels, and whether it was cut.

    `SampleStatistics` has them beside what the model says.
    """

    n_tokens: int
    n_label_tokens: int
    truncated: bool


@dataclass(frozen=True)
class KnownSample:
    """What is stored under a key.

    `location` are the source, position and offset of a text that the catalog only refers to.
    """

    id: int
    content_hash: str
    removed: bool
    metadata: Mapping[str, Any]
    measured: Measured
    location: tuple[str, int, int | None] | None = None


@dataclass(frozen=True)
class StoredSample:
    """A sample as the catalog holds it, under the id that its row has in the segments.

    The text of a `referenced` one lies in a data file; `text_error` says why it cannot be read,
    and stands in for it. `columns` say how its source was read, where that is known.
    """

    id: int
    sample: Sample
    statistics: SampleStatistics
    segment: str
    removed: bool = False
    referenced: bool = False
    text_error: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, eq=False)
class Reference:
    """Where the text of a sample lies: a file, by its path below the data's root, and a row."""

    path: str
    columns: Mapping[str, str]
    position: int
    offset: int | None
    content_hash: str
