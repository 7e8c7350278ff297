"""Folders of shards: files of one format in their natural order, of one split alone."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial

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
HELD_OUT = ("validation", "test")
SHOWN = 8
# Where a clone of a repository of data keeps its shards.
DATA = "data"
NO_DATA = "{} is a directory without a data file; name one with some"
DOCUMENTATION = re.compile(
    r"(readme|licen[cs]e)(\.(txt|rst|html|pdf))?|.*\.md|.*croissant.*\.json"
    r"|dataset_infos?\.json|dataset_dict\.json|state\.json",
    re.IGNORECASE,
)
# The names at a path in a folder ("" is itself), and whether each is a folder.
Listing = Callable[[str], Mapping[str, bool]]


def shards(
    folder: str, listed: Listing, split: str | None, *, within: str | None = None
) -> list[str]:
    """The files of a folder that are read, in order, as paths from it on.

    They lie in it, in its folder `data`, or in folders named after splits; `within` is the split
    that it is the folder of. Names that begin with a dot or an underscore, and documentation, are
    none of data. Raises SourceError, saying what is there.
    """
    files, folders = _data_in(listed(""))
    if folders and not files:
        inner, named = _inner(folder, listed, folders, split or within)
        below = partial(_listed_below, listed, inner)
        wanted = (None, named) if named else (split, within)
        found = shards(f"{folder}/{inner}", below, wanted[0], within=wanted[1])
        return [f"{inner}/{name}" for name in found]
    names = [*files, *(f"{name}/" for name in folders)]
    if not names:
        raise SourceError(NO_DATA.format(folder))
    _refuse_mixed(folder, names)
    by_split: dict[str | None, list[str]] = {}
    for name in names:
        by_split.setdefault(split_of(name) or within, []).append(name)
    chosen = by_split[_chosen(folder, by_split, split or within)]
    _refuse_gaps(folder, chosen)
    return chosen


def _listed_below(listed: Listing, inner: str, path: str) -> Mapping[str, bool]:
    return listed(f"{inner}/{path}" if path else inner)


def _data_in(entries: Mapping[str, bool]) -> tuple[list[str], list[str]]:
    """Names of files and of folders in natural order, without what documents a data set."""
    names = sorted((n for n in entries if not n.startswith((".", "_"))), key=_natural)
    files = [n for n in names if not entries[n] and not DOCUMENTATION.fullmatch(n)]
    notes = [n for n in files if n.lower().endswith(".txt")]
    data = [n for n in files if format_of(n) is not None]
    # Several texts, or one called as a data file is, may be the data themselves.
    if data and len(notes) == 1 and not any(_stem(n) == _stem(notes[0]) for n in data):
        files.remove(notes[0])
    return files, [n for n in names if entries[n]]


def _stem(name: str) -> str:
    return name.partition(".")[0]


def _inner(
    folder: str, listed: Listing, folders: Sequence[str], split: str | None
) -> tuple[str, str | None]:
    """The one folder that holds the data, and the split it is named after, or None."""
    by_split: dict[str | None, list[str]] = {}
    others = []
    for name in folders:
        if name.lower() in BY_WORD:
            by_split.setdefault(BY_WORD[name.lower()], []).append(name)
        elif name == DATA or any(map(format_of, _data_in(listed(name))[0])):
            others.append(name)
    if others == [DATA] and not by_split:
        return DATA, None
    if not others and not by_split:
        raise SourceError(NO_DATA.format(folder))
    named = sorted(name for names in by_split.values() for name in names)
    if not others:
        chosen = _chosen(folder, by_split, split, "folders")
        if len(by_split[chosen]) == 1:
            return by_split[chosen][0], chosen
    there = ", ".join([*named, *others][:SHOWN])
    raise SourceError(
        f"{folder} holds its data in several folders: {there}; name one, as in {folder}/"
        f"{(others or named)[0]}"
    )


def split_of(name: str) -> str | None:
    """The split that a file is named after, or None."""
    shard = SHARD.match(name)
    return BY_WORD.get(shard[1].lower(), shard[1]) if shard else _kind(name)


def _kind(name: str) -> str | None:
    """Which of the usual splits a name speaks of first, or None."""
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


def _chosen(
    folder: str,
    by_split: Mapping[str | None, Sequence[str]],
    split: str | None,
    what: str = "files",
) -> str | None:
    there = ", ".join(name for name in by_split if name is not None)
    wanted = BY_WORD.get(split.lower(), split) if split else None
    if split is not None:
        if wanted not in by_split:
            has = f"its {what} are named after {there}" if there else f"its {what} name none"
            raise SourceError(f"{folder} has no split '{split}': {has}")
        return wanted
    first = next((name for name in by_split if name is not None), None)
    if len(by_split) == 1:
        if first is not None and _kind(first) in HELD_OUT:
            raise SourceError(
                f"{folder} holds {what} of the split {first} alone: say that it is meant, as in "
                f"--split {first}"
            )
        return first
    unnamed = by_split.get(None)
    beside = f", beside {', '.join(unnamed[:SHOWN])}" if unnamed else ""
    raise SourceError(
        f"{folder} holds {what} of the splits {there}{beside}: choose one, as in --split {first}"
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
