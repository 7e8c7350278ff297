"""Prompt and response, with what else a prompt is made of: a passage, choices, earlier turns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import (
    is_absent,
    is_empty,
    is_list,
    is_whole_number,
    kind_of,
    parsed,
    text_of,
    without_nulls,
)
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.image_places import Turn
from forvalue_index.sources.shapes.roles import SYSTEM, USER
from forvalue_index.sources.shapes.tool_calls import CALLS, are_calls, calls_of
from forvalue_index.sources.shapes.transcripts import conversation
from forvalue_index.sources.shapes.turns import Reading, as_context, read_turns, turns_in

Cells = Mapping[str, Any]
Columns = Mapping[str, str]


def pair_turns(cells: Cells, columns: Columns, how: Reading) -> list[Turn]:
    """The turns of a row with prompt and response. Raises BadSampleError."""
    choices = _choices(cells["choices"], columns["choices"]) if "choices" in cells else None
    prompt = prompt_turns(cells, columns, how, choices)
    response, column = cells["response"], columns["response"]
    if choices:
        response = _chosen(response, choices, column)
    elif column.lower() == "answers" and are_calls(response):  # as xLAM's sets have them
        given = without_nulls(parsed(response)) if how.of_arrow else response
        return [*prompt, Turn(ASSISTANT, [""], {CALLS: calls_of(given, f"'{column}'")})]
    elif column.lower() in ("answer", "answers") and not isinstance(response, str):
        response = _first_answer(response, column)
    return prompt + conversation(response, column, ASSISTANT, how)


def prompt_turns(
    cells: Cells, columns: Columns, how: Reading, choices: Mapping[str, str] | None = None
) -> list[Turn]:
    """The turns of a prompt: what the assistant says in a list of turns is no label.

    Answers of a `history` are, as LLaMA-Factory trains them.
    """
    prompt, column = cells["prompt"], columns["prompt"]
    more = [_passage(cells["input"], columns["input"])] if "input" in cells else []
    more += ["\n".join(f"{label}. {text}" for label, text in choices.items())] if choices else []
    turns = as_context(conversation(prompt, column, USER, how))
    if any(more):
        asked = text_of(turns_in(prompt), f"'{column}'")
        turns = _with_more(turns, asked, list(filter(None, more)), column)
    if "history" not in cells:
        return turns
    return _after_history(_history(cells["history"], columns["history"], how), turns, column)


def _with_more(turns: list[Turn], asked: str, more: list[str], column: str) -> list[Turn]:
    """A prompt of one turn with what stands below it."""
    if len(turns) != 1:
        raise BadSampleError(
            f"'{column}' is a conversation, and a passage or choices stand beside it; write them "
            "into its last turn"
        )
    said = [part for part in turns[0].parts if isinstance(part, str)] or [asked]
    return [Turn(USER, ["\n\n".join([*said, *more])])]


def _after_history(history: list[Turn], turns: list[Turn], column: str) -> list[Turn]:
    """The turns of a prompt after earlier ones; its system turn stays the first."""
    first = [turn for turn in turns[:1] if turn.role == SYSTEM]
    if not history or not first:
        return history + turns
    said = [turn for turn in history if turn.role == SYSTEM]
    if said and said != first:
        raise BadSampleError(
            f"'{column}' and the history before it have system turns that differ; leave one out"
        )
    return first + [turn for turn in history if turn.role != SYSTEM] + turns[1:]


def _passage(value: Any, column: str) -> str:
    """What a prompt is about: text, or a list of texts."""
    if is_absent(value):
        return ""
    texts = value if is_list(value) else [value]
    return "\n\n".join(text_of(text, f"'{column}'") for text in texts)


def _history(value: Any, column: str, how: Reading) -> list[Turn]:
    """Earlier turns: pairs of question and answer, or messages."""
    value = parsed(value)
    if is_empty(value):
        return []
    if not is_list(value):
        raise BadSampleError(f"'{column}' is {kind_of(value)}, wanted pairs of question and answer")
    if value and all(isinstance(one, Mapping) for one in value):
        return read_turns(value, column, USER, how)
    turns = []
    for n, pair in enumerate(value, 1):
        where = f"pair {n} of '{column}'"
        if not is_list(pair) or len(pair) != 2:
            raise BadSampleError(f"{where} is no question and answer; give it two texts")
        turns.append(Turn(USER, [text_of(pair[0], f"the question of {where}")]))
        turns.append(Turn(ASSISTANT, [text_of(pair[1], f"the answer of {where}")]))
    return turns


def _choices(value: Any, column: str) -> dict[str, str]:
    """Label -> text of choices: a list, ARC's object of texts and labels, or label -> text."""
    value = parsed(value)
    if is_empty(value):
        return {}
    texts, labels = value, None
    if isinstance(value, Mapping):
        if is_list(value.get("text")) and is_list(value.get("label")):
            texts, labels = value["text"], value["label"]
        else:
            known = {str(k): v for k, v in value.items() if v is not None}
            texts, labels = list(known.values()), list(known)
    if not is_list(texts) or not all(isinstance(text, str) for text in texts):
        raise BadSampleError(f"'{column}' is {kind_of(value)}, wanted a list of texts")
    if labels is None:
        labels = _letters(texts, column)
    if len(set(map(str, labels))) != len(texts):
        raise BadSampleError(
            f"'{column}' has {len(texts)} texts and {len(labels)} labels; give each its own"
        )
    where = f"'{column}'"
    return {text_of(k, where): text_of(v, where) for k, v in zip(labels, texts, strict=True)}


def _letters(texts: Sequence[str], column: str) -> list[str]:
    if len(texts) > len(ascii_uppercase):
        raise BadSampleError(f"'{column}' has {len(texts)} choices, and 26 are the most")
    return list(ascii_uppercase[: len(texts)])


def _chosen(answer: Any, choices: Mapping[str, str], column: str) -> Any:
    """The answer as `label. text`, told by an index from 0, a label or a text.

    Text that is none of these, a worked solution, stays as it is.
    """
    labels = list(choices)
    if isinstance(answer, str):
        told = answer.strip()
        label = _told_label(told, choices, column)
        if label is None and len(told) > 2 and not _is_index(told):
            return answer
    else:
        index = int(answer) if is_whole_number(answer) else -1
        label = labels[index] if 0 <= index < len(labels) else None
    if label is None:
        raise BadSampleError(
            f"'{column}' is {answer!r}, and the choices are {', '.join(labels)}; give the label, "
            "the text or the index from 0 of one"
        )
    return f"{label}. {choices[label]}"


def _told_label(told: str, choices: Mapping[str, str], column: str) -> str | None:
    """The label of the choice that text means: its label, its text or its index."""
    by_text = [label for label, text in choices.items() if text.strip() == told]
    others = [told] if told in choices else []
    if not others and _is_index(told):
        others = list(choices)[int(told) : int(told) + 1]
    if by_text and (apart := [label for label in others if label not in by_text]):
        raise BadSampleError(
            f"'{column}' is {told!r}, which is the text of choice {by_text[0]} and stands for "
            f"{apart[0]}, too; give the label"
        )
    found = others if told in choices else by_text or others
    return found[0] if found else None


def _is_index(told: str) -> bool:
    return told.isdecimal() and len(told) < 4


def _first_answer(value: Any, column: str) -> Any:
    """The first of several right answers: a list of texts, or an object that has one as `text`."""
    found = value.get("text", value.get("value")) if isinstance(value, Mapping) else value
    if is_list(found) and all(isinstance(one, str) for one in found):
        if not found:
            raise BadSampleError(f"'{column}' holds no answer; leave the row out, or write one")
        return found[0]
    return value if found is None else found
