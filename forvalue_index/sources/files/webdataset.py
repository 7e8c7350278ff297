"""Samples of a WebDataset: files of a tar archive that lie one after another and share their key.

The key is a file's path up to the first dot of its name; what follows is its field. Nothing is
written to disk, so no path in an archive leads anywhere.
Source: https://github.com/webdataset/webdataset, `tariterators.py` and `autodecode.py`.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from forvalue_index.sources.files.data_files import DataFile, Stream
from forvalue_index.sources.files.json_rows import parse_line
from forvalue_index.sources.files.rows import Columns, Rows, Unreadable
from forvalue_index.sources.images import SUFFIXES

# Field -> column, where they differ. Images of whatever format are those of the sample.
NAMES = {"txt": "text"} | {suffix[1:]: "image" for suffix in SUFFIXES}
TEXTS, NUMBERS = {"txt", "text", "transcript"}, {"cls", "cls2", "class", "count", "index", "id"}
JSONS = {"json", "jsn"}
KEY = "__key__"
MOST_BYTES = 2**30


@dataclass
class _Sample:
    """What the files of one key hold, or the first reason why it is no sample."""

    key: str
    row: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    n_bytes: int = 0

    def add(self, member: tarfile.TarInfo, name: str, archive: tarfile.TarFile) -> None:
        """Read one file. What is too large, or a link, is not read."""
        self.n_bytes += member.size
        if not member.isreg():
            self._refuse(f"{member.name} is a link or a device, wanted a file")
        elif self.n_bytes > MOST_BYTES:
            self._refuse(f"its files have more than {MOST_BYTES:,} bytes; make them smaller")
        elif not name:
            self._refuse(f"{member.name} has no suffix, which would say what it holds")
        else:
            stream = archive.extractfile(member)
            self._hold(member.name, name, stream.read() if stream else b"")

    def result(self) -> Any:
        """The row, or why there is none."""
        row = {**self.row, KEY: self.key}
        return row if self.fault is None else Unreadable(self.fault, row)

    def _hold(self, path: str, name: str, content: bytes) -> None:
        value = _value(name, content)
        if isinstance(value, Unreadable):
            self._refuse(f"{path} is {value.reason}")
            return
        fields = value if isinstance(value, dict) else {NAMES.get(name, name): value}
        for column, cell in fields.items():
            if column in self.row:
                self._refuse(f"{path} has the column '{column}' again; keep one of them")
            self.row.setdefault(column, cell)

    def _refuse(self, reason: str) -> None:
        self.fault = self.fault or reason


def read_webdataset(file: DataFile, columns: Columns) -> Rows:
    """Samples of an archive, numbered: objects of `.json` give their columns, others one each."""
    try:
        with file.content() as content:
            yield from enumerate((sample.result() for sample in _samples(content)), 1)
    except tarfile.TarError as error:
        raise ValueError(f"not a whole tar archive: {error}") from error


def _samples(content: Stream) -> Iterator[_Sample]:
    current: _Sample | None = None
    seen: set[int] = set()
    for member, archive in _members(content):
        key, name = _key_and_field(member.name)
        if current is None or current.key != key:
            if current is not None:
                yield current
            current = _Sample(key, fault=_again(key) if hash(key) in seen else None)
            seen.add(hash(key))
        current.add(member, name, archive)
    if current is not None:
        yield current


class _Member(tarfile.TarInfo):
    """A member that tells its archive where that ends as it should."""

    @classmethod
    def fromtarfile(cls, tarfile_: tarfile.TarFile) -> Any:
        """The next member."""
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.has_ended = True  # type: ignore[attr-defined]
            raise


def _members(content: Stream) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """All but folders, each to be read before the next. Raises ValueError for a damaged archive.

    The module itself takes a damaged header, and a cut between two files, for the end.
    """
    with tarfile.open(fileobj=content, mode="r|", tarinfo=_Member) as archive:
        for member in archive:
            archive.members = []  # type: ignore[attr-defined]  # It remembers every file.
            if not member.isdir():
                yield member, archive
        if not hasattr(archive, "has_ended"):
            raise ValueError("not a whole tar archive: it is cut or damaged")
        rest: Any = archive.fileobj
        while chunk := rest.read(2**16):
            if chunk.strip(b"\0"):
                raise ValueError("after the end of the tar archive comes more; split the file")


def _again(key: str) -> str:
    return f"files of the key {key} came before; let those of a sample lie one after another"


def _key_and_field(path: str) -> tuple[str, str]:
    folder, slash, name = path.rpartition("/")
    stem, _, suffix = name.partition(".")
    if not stem:  # A hidden file.
        return path, ""
    return folder + slash + stem, suffix.lower()


def _value(name: str, content: bytes) -> Any:
    """What a field holds; of those without a known form the bytes."""
    last = name.rpartition(".")[2]
    if last in JSONS:
        value = parse_line(content)
        return {name: value} if not isinstance(value, dict | Unreadable) else value
    if last not in TEXTS | NUMBERS:
        return content
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return Unreadable(f"not UTF-8: {error}")
    return int(text) if last in NUMBERS and text.strip().lstrip("-").isdecimal() else text
