"""Rows that are tokenised already, as Hugging Face trainers, TRL and axolotl write them.

They become one message: its content are the token ids as text, its field `labels` the runs of
positions, [start, end), that are labels. Where every token but the first is one, there is no such
field, so that a row has one content hash however its labels are written.

Labels stand at the tokens that they name: the models of transformers shift them. As in TRL
(`build_labels` in its sft_trainer), labels count before masks, and of two masks both have to be 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import is_absent, is_list, is_whole_number, kind_of, parsed
from forvalue_index.sources.sample import TOKENS_ROLE, Message

Numbers = NDArray[np.int64]
Mask = NDArray[np.bool_]

IDS, LABELS, ATTENTION = "input_ids", "labels", "attention_mask"
POSITIONS, LENGTHS = "position_ids", "seq_lengths"
MASKS = ("completion_mask", "assistant_masks")
# What may stand beside the ids.
OF_TOKENS = (LABELS, ATTENTION, *MASKS, POSITIONS, LENGTHS)
NO_LABEL = -100
ZERO_OR_ONE = (ATTENTION, *MASKS)


def token_message(cells: Mapping[str, Any], columns: Mapping[str, str]) -> Message:
    """The message of a tokenised row whose fields are in `cells`, without its padding.

    `columns` has the names of their columns. Raises BadSampleError, with position and value, where
    the columns are no tokens or contradict each other, or where nothing is to be scored.
    """
    ids = _numbers(cells[IDS], columns[IDS])
    if not len(ids):
        raise BadSampleError(f"'{columns[IDS]}' is empty; wanted token ids")
    _refuse(ids < 0, ids, columns[IDS], "wanted a token id")
    found = {field: value for field, value in cells.items() if not is_absent(value)}
    lengths = found.pop(LENGTHS, None)
    read = {f: _beside(found[f], columns[f], f, ids) for f in OF_TOKENS if f in found}
    kept = _kept(read.get(ATTENTION), len(ids), columns)
    _refuse_packed(read.get(POSITIONS), lengths, kept, columns)
    mask = _label_mask(ids, read, kept, columns)
    runs = _runs(mask)
    if not runs:
        raise BadSampleError(_told_of_no_label(read, columns))
    extra = {} if runs == [[1, len(mask)]] else {LABELS: runs}
    return Message(TOKENS_ROLE, " ".join(map(str, ids[kept].tolist())), extra)


def tokens_of(message: Message, *, last: bool = False) -> tuple[Numbers, Mask]:
    """Token ids [token] of a message and which are labels, with `last` of the last run alone.

    Raises BadSampleError where it is none that `token_message` makes.
    """
    words = message.content.split()
    try:
        ids = np.array(words, dtype=np.int64)
        runs = np.array(message.extra.get(LABELS, [[1, len(ids)]]), dtype=np.int64).reshape(-1, 2)
    except (ValueError, TypeError, OverflowError):
        ids = runs = np.empty((0, 2), dtype=np.int64)
    sound = len(ids) and ids.min() >= 0 and (runs >= 0).all() and (runs <= len(ids)).all()
    if not sound or message.images:
        raise BadSampleError("its tokens or their labels are not those of a tokenised row")
    mask = np.zeros(len(ids), dtype=bool)
    for start, end in runs[-1:] if last else runs:
        mask[start:end] = True
    return ids, mask


def _numbers(value: Any, column: str, *, marks: bool = False) -> Numbers:
    """A cell as whole numbers [position]; `marks` may also be true and false."""
    found = parsed(value, "[")
    if not is_list(found):
        raise BadSampleError(f"'{column}' is {kind_of(found)}, wanted a list of whole numbers")
    if not set(map(type, found)) <= ({int, bool} if marks else {int}):
        for n, one in enumerate(found):
            if not is_whole_number(one) and not (marks and isinstance(one, bool | np.bool_)):
                told = kind_of(one) if is_list(one) or isinstance(one, Mapping) else repr(one)
                raise BadSampleError(f"{column}[{n}] is {told}, wanted a whole number")
    try:
        return np.array(found, dtype=np.int64)
    except OverflowError as error:
        raise BadSampleError(f"'{column}' has a number of more than 64 bits") from error


def _beside(value: Any, column: str, field: str, ids: Numbers) -> Numbers:
    """The numbers of a field, one for each token."""
    numbers = _numbers(value, column, marks=field in ZERO_OR_ONE)
    if len(numbers) != len(ids):
        raise BadSampleError(
            f"'{column}' has {len(numbers):,} for {len(ids):,} tokens; wanted one for each"
        )
    if field in ZERO_OR_ONE:
        _refuse((numbers != 0) & (numbers != 1), numbers, column, "wanted 0 or 1")
    return numbers


def _kept(attention: Numbers | None, n_tokens: int, columns: Mapping[str, str]) -> slice:
    """The tokens between padding."""
    if attention is None:
        return slice(0, n_tokens)
    seen = np.flatnonzero(attention)
    if not len(seen):
        raise BadSampleError(f"'{columns[ATTENTION]}' is 0 throughout: no token is left")
    kept = slice(int(seen[0]), int(seen[-1]) + 1)
    wanted = "between tokens that are read; wanted 0 for padding at the ends alone"
    _refuse(attention[kept] == 0, attention[kept], columns[ATTENTION], wanted, first=kept.start)
    return kept


def _refuse_packed(
    positions: Numbers | None, lengths: Any, kept: slice, columns: Mapping[str, str]
) -> None:
    """Raise BadSampleError for a row of several samples, of which none is to read the others."""
    told = "so the row packs several samples; write each as a row of its own"
    if lengths is not None:
        each = _numbers(lengths, columns[LENGTHS])
        if len(each) > 1:
            raise BadSampleError(f"'{columns[LENGTHS]}' has {len(each):,} lengths, {told}")
    if positions is not None:
        breaks = np.diff(positions[kept], prepend=positions[kept][0] - 1) != 1
        _refuse(breaks, positions[kept], columns[POSITIONS], told, first=kept.start)


def _label_mask(
    ids: Numbers, read: Mapping[str, Numbers], kept: slice, columns: Mapping[str, str]
) -> Mask:
    """Which of the tokens that are kept are labels; never the first, which nothing predicts."""
    mask = np.ones(len(ids[kept]), dtype=bool)
    if LABELS in read:
        labels = read[LABELS]
        mask = labels[kept] != NO_LABEL
        for n in np.flatnonzero(mask & (labels[kept] != ids[kept]))[:1] + kept.start:
            raise BadSampleError(
                f"{columns[LABELS]}[{n}] is {labels[n]}, and {columns[IDS]}[{n}] is {ids[n]}; "
                f"wanted the token itself, as trainers shift labels, or {NO_LABEL}"
            )
    else:
        for field in MASKS:
            if field in read:
                mask &= read[field][kept] == 1
    mask[0] = False
    return mask


def _runs(mask: Mask) -> list[list[int]]:
    """Where a mask is set, as [start, end) in order."""
    edges = np.diff(mask.astype(np.int8), prepend=0, append=0)
    return np.flatnonzero(edges).reshape(-1, 2).tolist()


def _refuse(wrong: Mask, numbers: Numbers, column: str, told: str, *, first: int = 0) -> None:
    """Raise BadSampleError for the first number that is wrong; the first of all is at `first`."""
    for n in np.flatnonzero(wrong)[:1].tolist():
        raise BadSampleError(f"{column}[{first + n}] is {numbers[n]}, {told}")


def _told_of_no_label(read: Mapping[str, Numbers], columns: Mapping[str, str]) -> str:
    said = [LABELS] if LABELS in read else [field for field in MASKS if field in read]
    if not said:
        return f"'{columns[IDS]}' has one token, and nothing predicts the first; nothing to score"
    names = " and ".join(f"'{columns[field]}'" for field in said)
    told = "and nothing predicts the first; nothing to score"
    return f"no token but maybe the first is a label by {names}, {told}"
