"""What chat templates mark themselves as generated, checked against where turns lie."""

from __future__ import annotations

from collections.abc import Mapping

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import Chat, ChatTemplate
from forvalue_index.model.marked_turns import CLOSING, MARKS, OPENING, Places
from forvalue_index.model.template_source import with_generation_marks
from forvalue_index.model.tokenization import Span
from forvalue_index.sources.sample import ASSISTANT


def generated_spans(
    template: ChatTemplate,
    chat: Chat,
    text: str,
    places: Places,
    own: Mapping[int, Span | None],
) -> dict[int, list[Span]]:
    """The turns of `own`, as the template's {% generation %} blocks mark them.

    `own` are the turns that are to be trained, where they were found without the blocks. A block
    that leaves out the end token of its turn is taken up to there. Raises BadSampleError where a
    block reaches into another turn, or leaves out what the assistant says.
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
        span = own[turn]
        if span is not None:
            blocks[-1] = _ended(blocks[-1], span[1], text)
    return of_turn


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


def _ended(block: Span, end: int, text: str) -> Span:
    """The last block of a turn, up to its end token; white space behind that may be marked."""
    start, marked_end = block
    return start, end if text[end:marked_end].strip() else max(end, marked_end)


def _disagreement(how: str) -> BadSampleError:
    return BadSampleError(
        f"the {{% generation %}} marks of the chat template {how}, so they do not tell its labels; "
        "give another template with --chat-template, or use --labels all"
    )
