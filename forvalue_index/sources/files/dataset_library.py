"""Data sets of the `datasets` library: saved, of the hub, or in memory. Its home."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import SourceError, UsageError, missing_extra
from forvalue_index.sources.cell_values import ARROW
from forvalue_index.sources.files.arrow_rows import rows_of
from forvalue_index.sources.files.formats import format_of
from forvalue_index.sources.files.rows import DataSet, Rows, reachable, readable

BATCH_ROWS = 64
HUB_URL = "hf://datasets/"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
DECODED = ("Image", "Audio", "Video", "Pdf", "Nifti", "Mesh")


def saved_splits(name: str) -> dict[str, str]:
    """The folders that `save_to_disk` of a DatasetDict left here, by their splits."""
    path = Path(name)
    listing = path / "dataset_dict.json"
    if not listing.is_file():
        return {}
    try:
        splits = json.loads(listing.read_text("utf-8"))["splits"]
        return {str(split): str(path / str(split)) for split in splits}
    except (OSError, ValueError, TypeError, LookupError, RecursionError) as error:
        raise SourceError(
            f"{listing} does not list the splits of a saved data set ({error!r}); name the folder "
            "of one split"
        ) from error


def is_saved(name: str) -> bool:
    """Whether `save_to_disk` of a Dataset left this folder."""
    return (Path(name) / "state.json").is_file()


def saved_data_set(name: str) -> DataSet:
    """A data set that the library saved; images are read as the bytes of their files."""
    path = Path(name)
    library("a saved data set")
    parent = path.absolute().parent
    return DataSet(name, lambda _: _saved_rows(path), path, images=parent, origin=ARROW)


def _saved_rows(path: Path) -> Rows:
    with readable(str(path)):
        yield from _arrow_rows(library("a saved data set").load_from_disk(str(path)))


def hub_id(name: str) -> str | None:
    """The id of a data set of the hub that a name stands for, or None where it stands for none."""
    short = name.removeprefix(HUB_URL).rstrip("/")
    if not HUB_ID.fullmatch(short) or format_of(short) is not None:
        return None
    # Below a folder that is there it is a path with a fault.
    is_path = short == name and Path(name).parent.is_dir()
    return None if is_path else short


def hub_data_set(name: str, config: str | None, split: str | None) -> DataSet:
    """One split of a data set of the hub, kept in the library's cache. Runs no code of the hub."""
    short = hub_id(name) or name
    datasets = library(f"{name} is no path here, and as a data set of the Hugging Face hub it")
    with reachable(f"{name}, as a data set of the Hugging Face hub,"), _quiet():
        try:
            if split is None:
                raise SourceError(_choose(name, datasets.get_dataset_split_names(short, config)))
            data = datasets.load_dataset(short, name=config, split=split)
        except ValueError as error:
            names = datasets.get_dataset_config_names(short) if config is None else []
            if len(names) < 2:
                raise
            listed = f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}"
            raise SourceError(
                f"{name} has the configurations {listed}: choose one, as in --config {names[0]}"
            ) from error
    called = "/".join(part for part in (short, config, split) if part)
    return DataSet(called, lambda _: _arrow_rows(data), origin=ARROW)


def rows_in_memory(data: Any) -> DataSet:
    """A Dataset, read as Arrow where nothing in it is decoded, or what is streamed."""
    if hasattr(data, "with_format") and _is_plain(data):
        return DataSet("<iterable>", lambda _: _arrow_rows(data), origin=ARROW)
    return DataSet("<iterable>", lambda _: enumerate(data, 1), origin=ARROW)


def one_split(name: str, splits: dict[str, Any], split: str | None) -> Any:
    """What stands under a split. Raises SourceError where none is chosen, or one there is not."""
    if split is None:
        raise SourceError(_choose(name, list(splits)))
    if split not in splits:
        raise SourceError(f"{name} has no split '{split}': it has {', '.join(splits)}")
    return splits[split]


def refuse_split(name: str, config: str | None, split: str | None) -> None:
    """Raise UsageError where options choose among what a data set does not have."""
    if split is not None:
        raise UsageError(f"--split {split}: {name} has no splits; leave it out")
    refuse_config(name, config)


def refuse_config(name: str, config: str | None) -> None:
    """Raise UsageError for a configuration of what is no data set of the hub."""
    if config is not None:
        raise UsageError(
            f"--config {config}: only data sets of the hub have configurations, and {name} is none"
        )


def library(need: str) -> Any:
    """The library itself. Raises MissingDependencyError where it is not installed."""
    try:
        import datasets
    except ImportError as error:
        told = f"{need} needs the datasets library, which is not installed:"
        raise missing_extra(told, "datasets") from error
    return datasets


def _choose(name: str, splits: list[str]) -> str:
    first = splits[0] if splits else "NAME"
    return (
        f"{name} has the splits {', '.join(splits)}, which belong in no one index: choose one, as "
        f"in --split {first} (split='{first}' in Python)"
    )


def _is_plain(data: Any) -> bool:
    """Whether rows are nothing but what Arrow holds: no format of the user's, nothing decoded."""
    facts = getattr(data, "format", None)
    if not isinstance(facts, dict) or facts.get("type") is not None:
        return False
    if set(facts.get("columns") or data.column_names) != set(data.column_names):
        return False
    return not any(f"{kind}(" in repr(data.features) for kind in DECODED)


def _arrow_rows(data: Any) -> Rows:
    tables = data.with_format("arrow").iter(batch_size=BATCH_ROWS)
    first = data.with_format("arrow")[:0]
    return rows_of(first.schema, (batch for table in tables for batch in table.to_batches()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the progress bars and tries of the libraries; the caller draws its own."""
    datasets = library("a data set of the hub")
    hidden = datasets.utils.are_progress_bars_disabled()
    loggers = [logging.getLogger(name) for name in ("datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    datasets.utils.disable_progress_bars()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if not hidden:
            datasets.utils.enable_progress_bars()
