"""Where in a rendered conversation the assistant's turns lie: the one rule of what labels are.

**A label lies in the rendering of a turn of the assistant that is to be trained, and every such
turn keeps its whole rendering up to its end token.** A turn begins after what the template writes
before an answer, and ends where it ends when something follows. Both are shown by rendering parts
of the conversation: they are found where these are what the whole begins with or, where a template
renders the past in another way once more is said, where they agree from something on that was said
and is marked. Where neither shows it, BadSampleError names the turn; nothing is guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import SENTINEL, Chat, ChatTemplate
from forvalue_index.model.generation_marks import checked_spans
from forvalue_index.model.marked_turns import CALLS, FIRST_MARK, Places, marked
from forvalue_index.model.template_source import marks_generation
from forvalue_index.model.tokenization import Span
from forvalue_index.sources.sample import Sample

Render = Callable[[Chat], str | None]


def assistant_spans(
    template: ChatTemplate, sample: Sample, chat: Chat, text: str, places: Places
) -> list[Span]:
    """Where `text`, the rendered `chat` of a sample, holds what the assistant is trained to say.

    Returns a span for each turn; `places` are those of what turns say. Raises BadSampleError.
    """
    finder = _TurnFinder(template, chat, text, places)
    trained = [turn for turn, message in enumerate(sample.messages) if message.is_trained]
    found = {turn: finder.span(turn) for turn in trained}
    if marks_generation(template.source(tools=chat.tools is not None)):
        found = checked_spans(template, chat, text, places, found)
    spans: dict[int, Span] = {}
    for turn, span in found.items():
        if span is None:
            raise _not_found(turn)
        spans[turn] = span
    _refuse_strangers(spans, places)
    return [_ended_once(span, text, template) for span in spans.values()]


def _ended_once(span: Span, text: str, template: ChatTemplate) -> Span:
    """A span with its end token once, where the data have it, too."""
    start, end = span
    said = text[start:end]
    token = next((token for token in template.special if said.endswith(token)), None)
    while token is not None and (rest := said[: -len(token)].rstrip()).endswith(token):
        said = rest
    return start, start + len(said)


def _not_found(turn: int) -> BadSampleError:
    return BadSampleError(
        f"the assistant's turn {turn + 1} is not found in what the chat template renders, which "
        "renders it or what precedes it in other ways once more is said; give another template "
        "with --chat-template, or use --template plain with prompt/response columns, or --labels "
        "all"
    )


class _TurnFinder:
    """Finds turns of one conversation in the text that it is rendered to."""

    def __init__(self, template: ChatTemplate, chat: Chat, text: str, places: Places) -> None:
        self._template = template
        self._chat = chat
        self._text = text
        self._places = places

    def span(self, turn: int) -> Span | None:
        """Where what the assistant says in a turn stands, or None where it cannot be shown."""
        starts = (self._behind(header, turn - 1) for header in self._headers(turn))
        start = next((start for start in starts if start is not None), None)
        end = None if start is None else self._end(turn)
        return None if start is None or end is None or end < start else (start, end)

    def _behind(self, render: Render, turn: int) -> int | None:
        """The place behind a partial rendering, which agrees at least from `turn` on."""
        before = render(self._chat)
        if before is not None and self._text.startswith(before):
            return len(before)
        for mark, place in self._places.of_turn(turn):
            partial = render(marked(self._chat, [mark]))
            parts = (partial or "").split(chr(FIRST_MARK))
            if len(parts) == 2 and self._text.startswith(parts[1], place):
                return place + len(parts[1])
        return None

    def _headers(self, turn: int) -> Iterator[Render]:
        """Ways to render all that stands before an answer, the surest first.

        Where the generation prompt is not what the template writes before an answer (that of
        LLaVA-OneVision lacks a space, others open a thought), it is what precedes a known answer.
        """
        known, asked = self._template.known_answer(), self._template.question()

        def prompted(chat: Chat) -> str | None:
            return self._rendered(chat.until(turn), generation_prompt=True) if turn else None

        def answered(following: Sequence[dict[str, object]]) -> Render:
            def render(chat: Chat) -> str | None:
                answered = chat._replace(turns=[*chat.turns[:turn], known, *following])
                before, found, _ = (self._rendered(answered) or "").partition(SENTINEL)
                lead = self._template.lead(last=not following)
                return before.removesuffix(lead) if found else None

            return render

        yield prompted
        is_last = turn + 1 == len(self._chat.turns)
        yield from map(answered, ([], [asked]) if is_last else ([asked], []))

    def _end(self, turn: int) -> int | None:
        """Where the turn ends, the white space after its end token left out."""

        def followed(chat: Chat) -> str | None:
            prompt = self._template.generation_prompt
            rendered = self._rendered(chat.until(turn + 1), generation_prompt=True)
            if prompt is None or rendered is None or not rendered.endswith(prompt):
                return None
            return rendered[: len(rendered) - len(prompt)]

        def alone(chat: Chat) -> str | None:
            return self._rendered(chat.until(turn + 1))

        said = max((place for _, place in self._places.of_turn(turn)), default=None)
        is_last = turn + 1 == len(self._chat.turns)
        if said is not None and (end := self._end_token_at_once(turn, said)) is not None:
            return end
        end = self._behind(followed, turn)
        if end is None or self._closed(end) is None:
            end = len(self._text) if is_last else self._behind(alone, turn)
        return None if end is None else self._ended(self._closed(end) or end, said)

    def _end_token_at_once(self, turn: int, said: int) -> int | None:
        """The end of the end token, where it stands right behind what is said."""
        token = self._template.end_token
        if not token or self._chat.turns[turn].get(CALLS):
            return None
        found = self._text.find(token, said)
        at_once = found >= 0 and not self._text[said:found].strip()
        return found + len(token) if at_once else None

    def _ended(self, end: int, said: int | None) -> int:
        """An end without what stands behind an end token, or with one that no token closes yet.

        Some templates put a generation prompt behind whatever is said, or an end token between two
        turns.
        """
        token, rest = self._template.end_token, self._text[end:]
        if not token:
            return end
        if said is not None and token in self._text[said:end]:
            return self._text.index(token, said) + len(token)
        if self._closed(end) is None and rest.lstrip().startswith(token):
            return end + rest.index(token) + len(token)
        return end

    def _closed(self, end: int) -> int | None:
        """The end of the end token that stands before a place, or None where none does.

        Templates put a line break after it that the model never has to say.
        """
        said = self._text[:end].rstrip()
        return len(said) if said.endswith(self._template.special) else None

    def _rendered(self, chat: Chat, *, generation_prompt: bool = False) -> str | None:
        try:
            return self._template.rendered(chat, generation_prompt=generation_prompt)
        except BadSampleError:
            return None


def _refuse_strangers(spans: Mapping[int, Span], places: Places) -> None:
    """Raise where a turn has something in it that another one says, or lacks its own."""
    for slot, positions in places.positions.items():
        for position in positions if len(positions) == 1 else ():
            holding = [turn for turn, (s, e) in spans.items() if s < position <= e]
            if slot.turn in spans and slot.turn not in holding:
                raise _not_found(slot.turn)
            others = [turn for turn in holding if turn != slot.turn]
            if others:
                raise BadSampleError(
                    f"the chat template renders turn {slot.turn + 1} within the assistant's turn "
                    f"{others[0] + 1}, so nobody knows what of it are labels; give another "
                    "template with --chat-template, or use --labels all"
                )
