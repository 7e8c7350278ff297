"""Which format a file has: one reader each, by its suffix."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.cell_values import ARROW, CSV, JSON
from forvalue_index.sources.files.arrow_rows import read_arrow, read_parquet
from forvalue_index.sources.files.csv_rows import read_csv
from forvalue_index.sources.files.data_files import DECOMPRESSED, DataFile, suffixes
from forvalue_index.sources.files.json_rows import read_json, read_jsonl
from forvalue_index.sources.files.rows import Columns, Rows
from forvalue_index.sources.files.webdataset import read_webdataset

Reader = Callable[[DataFile, Columns], Rows]

# These may be compressed.
COMPRESSIBLE: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".tsv": partial(read_csv, delimiter="\t"),
    ".tar": read_webdataset,
}
ARROW_READERS: dict[str, Reader] = {
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
READERS = COMPRESSIBLE | ARROW_READERS
TEXT_ALONE = (".csv", ".tsv")


def format_of(name: str) -> str | None:
    """The suffix of the format of a file, or None where it is none that is read."""
    suffix, compression = suffixes(name)
    return suffix if suffix in (COMPRESSIBLE if compression else READERS) else None


def reader_of(name: str) -> Reader:
    """What reads a file of this name. Raises SourceError for an unknown format."""
    known = format_of(name)
    if known is None:
        suffix, compression = suffixes(name)
        raise SourceError(
            f"{name} has the unknown format '{suffix + compression}': use {', '.join(READERS)}; "
            f"text and archives also compressed, as {', '.join(DECOMPRESSED)}"
        )
    return READERS[known]


def origin_of(name: str) -> str:
    """Where the cells of a file come from, as far as that matters for what they mean."""
    known = format_of(name)
    if known in ARROW_READERS:
        return ARROW
    return CSV if known in TEXT_ALONE else JSON
