"""Files of bytes: opened wherever they lie, and decompressed by their suffix as they are read."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

BOMS = {codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32"}
BOMS |= {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


# Bytes to read. Files of fsspec and of pyarrow only act like IO[bytes].
Stream = Any


def _open_zstd(raw: Stream) -> Stream:
    unpacked: Any = pa.CompressedInputStream(pa.PythonFile(raw, "r"), "zstd")
    return io.BufferedReader(unpacked)


DECOMPRESSED: dict[str, Callable[[Stream], Stream]] = {
    ".gz": gzip.open,
    ".zst": _open_zstd,
    ".xz": lzma.open,
    ".bz2": bz2.open,
}


@dataclass(frozen=True)
class DataFile:
    """A file of rows. `path` is where it lies on this machine; `opening` opens it, to be closed."""

    name: str
    opening: Callable[[], Stream]
    path: Path | None = None

    @classmethod
    def at(cls, path: Path, name: str | None = None) -> DataFile:
        """A file on this machine."""
        return cls(str(path) if name is None else name, lambda: path.open("rb"), path)

    @property
    def suffixes(self) -> tuple[str, str]:
        """Those of format and compression, in lower case, either maybe empty."""
        return suffixes(self.name)

    @contextmanager
    def raw(self) -> Iterator[Stream]:
        """Its bytes as they are."""
        with self.opening() as raw:
            yield raw

    @contextmanager
    def content(self) -> Iterator[Stream]:
        """What is in it, decompressed as it is read."""
        with self.raw() as raw:
            compression = self.suffixes[1]
            if not compression:
                yield raw
                return
            with DECOMPRESSED[compression](raw) as stream:
                yield stream

    @contextmanager
    def anywhere(self) -> Iterator[Stream]:
        """Its bytes, of which any may be asked for; kept in a temporary file where need be."""
        with self.raw() as raw:
            if raw.seekable():
                yield raw
                return
            with tempfile.TemporaryFile() as spool:
                shutil.copyfileobj(raw, spool)
                spool.seek(0)
                yield spool


def suffixes(name: str) -> tuple[str, str]:
    """The suffixes of format and compression of a path or an address."""
    path = PurePosixPath(urlsplit(name).path if name.startswith(("http://", "https://")) else name)
    last = path.suffix.lower()
    if last not in DECOMPRESSED:
        return last, ""
    return PurePosixPath(path.stem).suffix.lower(), last


def encoding_of(start: bytes) -> str:
    """The encoding that the first bytes of a text announce: UTF-8 but for a byte order mark."""
    return next((name for mark, name in BOMS.items() if start.startswith(mark)), "utf-8-sig")
