"""Pairs of a preferred and a refused answer: the chosen one is read, the other is metadata.

Either is text or a list of turns, with the prompt that both share or without it. What the
assistant says in that prompt is no label, as TRL takes it (`extract_prompt` in its data_utils).
"""

from __future__ import annotations

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.sample import ASSISTANT
from forvalue_index.sources.shapes.image_places import Turn
from forvalue_index.sources.shapes.pairs import Cells, Columns, prompt_turns
from forvalue_index.sources.shapes.roles import SYSTEM, USER
from forvalue_index.sources.shapes.transcripts import conversation
from forvalue_index.sources.shapes.turns import Reading, as_context


def preference_turns(cells: Cells, columns: Columns, how: Reading) -> list[Turn]:
    """The turns up to the chosen answer, the shared prompt once. Raises BadSampleError."""
    column = columns["chosen"]
    chosen = conversation(cells["chosen"], column, ASSISTANT, how)
    prompt = prompt_turns(cells, columns, how) if "prompt" in cells else []
    if not any(turn.role == USER for turn in chosen):
        if not prompt:
            raise BadSampleError(
                f"'{column}' has no question, and no column is the prompt; name it with --columns "
                "prompt=COLUMN"
            )
        return prompt + chosen
    first = _first_words(prompt, chosen)
    if not _is_part(prompt[len(first) :], chosen):
        raise BadSampleError(
            f"'{column}' has questions, and '{columns['prompt']}' is none of them; leave out one"
        )
    rejected = conversation(cells["rejected"], columns["rejected"], ASSISTANT, how)
    shared = _shared(chosen, rejected)
    return first + as_context(chosen[:shared]) + chosen[shared:]


def _first_words(prompt: list[Turn], chosen: list[Turn]) -> list[Turn]:
    """The system turn of a prompt, where the conversation with its answer has none."""
    has_one = any(turn.role == SYSTEM for turn in chosen)
    return [] if has_one else [turn for turn in prompt[:1] if turn.role == SYSTEM]


def continued(turns: list[Turn], cells: Cells, columns: Columns, how: Reading) -> list[Turn]:
    """A conversation with its chosen answer where that is missing at its end (LLaMA-Factory).

    Raises BadSampleError where it has an answer, and another column is named as the chosen one.
    """
    if "chosen" not in cells or not turns:
        return turns
    column = columns["chosen"]
    if turns[-1].role != ASSISTANT:
        return as_context(turns) + conversation(cells["chosen"], column, ASSISTANT, how)
    if column.lower() != "chosen":
        raise BadSampleError(
            f"'{columns['messages']}' ends with an answer, and --columns names '{column}' as the "
            f"chosen one; leave one out, as with --ignore {columns['messages']}"
        )
    return turns


def _is_part(prompt: list[Turn], conversation: list[Turn]) -> bool:
    """Whether a conversation holds all that a prompt says."""
    said = {_said(turn) for turn in conversation}
    return all(_said(turn) in said for turn in prompt)


def _shared(chosen: list[Turn], rejected: list[Turn]) -> int:
    """How many turns both begin with; the last one of either is its answer."""
    most = min(len(chosen), len(rejected)) - 1
    same = (n for n in range(most) if _said(chosen[n]) != _said(rejected[n]))
    return max(0, next(same, most))


def _said(turn: Turn) -> tuple[str, str, str]:
    calls = str(turn.extra.get("tool_calls", ""))
    words = "".join(part for part in turn.parts if isinstance(part, str))
    return turn.role, words.strip(), calls
