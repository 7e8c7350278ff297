"""Texts that an index refers to and does not hold: where they lie, and whether they still do.

An index may come from a stranger, so what it refers to is read only below the directory that holds
the index, and shown only where it has the content hash that the catalog says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from forvalue_index.exceptions import SourceError, UsageError
from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.sources.source import RowSource, open_sources
from forvalue_index.store.records import Conversation, Reference

File = tuple[str, tuple[tuple[str, str], ...]]


class FileTexts:
    """The records.Texts of data files below a directory."""

    def __init__(self, root: Path, *, images: bool = True) -> None:
        self._root = root.resolve()
        self._images = images

    def locate(self, name: str, path: Path | None) -> str:
        """A file's path as the catalog stores it. Raises UsageError where none can be stored."""
        if path is None:
            raise UsageError(
                f"{name} is no file, and an index with --payload reference keeps no texts; write "
                "it to a file and add that"
            )
        file = path.resolve()
        if not file.is_relative_to(self._root):
            raise UsageError(
                f"{file} does not lie below {self._root}, and an index with --payload reference "
                "reads nothing else; move the data, or make the index beside it"
            )
        return file.relative_to(self._root).as_posix()

    def read(self, references: Sequence[Reference]) -> list[Conversation | str]:
        """What each sample says, or why it is not there any more."""
        wanted: dict[File, list[Reference]] = {}
        for reference in references:
            file = (reference.path, tuple(reference.columns.items()))
            wanted.setdefault(file, []).append(reference)
        texts: dict[Reference, Conversation | str] = {}
        for (path, columns), group in wanted.items():
            texts.update(self._read_file(path, dict(columns), group))
        return [texts[reference] for reference in references]

    def _read_file(
        self, name: str, columns: Mapping[str, str], wanted: Sequence[Reference]
    ) -> dict[Reference, Conversation | str]:
        try:
            source = self._source(name, columns)
            samples = source.samples_at({(r.position, r.offset) for r in wanted})
        except SourceError as error:
            return {reference: str(error) for reference in wanted}
        return {r: _checked(r, samples.get((r.position, r.offset))) for r in wanted}

    def _source(self, name: str, columns: Mapping[str, str]) -> RowSource:
        path = (self._root / name).resolve()
        if not path.is_relative_to(self._root):
            raise SourceError(f"{name} leads out of {self._root}, where nothing is read")
        if not path.is_file() and not path.is_dir():
            raise SourceError(f"{path} is missing; put it back where it was")
        sources = open_sources(str(path), columns, images=self._images)
        if len(sources) != 1:
            raise SourceError(f"{path} is not the data set that it was; restore it")
        return sources[0]


def _checked(reference: Reference, row: Sample | BadRow | None) -> Conversation | str:
    if isinstance(row, Sample) and row.content_hash == reference.content_hash:
        return Conversation(row.messages, row.tools)
    reason = f" ({row.reason})" if isinstance(row, BadRow) else ""
    return (
        f"{reference.path}:{reference.position} has changed since it was added{reason}; restore "
        "the file or add it again"
    )
