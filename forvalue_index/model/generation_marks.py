"""What chat templates mark themselves as generated, checked against where turns lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import Chat, ChatTemplate
from forvalue_index.model.marked_turns import CLOSING, MARKS, OPENING, Places
from forvalue_index.model.template_source import with_generation_marks
from forvalue_index.model.tokenization import Span
from forvalue_index.sources.sample import ASSISTANT


def checked_spans(
    template: ChatTemplate,
    chat: Chat,
    text: str,
    places: Places,
    own: Mapping[int, Span | None],
) -> dict[int, Span | None]:
    """The turns of `own`, where the template's {% generation %} blocks agree with them.

    `own` are the turns that are to be trained, as they were found without the blocks, which tell
    where a turn lies that was not found. Templates mark headers or the white space behind a turn as
    they like, so that what is said in a turn counts, and not where its block begins or ends. Raises
    BadSampleError where a block reaches into another turn, or leaves out what the assistant says.
    """
    of_turn: dict[int, list[Span]] = {turn: [] for turn in own}
    for block in _blocks(template, chat, text):
        turn = _turn_of(block, chat, places, own)
        if turn in of_turn:
            of_turn[turn].append(block)
    for turn, blocks in of_turn.items():
        for _, place in places.of_turn(turn):
            if not any(start < place <= end for start, end in blocks):
                raise _disagreement(f"leave out what turn {turn + 1} says")
        if not blocks:
            raise _disagreement(f"leave out turn {turn + 1}")
    prompted = bool(template.generation_prompt)
    return {turn: _agreed(span, of_turn[turn], prompted) for turn, span in own.items()}


def _agreed(span: Span | None, blocks: Sequence[Span], prompted: bool) -> Span:
    """A turn as it was found; where no generation prompt tells its header, as its blocks begin."""
    start, end = blocks[0][0], blocks[-1][1]
    if span is None:
        return start, end
    return span if prompted else (max(start, span[0]), span[1])


def _blocks(template: ChatTemplate, chat: Chat, text: str) -> list[Span]:
    """What the template marks, in the text that it renders the conversation to."""
    source = template.source(tools=chat.tools is not None)
    marked = template.rendered(chat, source=with_generation_marks(source, OPENING, CLOSING))
    if MARKS.sub("", marked) != text:
        raise _disagreement("cannot be told from what is rendered")
    found = [(match.group(), match.start() - n) for n, match in enumerate(MARKS.finditer(marked))]
    opened = [place for mark, place in found if mark == OPENING]
    closed = [place for mark, place in found if mark == CLOSING]
    return list(zip(opened, closed, strict=True))


def _turn_of(block: Span, chat: Chat, places: Places, own: Mapping[int, Span | None]) -> int | None:
    """The turn that a block marks, by what is said in it or by where the turn lies."""
    start, end = block
    said = {
        slot.turn
        for slot, positions in places.positions.items()
        if any(start < position <= end for position in positions)
    }
    if not said:
        spans = ((turn, span) for turn, span in own.items() if span is not None)
        return next((turn for turn, (s, e) in spans if s < end and start < e), None)
    strangers = [turn for turn in sorted(said) if chat.turns[turn]["role"] != ASSISTANT]
    if strangers or len(said) > 1:
        turn = (strangers or sorted(said)[1:])[0]
        role = chat.turns[turn]["role"]
        raise _disagreement(f"of another turn reach into turn {turn + 1}, of the {role}")
    return said.pop()


def _disagreement(how: str) -> BadSampleError:
    return BadSampleError(
        f"the {{% generation %}} marks of the chat template {how}, so they do not tell its labels; "
        "give another template with --chat-template, or use --labels all"
    )
