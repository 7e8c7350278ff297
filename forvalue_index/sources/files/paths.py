"""What lies at a path, pattern or address, or in memory: one data set or several."""

from __future__ import annotations

import glob
import shutil
import sys
import tempfile
import weakref
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.files.data_files import DataFile
from forvalue_index.sources.files.dataset_library import (
    hub_data_set,
    hub_id,
    is_saved,
    one_split,
    refuse_config,
    refuse_split,
    saved_data_set,
    saved_splits,
)
from forvalue_index.sources.files.folders import shards
from forvalue_index.sources.files.formats import Reader, origin_of, reader_of
from forvalue_index.sources.files.json_rows import read_jsonl
from forvalue_index.sources.files.remote import is_address, local_path, remote_files
from forvalue_index.sources.files.rows import Columns, DataSet, Rows, reachable, readable


@dataclass(frozen=True)
class Part:
    """Which part of a data set is meant, where it has several."""

    split: str | None = None
    config: str | None = None


def data_sets_at(name: str, part: Part) -> list[DataSet]:
    """The data sets that a path, pattern, address or id of the hub stands for, in order.

    Raises SourceError where there is none, or splits would mix.
    """
    if name == "-":
        refuse_split("standard input", part.config, part.split)
        return [_of_stdin()]
    if is_address(name):
        path = None if hub_id(name) else local_path(name)
        if path is None:
            return _at_address(name, part)
        name = str(path)
    with readable(name):
        if not Path(name).exists():
            name = str(Path(name).expanduser()) if name.startswith("~") else name
        if Path(name).exists():
            return _at_path(name, part)
        if glob.has_magic(name):
            return _matching(name, part)
        if hub_id(name):
            return [hub_data_set(name, part.config, part.split)]
        raise SourceError(
            f"{name} does not exist: check the path, or pass - for stdin, or OWNER/NAME for a data "
            "set of the Hugging Face hub"
        )


def _at_address(name: str, part: Part) -> list[DataSet]:
    if hub_id(name):
        return [hub_data_set(name, part.config, part.split)]
    refuse_config(name, part.config)
    return [
        DataSet(
            file.name,
            partial(_remote_rows, reader_of(file.name), file),
            origin=origin_of(file.name),
        )
        for file in remote_files(name, part.split)
    ]


def _remote_rows(read: Reader, file: DataFile, columns: Columns) -> Rows:
    with reachable(file.name):
        yield from read(file, columns)


def _at_path(name: str, part: Part) -> list[DataSet]:
    refuse_config(name, part.config)
    splits = saved_splits(name)
    if splits:
        return [saved_data_set(one_split(name, splits, part.split))]
    if Path(name).is_dir() and not is_saved(name):
        found = shards(name.rstrip("/") or name, partial(_listed, Path(name)), part.split)
        return [_file(str(Path(name) / shard)) for shard in found]
    refuse_split(name, None, part.split)
    return [saved_data_set(name) if Path(name).is_dir() else _file(name)]


def _listed(folder: Path, below: str) -> dict[str, bool]:
    return {entry.name: entry.is_dir() for entry in (folder / below).iterdir()}


def _file(name: str) -> DataSet:
    path, read = Path(name), reader_of(name)
    return DataSet(
        name,
        partial(_local_rows, read, DataFile.at(path)),
        path,
        images=path.absolute().parent,
        origin=origin_of(name),
    )


def _local_rows(read: Reader, file: DataFile, columns: Columns) -> Rows:
    with readable(file.name):
        yield from read(file, columns)


def _matching(name: str, part: Part) -> list[DataSet]:
    """Files and saved data sets that a pattern matches, sorted; of one that has splits only one."""
    paths = glob.glob(name, recursive=True)  # noqa: PTH207 - Path.glob refuses absolute patterns
    files = [p for p in sorted(paths) if Path(p).is_file() or is_saved(p) or saved_splits(p)]
    if not files:
        raise SourceError(f"{name} matches no file: check the pattern, and quote it in a shell")
    # Of a saved data set its folder may be matched, or the files in it.
    homes = {at for p in files for at in (Path(p), Path(p).parent) if is_saved(str(at))}
    for folder in sorted({str(home.parent) for home in homes}):
        splits = {s for s, at in saved_splits(folder).items() if Path(at) in homes}
        if len(splits) > 1:
            one_split(f"{name} matches several: {folder}", saved_splits(folder), None)
    with_splits = part if any(map(saved_splits, files)) else Part()
    refuse_split(name, part.config, None if with_splits is part else part.split)
    plain = replace(part, split=None)
    return [found for p in files for found in _at_path(p, part if saved_splits(p) else plain)]


def _of_stdin() -> DataSet:
    """JSONL from stdin, kept in a temporary file for as long as the data set is referred to."""
    with tempfile.NamedTemporaryFile(delete=False) as spool:
        shutil.copyfileobj(sys.stdin.buffer, spool)
    path = Path(spool.name)
    file = replace(DataFile.at(path, "<stdin>"), path=None)
    weakref.finalize(file, path.unlink, missing_ok=True)
    return DataSet("<stdin>", partial(_local_rows, read_jsonl, file), images=Path.cwd())
