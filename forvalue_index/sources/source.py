"""Data sets as samples: a `RowSource` for each file, folder, address or object that has rows.

A bad row never stops a source.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice, takewhile
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

from forvalue_index.exceptions import BadSampleError, SourceError, UsageError
from forvalue_index.sources.cell_values import JSON, kind_of
from forvalue_index.sources.columns import checked_columns, to_sample
from forvalue_index.sources.files.frames import data_set_in
from forvalue_index.sources.files.json_rows import lines_at
from forvalue_index.sources.files.paths import Part, data_sets_at
from forvalue_index.sources.files.rows import DataSet, Rows, Unreadable, readable
from forvalue_index.sources.images import ImageFiles
from forvalue_index.sources.sample import BadRow, Sample
from forvalue_index.threads import parallel_map

Location = tuple[int, int | None]
ROWS_AT_ONCE = 64


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

    def first(self, count: int) -> RowSource:
        """The same source up to some rows; nothing after them is read."""
        return replace(self, read=lambda: islice(self.read(), count))

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
        with readable(self.name):
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
    split: str | None = None,
    config: str | None = None,
) -> list[RowSource]:
    """Open a path, glob, address or id of the hub, "-" for stdin, a list of these, or rows.

    Rows may be a data frame, a table of Arrow, a data set of `datasets` or an iterable of dicts.
    `columns` says which column holds a field of FIELDS, where the names of the columns do not tell.
    Where data have splits or configurations, `split` and `config` choose one. Paths of images count
    from `media_root`, or else from the directory of a file, the working directory for rows without
    one, and no image elsewhere is opened; without `images`, none at all.

    Raises UsageError, SourceError and MissingDependencyError.
    """
    columns = checked_columns(columns or {})
    media = _Media(None if media_root is None else _media_root(media_root), images)
    if isinstance(data, str | Path):
        data = [data]
    if isinstance(data, list | tuple) and any(isinstance(item, str | Path) for item in data):
        part = Part(split, config)
        found = [one for item in data for one in data_sets_at(_name_of(item), part)]
    else:
        found = [data_set_in(data, split, config)]
    return [_row_source(one, columns, media) for one in found]


def _name_of(item: Any) -> str:
    if not isinstance(item, str | Path):
        raise SourceError(f"{kind_of(item)} among paths: pass either paths or rows, not both")
    return str(item)


def _row_source(found: DataSet, columns: Mapping[str, str], media: _Media) -> RowSource:
    return RowSource(
        found.name,
        partial(found.read, columns),
        columns,
        media.beside(found.images),
        found.rereadable,
        found.path,
        found.origin,
    )


class _Media(NamedTuple):
    """Where the images of data are looked for, if they are read at all."""

    root: Path | None
    wanted: bool

    def beside(self, data: Path | None) -> ImageFiles:
        """What opens the images of data in a directory, or of data in none."""
        if self.root is None:
            return ImageFiles(data, wanted=self.wanted)
        return ImageFiles(self.root, beside=data, wanted=self.wanted)


def _media_root(media_root: str | PathLike[str]) -> Path:
    root = Path(media_root).expanduser().absolute()
    if not root.is_dir():
        raise UsageError(f"--media-root {media_root} is not a directory; name where images lie")
    return root
