"""Which columns hold which fields: the conventions that data sets follow, by their names."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_absent
from forvalue_index.sources.shapes.dialogues import alternates
from forvalue_index.sources.shapes.fields_by_name import fits, may_be_another
from forvalue_index.sources.shapes.tokens import IDS, OF_TOKENS
from forvalue_index.sources.shapes.turns_as_rows import refuse_turns_as_rows

FIELDS = (
    *("prompt", "response", "messages", "text", "images", "id"),
    *("system", "input", "history", "choices", "tools", "chosen", "rejected", "texts"),
    *(IDS, *OF_TOKENS),
)
# In a mapping, beside fields: lower-case names, by commas, of what is left out on purpose. It is
# kept with the mapping, so that an index that refers to its data reads them again alike.
IGNORED = "ignore"

Names = str | tuple[str, ...]
PASSAGE = ("input", "context")
CHOICES = ("choices", "options")
# Field -> lower-case column, or columns in order of preference. The first convention that is met
# counts: a pair before a `text` beside it, which is often both of them in one.
CONVENTIONS: tuple[Mapping[str, Names], ...] = (
    {"messages": "messages"},
    {"messages": "conversations"},
    {"prompt": "prompt", "response": "response"},
    {"prompt": "prompt", "response": "completion"},
    {"prompt": "question", "input": "context", "choices": CHOICES, "response": "answer"},
    {"prompt": "instruction", "input": PASSAGE, "response": "output"},
    {"prompt": "instruction", "input": PASSAGE, "response": "response"},
    {"prompt": "question", "input": "context", "response": "response"},
    {"prompt": "question", "input": "context", "response": "answers"},
    {"prompt": "question", "input": "context", "choices": CHOICES, "response": "answerkey"},
    {"prompt": "inputs", "response": "targets"},
    {"prompt": "query", "input": "context", "response": "response"},
    {"prompt": "query", "input": "context", "response": "answer"},
    {"prompt": "query", "response": "answers"},
    {"prompt": "problem", "response": "solution"},
    {"prompt": "problem", "response": "answer"},
    {"prompt": "input", "response": "output"},
    {"prompt": "prompt", "chosen": "chosen", "rejected": "rejected"},
    {"prompt": "question", "input": "context", "chosen": "chosen", "rejected": "rejected"},
    {"prompt": "instruction", "input": PASSAGE, "chosen": "chosen", "rejected": "rejected"},
    {"prompt": "input", "chosen": "chosen", "rejected": "rejected"},
    {"chosen": "chosen", "rejected": "rejected"},
    {"text": "text"},
    {"tree": "prompt", "tree_id": "message_tree_id"},
    *({"messages": n} for n in ("conversation", "turns", "dialogue", "dialog", "utterances")),
)
# What pairs and conversations are made of: named where a row is read as text.
OF_PAIRS = frozenset(
    column
    for convention in CONVENTIONS
    for field, names in convention.items()
    if field in ("prompt", "response", "chosen", "rejected", "messages")
    for column in ((names,) if isinstance(names, str) else names)
)
# Met where no other is, and where the cells are lists of texts that alternate.
BY_VALUE: tuple[Mapping[str, Names], ...] = ({"texts": "texts"}, {"texts": "data"})
# Met last of all: most rows that hold tokens hold their text too.
TOKENS: Mapping[str, Names] = {IDS: IDS}
OPTIONAL = {"input", "choices"}
# Fields that go with every convention, and with all but plain text and tokens.
BESIDE: dict[str, Names] = {"id": "id", "images": ("images", "image")}
OF_CHATS: dict[str, Names] = {
    "system": ("system", "system_prompt"),
    "tools": ("tools", "functions"),
}
OF_PROMPTS: dict[str, Names] = {"history": "history"}
OF_MESSAGES: dict[str, Names] = {"chosen": "chosen", "rejected": "rejected"}
# Fields that go with some of these, and are none by themselves.
COMPANIONS = ("system", "tools", "history", "input", "choices")
# Fields that stay among the metadata, for they are not read or not all of them is.
KEPT = {"rejected", "tree_id"}
KEPT_COLUMNS = {"answers"}
# Columns that are named where they are not read, however short.
TYPICAL = {
    *("system", "system_prompt", "input", "context", "contexts", "history", "tools", "functions"),
    *("passage", "document", "article", "evidence", "background", "knowledge", "choices"),
    *("options", "video", "videos", "audio", "audios", "loss_mask"),
}


@dataclass(frozen=True)
class Layout:
    """What the columns of a row are for: `columns` is field -> column, `beside` are metadata.

    `needed` are the columns without which a row has another shape. `by_name` are fields that no
    mapping names and that may be something else; `typical` are the columns beside that are named
    where they hold something, `silent` those that never are.
    """

    columns: Mapping[str, str]
    beside: tuple[str, ...]
    images: tuple[str, ...] = ()
    by_name: tuple[str, ...] = ()
    typical: frozenset[str] = frozenset()
    silent: frozenset[str] = frozenset()
    needed: tuple[str, ...] = ()

    def fitting(self, row: Mapping[str, Any]) -> Layout:
        """The layout without fields that only have the name of what they should be."""
        others = [f for f in self.by_name if not fits(f, row[self.columns[f]])]
        return self.without(others) if others else self

    def without(self, fields: Collection[str]) -> Layout:
        """The layout with some fields' columns among the metadata."""
        columns = {f: column for f, column in self.columns.items() if f not in fields}
        left = tuple(self.columns[field] for field in fields)
        typical = self.typical | {name for name in left if name.lower() in TYPICAL}
        return replace(self, columns=columns, beside=self.beside + left, typical=typical)


def layout_of(row: Mapping[str, Any], mapped: tuple[tuple[str, str], ...]) -> Layout:
    """What the columns of a row are for. Raises BadSampleError as `find_columns` does."""
    layout = _layout_among(row, tuple(row), mapped)
    if any(is_absent(row[column]) for column in layout.needed):
        layout = _layout_of_filled(row, mapped) or layout
    return layout.fitting(row) if layout.by_name else layout


def _layout_among(
    row: Mapping[str, Any], names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]
) -> Layout:
    return _named_layout(names, mapped) or _layout_by_value(row, names, mapped)


def _layout_of_filled(row: Mapping[str, Any], mapped: tuple[tuple[str, str], ...]) -> Layout | None:
    """What the columns that are not null are for, or None where a row has no shape by them."""
    kept = {column for _, column in mapped}
    names = tuple(n for n, value in row.items() if n in kept or not is_absent(value))
    try:
        layout = _layout_among(row, names, mapped)
    except BadSampleError:
        return None
    if any(is_absent(row[column]) for column in layout.needed):
        return None
    return replace(layout, beside=(*layout.beside, *(n for n in row if n not in names)))


def find_columns(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Field -> column. A mapped field wins over, and else completes, the first convention met.

    Raises BadSampleError where a mapped column is not there, and where none is met.
    """
    layout = _named_layout(names, mapped) or _tokens_layout(names, mapped)
    if layout is None:
        raise BadSampleError(_told_of_none(names, mapped))
    return dict(layout.columns)


@lru_cache(maxsize=1024)
def _named_layout(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> Layout | None:
    return _first_met(CONVENTIONS, names, mapped)


@lru_cache(maxsize=1024)
def _tokens_layout(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> Layout | None:
    return _first_met((TOKENS,), names, mapped)


def _layout_by_value(
    row: Mapping[str, Any], names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]
) -> Layout:
    for convention in BY_VALUE:
        layout = _first_met((convention,), names, mapped)
        if layout is None:
            continue
        if "texts" in dict(mapped) or alternates(row[layout.columns["texts"]]):
            return layout
    layout = _tokens_layout(names, mapped)
    if layout is None:
        raise BadSampleError(_told_of_none(names, mapped))
    return layout


def _first_met(
    conventions: tuple[Mapping[str, Names], ...],
    names: tuple[str, ...],
    mapped: tuple[tuple[str, str], ...],
) -> Layout | None:
    chosen = dict(mapped)
    ignored = set(chosen.pop(IGNORED, "").split(","))
    no_id = chosen.get("id") == ""
    if no_id:
        del chosen["id"]
    for field, column in chosen.items():
        if column not in names:
            raise BadSampleError(f"no column '{column}' for {field}; the row has: {_listed(names)}")
    read = [name for name in names if name.lower() not in ignored]
    by_name = {name.lower(): name for name in read} | {name: name for name in read}
    for convention in conventions:
        columns = _met(convention, chosen, by_name)
        if columns is None:
            continue
        if "text" in columns and "text" not in chosen:
            refuse_turns_as_rows(names)
        columns |= _beside(convention, columns, chosen, by_name)
        if no_id:
            columns.pop("id", None)
        layout = _layout(columns, chosen, read, [name for name in names if name not in read])
        decides = convention.keys() - OPTIONAL - KEPT
        return replace(layout, needed=tuple(columns[field] for field in decides))
    return None


def _met(
    convention: Mapping[str, Names], chosen: Mapping[str, str], by_name: Mapping[str, str]
) -> dict[str, str] | None:
    """Field -> column by a convention, or None where fields are chosen or lack that it has not."""
    columns = {f: chosen.get(f) or _first(names, by_name) for f, names in convention.items()}
    columns = {field: column for field, column in columns.items() if column}
    may_be = convention.keys() | _extras(convention).keys()
    if "prompt" in convention:
        may_be |= OPTIONAL
    met = chosen.keys() <= may_be and convention.keys() <= columns.keys() | OPTIONAL
    return columns if met else None


def _first(names: Names, by_name: Mapping[str, str]) -> str:
    listed = (names,) if isinstance(names, str) else names
    return next((by_name[name] for name in listed if name in by_name), "")


def _extras(convention: Mapping[str, Names]) -> dict[str, Names]:
    """The fields that go with a convention, whether or not it names them."""
    if "text" in convention:
        return BESIDE
    if IDS in convention:
        return BESIDE | {field: field for field in OF_TOKENS}
    of_shape = OF_PROMPTS if "prompt" in convention else {}
    return BESIDE | OF_CHATS | of_shape | (OF_MESSAGES if "messages" in convention else {})


def _beside(
    convention: Mapping[str, Names],
    columns: Mapping[str, str],
    chosen: Mapping[str, str],
    by_name: Mapping[str, str],
) -> dict[str, str]:
    """Field -> column of the fields that go with a convention, and of those chosen."""
    used = set(columns.values()) | set(chosen.values())
    found = {f: _first(names, by_name) for f, names in _extras(convention).items()}
    found = {f: column for f, column in found.items() if column and column not in used}
    found |= {field: column for field, column in chosen.items() if field not in columns}
    if "messages" in convention and "chosen" in chosen:
        found.setdefault("rejected", by_name.get("chosen", chosen["chosen"]))
    if "messages" in convention and not found.keys() >= OF_MESSAGES.keys():
        found = {field: column for field, column in found.items() if field not in OF_MESSAGES}
    if columns.get("chosen") and columns["chosen"] == columns.get("rejected"):
        found["rejected"] = by_name.get("chosen", columns["rejected"])
    return found


def _layout(
    columns: Mapping[str, str], chosen: Mapping[str, str], read: list[str], ignored: list[str]
) -> Layout:
    kept = {columns[f] for f in KEPT if f in columns}
    kept |= {columns[f] for f in OF_MESSAGES if f in columns and "messages" in columns}
    kept |= {name for name in read if name.lower() in KEPT_COLUMNS}
    used = set(columns.values()) - kept
    beside = [name for name in read if name not in used]
    usual = BESIDE["images"]
    typical = TYPICAL | OF_PAIRS if "text" in columns and "text" not in chosen else TYPICAL
    return Layout(
        columns=columns,
        beside=(*beside, *ignored),
        images=tuple(name for name in read if name.lower() in usual),
        by_name=tuple(f for f in columns if f not in chosen and may_be_another(f, columns[f])),
        typical=frozenset(n for n in beside if n.lower() in typical),
        silent=frozenset([*kept, *ignored]),
    )


def _told_of_none(names: tuple[str, ...], mapped: tuple[tuple[str, str], ...]) -> str:
    by_name = {name.lower(): name for name in names} | {name: name for name in names}
    chosen = {field: column for field, column in mapped if field != IGNORED}
    companions = [field for field in COMPANIONS if field in chosen]
    others = {field: column for field, column in chosen.items() if field not in companions}
    met = next((one for one in CONVENTIONS if _met(one, others, by_name)), None)
    if companions and met:
        goes = met.keys() | _extras(met).keys() | (OPTIONAL if "prompt" in met else set())
        told = ", ".join(field for field in companions if field not in goes)
        return (
            f"--columns names {told}, and no such field goes with {' and '.join(met)}, which the "
            f"row has: {_listed(names)}; leave it out, or map the columns of another shape"
        )
    return (
        f"no messages, no prompt with response, and no text among the columns: {_listed(names)}; "
        "map them with --columns, as in prompt=QUESTION,response=REPLY"
    )


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(names[:20]) or "(none)"
