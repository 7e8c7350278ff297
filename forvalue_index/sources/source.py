"""Data sets as samples: files, globs, stdin, saved data sets and iterables of dicts.

A bad row never stops a source.
"""

from __future__ import annotations

import glob
import json
import shutil
import sys
import tempfile
import weakref
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import ArrowException

from forvalue_index.exceptions import BadSampleError, SourceError, UsageError
from forvalue_index.sources.cell_values import ARROW, CSV, JSON, kind_of
from forvalue_index.sources.columns import checked_columns, to_sample
from forvalue_index.sources.formats import (
    TEXT_READERS,
    Reader,
    Rows,
    Unreadable,
    datasets_loader,
    lines_at,
    read_jsonl,
    read_parquet,
    read_saved,
)
from forvalue_index.sources.images import ImageFiles
from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.threads import parallel_map

Location = tuple[int, int | None]
ROWS_AT_ONCE = 64
# Suffixes of formats whose cells are text alone.
UNTYPED = {".csv", ".tsv"}


@dataclass(eq=False)
class RowSource:
    """A `Source` over whatever `read` yields: positions with rows.

    Images that rows name are opened by `images`; `origin` says where its cells come from.
    """

    name: str
    read: Callable[[], Rows]
    columns: Mapping[str, str]
    images: ImageFiles
    rereadable: bool = True
    path: Path | None = None
    origin: str = JSON

    def samples(self) -> Iterator[Sample | BadRow]:
        """Every row, as a sample or as the reason why it is none. Raises SourceError."""
        rows, at_once = iter(self.read()), 1
        while group := list(islice(rows, at_once)):
            checked = parallel_map(lambda row: self._checked(*row), group)
            yield from checked
            # Images of files are decoded and hashed by several threads. Rows of whoever gave an
            # iterable may share a Pillow image, which only one thread may read.
            with_images = any(isinstance(one, Sample) and one.images for one in checked)
            at_once = ROWS_AT_ONCE if with_images and self.path is not None else 1

    def samples_at(self, locations: Collection[Location]) -> dict[Location, Sample | BadRow]:
        """What is at locations in a file: positions, with offsets where they are known.

        Raises SourceError.
        """
        lines = sorted((p, offset) for p, offset in locations if offset is not None)
        found = self._at_offsets(self.path, lines) if self.path is not None and lines else {}
        last = max((p for p, offset in locations if offset is None), default=0)
        if last:
            for position, row, *_ in takewhile(lambda row: row[0] <= last, self.read()):
                if (position, None) in locations:
                    found[position, None] = self._checked(position, row)
        return found

    def _at_offsets(
        self, path: Path, lines: list[tuple[int, int]]
    ) -> dict[Location, Sample | BadRow]:
        with _readable(self.name):
            return {(line[0], line[2]): self._checked(*line) for line in lines_at(path, lines)}

    def _checked(self, position: int, row: Any, offset: int | None = None) -> Sample | BadRow:
        bad = partial(BadRow, self.name, position)
        if isinstance(row, Unreadable):
            return bad(row.reason, row.raw)
        if not isinstance(row, Mapping):
            return bad(f"the row is {kind_of(row)}, wanted an object", row)
        try:
            sample = to_sample(
                row,
                self.columns,
                images=self.images,
                source=self.name,
                position=position,
                origin=self.origin,
            )
            return sample if offset is None else replace(sample, offset=offset)
        except BadSampleError as error:
            return bad(str(error), row)
        except RecursionError:
            return bad("the row is nested too deeply; flatten its metadata")


def open_sources(
    data: Any,
    columns: Mapping[str, str] | None = None,
    media_root: str | PathLike[str] | None = None,
    *,
    images: bool = True,
) -> list[RowSource]:
    """Open a path, a glob, "-" for stdin, a list of these, or an iterable of dicts.

    A saved data set makes one source, or one per split. `columns` says which column holds a field
    of FIELDS, where the names of the columns do not tell. Paths of images count from `media_root`,
    or else from the directory of a file, the working directory for rows without one, and no image
    elsewhere is opened; without `images`, none at all.
    """
    columns = checked_columns(columns or {})
    media = _Media(None if media_root is None else _media_root(media_root), images)
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, list | tuple) and any(isinstance(item, str | Path) for item in data):
        return [source for item in data for source in _open_path(item, columns, media)]
    _refuse_what_has_no_rows(data)
    rereadable = iter(data) is not data
    files = media.beside(Path.cwd())
    rows = RowSource("<iterable>", lambda: enumerate(data, 1), columns, files, rereadable)
    rows.origin = ARROW if type(data).__module__.startswith("datasets.") else JSON
    return [rows]


def _refuse_what_has_no_rows(data: Any) -> None:
    if isinstance(data, Mapping):
        keys = ", ".join(map(str, list(data)[:8]))
        raise SourceError(
            f"a {type(data).__name__} with keys {keys} is not one data set: choose a split, as in "
            "data['train'], or pass a list of rows"
        )
    if not isinstance(data, Iterable) or isinstance(data, bytes) or hasattr(data, "iterrows"):
        raise SourceError(
            f"a {type(data).__name__} is no data set: pass a path, a datasets.Dataset or an "
            "iterable of dicts (for a data frame, frame.to_dict('records'))"
        )


class _Media(NamedTuple):
    """Where the images of data are looked for, if they are read at all."""

    root: Path | None
    wanted: bool

    def beside(self, data: Path) -> ImageFiles:
        """What opens the images of data in a directory."""
        if self.root is None:
            return ImageFiles(data, wanted=self.wanted)
        return ImageFiles(self.root, beside=data, wanted=self.wanted)


def _media_root(media_root: str | PathLike[str]) -> Path:
    root = Path(media_root).expanduser().absolute()
    if not root.is_dir():
        raise UsageError(f"--media-root {media_root} is not a directory; name where images lie")
    return root


def _open_path(path: Any, columns: Mapping[str, str], media: _Media) -> list[RowSource]:
    if not isinstance(path, str | Path):
        raise SourceError(f"{kind_of(path)} among paths: pass either paths or rows, not both")
    if str(path) == "-":
        return [_open_stdin(columns, media.beside(Path.cwd()))]
    with _readable(str(path)):
        return [
            RowSource(
                name,
                partial(_rows_of, name, read, Path(name)),
                columns,
                media.beside(Path(name).absolute().parent),
                path=Path(name),
                origin=_origin(read, name),
            )
            for match in _expand(str(path))
            for name, read in _readers(match)
        ]


def _origin(read: Reader, name: str) -> str:
    if read in (read_parquet, read_saved):
        return ARROW
    return CSV if UNTYPED & {suffix.lower() for suffix in Path(name).suffixes} else JSON


def _open_stdin(columns: Mapping[str, str], images: ImageFiles) -> RowSource:
    """JSONL from stdin, kept in a temporary file for as long as the source lives."""
    with tempfile.NamedTemporaryFile(delete=False) as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
    path = Path(spool.name)
    source = RowSource("<stdin>", partial(_rows_of, "<stdin>", read_jsonl, path), columns, images)
    weakref.finalize(source, path.unlink, missing_ok=True)
    return source


@contextmanager
def _readable(name: str) -> Iterator[None]:
    """Turn whatever a file system or a file format raises into one SourceError."""
    try:
        yield
    except (OSError, EOFError, ValueError, RecursionError, zlib.error, ArrowException) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise SourceError(f"{name} cannot be read: {reason}; check the file") from error


def _rows_of(name: str, read: Reader, path: Path) -> Rows:
    with _readable(name):
        yield from read(path)


def _expand(name: str) -> list[str]:
    """Return the path, or what it matches as a pattern: files and saved data sets, sorted."""
    if Path(name).exists():
        return [name]
    if not glob.has_magic(name):
        raise SourceError(f"{name} does not exist: check the path, or pass - for stdin")
    paths = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    matches = sorted(match for match in paths if Path(match).is_file() or _saved_splits(match))
    if not matches:
        raise SourceError(f"{name} matches no file: check the pattern, and quote it in a shell")
    return matches


def _readers(name: str) -> list[tuple[str, Reader]]:
    """Names of the data sets at a path, each with what reads it."""
    path = Path(name)
    if path.is_dir():
        splits = _saved_splits(name)
        if not splits:
            raise SourceError(
                f"{name} is a directory but no saved data set: name its files, as in {name}/*.jsonl"
            )
        datasets_loader()
        return [(split, read_saved) for split in splits]
    suffix = path.suffix.lower()
    if suffix == ".gz" and Path(path.stem).suffix.lower() in TEXT_READERS:
        suffix = Path(path.stem).suffix.lower()
    readers = TEXT_READERS | {".parquet": read_parquet}
    if suffix not in readers:
        raise SourceError(
            f"{name} has the unknown format '{suffix}': use {', '.join(readers)}, or a gzip of a "
            "text format, as .jsonl.gz"
        )
    return [(name, readers[suffix])]


def _saved_splits(name: str) -> list[str]:
    """List the folders that `save_to_disk` of a Dataset, or of a DatasetDict, left here."""
    path = Path(name)
    splits = path / "dataset_dict.json"
    if splits.is_file():
        return [str(path / split) for split in json.loads(splits.read_text("utf-8"))["splits"]]
    return [name] if (path / "state.json").is_file() else []
