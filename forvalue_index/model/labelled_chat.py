"""A conversation as the model reads it, and which of it the assistant is trained to say."""

from __future__ import annotations

from typing import NamedTuple

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import Chat, ChatTemplate
from forvalue_index.model.left_out import refuse_left_out, unrendered_fields
from forvalue_index.model.marked_turns import find_places, with_written_arguments
from forvalue_index.model.tokenization import Span
from forvalue_index.model.turn_spans import assistant_spans
from forvalue_index.sources.sample import Sample


class LabelledChat(NamedTuple):
    """A rendered conversation; `turns` has the span of each turn that is to be trained.

    `unrendered` are fields of its turns that the template passes over.
    """

    text: str
    turns: list[Span]
    unrendered: tuple[str, ...]


def labelled_chat(template: ChatTemplate, sample: Sample, *, labels: bool = True) -> LabelledChat:
    """Render a conversation and find the assistant's turns, unless no `labels` are wanted.

    Raises BadSampleError where the template refuses it or leaves out what is said, or where a turn
    cannot be told from others.
    """
    chat, text = _rendered(template, template.chat(sample))
    places = find_places(template, chat, text)
    refuse_left_out(template, chat, text, places)
    turns = assistant_spans(template, sample, chat, text, places) if labels else []
    return LabelledChat(text, turns, tuple(unrendered_fields(template, chat, text, places)))


def _rendered(template: ChatTemplate, chat: Chat) -> tuple[Chat, str]:
    """A conversation as the template takes it, and its text.

    Most templates take the arguments of calls as objects, and a few as their JSON.
    """
    try:
        return chat, template.rendered(chat)
    except BadSampleError:
        written = with_written_arguments(chat)
        if written == chat:
            raise
        return written, template.rendered(written)
