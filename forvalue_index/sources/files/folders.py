"""Folders of shards: files of one format in their natural order, of one split alone."""

from __future__ import annotations

import re
from collections.abc import Sequence

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.files.data_files import suffixes
from forvalue_index.sources.files.formats import format_of

# As the `datasets` library names and finds splits; https://huggingface.co/docs/datasets
SHARD = re.compile(r"(.+?)-(\d{5,})-of-(\d{5,})(?:-[0-9a-f]+)?\.")
SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
BY_WORD = {word: split for split, words in SPLITS.items() for word in words}
WORD = re.compile(r"[^a-z]+")
SHOWN = 8


def shards(folder: str, names: Sequence[str], split: str | None) -> list[str]:
    """The files of a folder that are read, in order. Raises SourceError, saying what is there.

    Names that begin with a dot or an underscore are none of data.
    """
    names = sorted((n for n in names if not n.startswith((".", "_"))), key=_natural)
    if not names:
        raise SourceError(f"{folder} is a directory without a data file; name one with some")
    _refuse_mixed(folder, names)
    by_split: dict[str | None, list[str]] = {}
    for name in names:
        by_split.setdefault(split_of(name), []).append(name)
    chosen = by_split[_chosen(folder, by_split, split)]
    _refuse_gaps(folder, chosen)
    return chosen


def split_of(name: str) -> str | None:
    """The split that a file is named after, or None."""
    shard = SHARD.match(name)
    if shard:
        return BY_WORD.get(shard[1].lower(), shard[1])
    words = [BY_WORD[word] for word in WORD.split(name.lower()) if word in BY_WORD]
    return words[0] if words else None


def _natural(name: str) -> list[tuple[int, str]]:
    """Numbers in a name by their value: 2 before 10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), part) if part.isdecimal() else (-1, part) for part in parts]


def _refuse_mixed(folder: str, names: Sequence[str]) -> None:
    kinds = {"".join(suffixes(name)) for name in names}
    unknown = [name for name in names if format_of(name) is None]
    if len(kinds) == 1 and not unknown:
        return
    there = ", ".join((unknown + [n for n in names if n not in unknown])[:SHOWN])
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    known = next((n for n in names if n not in unknown), None)
    advice = f"name its files, as in {folder}/*{''.join(suffixes(known))}" if known else "name one"
    raise SourceError(
        f"{folder} is a directory but no saved data set, and not of one format alone: {there}"
        f"{more}; {advice}"
    )


def _chosen(folder: str, by_split: dict[str | None, list[str]], split: str | None) -> str | None:
    there = ", ".join(name for name in by_split if name is not None)
    wanted = BY_WORD.get(split.lower(), split) if split else None
    if split is not None:
        if wanted not in by_split:
            has = f"its files are named after {there}" if there else "its files name none"
            raise SourceError(f"{folder} has no split '{split}': {has}")
        return wanted
    if len(by_split) == 1:
        return next(iter(by_split))
    unnamed = by_split.get(None)
    beside = f", beside {', '.join(unnamed[:SHOWN])}" if unnamed else ""
    first = next(name for name in by_split if name is not None)
    raise SourceError(
        f"{folder} holds files of the splits {there}{beside}: choose one, as in --split {first}"
    )


def _refuse_gaps(folder: str, names: Sequence[str]) -> None:
    """Raise SourceError where shards that count themselves are not all there."""
    found = [match for match in map(SHARD.match, names) if match]
    counts = {int(match[3]) for match in found}
    missing = set(range(max(counts, default=0))) - {int(match[2]) for match in found}
    if missing or len(counts) > 1:
        which = ", ".join(f"{number:05}" for number in sorted(missing)[:SHOWN])
        told = f"lacks its shards {which}" if missing else "has shards of several sets"
        raise SourceError(f"{folder} {told}; complete it, or name its files, as in {folder}/*")
