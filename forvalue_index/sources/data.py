"""What a user passes as data, and how its rows are to be read."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from os import PathLike
from typing import Any, TypedDict

from forvalue_index.settings import refuse_on_bad
from forvalue_index.sources.columns import ignoring
from forvalue_index.sources.source import RowSource, open_sources


class DataOptions(TypedDict, total=False):
    """The fields of `Data` that say how rows are read, as keyword arguments."""

    columns: Mapping[str, str] | None
    on_bad: str
    media_root: str | PathLike[str] | None
    ignore: str | Collection[str]
    split: str | None
    config: str | None


@dataclass(frozen=True)
class Data:
    """A data set, and how it is read.

    Args:
        rows: a path, a glob, an address, the id of a data set of the Hugging Face hub, `-` for
            standard input, a list of these, a data set of `datasets`, a data frame of pandas or
            polars, a table of pyarrow, or an iterable of dicts.
        columns: field (prompt, response, messages, text, images, id, system, input, history,
            choices, tools, chosen, rejected, texts, and of tokenised rows input_ids, labels,
            attention_mask, completion_mask, assistant_masks, position_ids, seq_lengths) to column
            name. `{"id": ""}` says that no column is the id: samples are known by their content
            then.
        on_bad: `fail` raises on a row that is not usable, `skip` leaves it out and says so.
        media_root: the directory that paths of images count from, and must stay in; by default
            that of the data file, or the working directory for rows that come from none.
        ignore: names of columns that are only metadata, and of fields of turns that are left out.
        split: which split, where the data have several: a saved or loaded DatasetDict, a data set
            of the hub, or a folder whose files are named after splits.
        config: which configuration of a data set of the hub.

    Raises:
        UsageError: `on_bad` is neither.
    """

    rows: Any
    columns: Mapping[str, str] | None = None
    on_bad: str = "fail"
    media_root: str | PathLike[str] | None = None
    ignore: str | Collection[str] = ()
    split: str | None = None
    config: str | None = None

    def __post_init__(self) -> None:
        refuse_on_bad(self.on_bad)

    @classmethod
    def of(cls, rows: Any, options: DataOptions | None = None) -> Data:
        """Rows with options; what is `Data` already keeps those that are not given."""
        data = rows if isinstance(rows, Data) else cls(rows)
        return replace(data, **options) if options else data

    def open(self, *, images: bool) -> list[RowSource]:
        """Its sources, for a model that reads `images` or text alone.

        Raises as `open_sources` does, and UsageError for names that cannot be ignored.
        """
        return open_sources(
            self.rows,
            ignoring(self.columns, self.ignore),
            self.media_root,
            images=images,
            split=self.split,
            config=self.config,
        )
