"""From a conversation to the text that a model reads, and to where in it the assistant speaks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import groupby
from typing import Any

import numpy as np

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.contracts import Tokenizer
from forvalue_index.sources.sample import Image, Message

Span = tuple[int, int]
Conversation = list[dict[str, Any]]

# Some chat templates print the date of today; a row must not depend on it.
TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DATE_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", *"aAbBcdFHIjmMpSTUwWxXyYZ")
SENTINEL = "\N{OBJECT REPLACEMENT CHARACTER}content"
GENERATION_BLOCK = re.compile(r"\{%-?\s*generation\s*-?%\}")
ASKED, SAID = "user", "assistant"


_ASKED, _SAID = Message(ASKED, "x"), Message(SAID, SENTINEL)


def _conversations_with(role: str) -> Iterator[list[Message]]:
    """Conversations in which a role says something known, where templates may expect it."""
    known = Message(role, SENTINEL)
    if role == ASKED:
        yield [known, Message(SAID, "x")]
    elif role == SAID:
        yield [_ASKED, known]
    else:
        yield [known, _ASKED, Message(SAID, "x")]
        yield [_ASKED, Message(SAID, "x"), known, Message(SAID, "x")]


class ChatTemplate:
    """Renders conversations with the chat template of a tokenizer.

    Where `image_token` stands for an image, content is given as a list of parts to templates that
    take one, as some of them pass over all other content; else the token stands in the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, image_token: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._image_token = image_token
        special = set(tokenizer.all_special_tokens)
        if image_token:  # processors of images replace that list by one of their own tokens
            added = tokenizer.added_tokens_decoder.values()
            special |= {token.content for token in added if token.special}
        self._special = tuple(token for token in special if token)
        self._fixed_date = _fixed_date(tokenizer.chat_template)
        self._marks_turns = bool(GENERATION_BLOCK.search(str(tokenizer.chat_template)))
        # By role, whether content is to be a list of parts.
        self._takes_parts: dict[str, bool] = {}

    def render(self, messages: Sequence[Message]) -> str:
        """The text of a conversation.

        Raises BadSampleError where the template refuses it, or, of a model of images, leaves out
        what somebody says.
        """
        text: str = self._rendered([self._turn(message) for message in messages])
        for message in messages if self._image_token else ():
            lost = [p for p in message.parts if isinstance(p, str) and p.strip() not in text]
            if lost:
                raise BadSampleError(
                    f"the chat template leaves out what the role {message.role} says; use a model "
                    "whose template renders it, or leave that turn out"
                )
        return text

    def image_mark(self) -> str:
        """What the template writes for an image between two texts."""
        token = self._image_token or ""
        image = Image("", 1, 1, at=len(SENTINEL))
        try:
            text = self._rendered(
                [
                    self._turn(Message(ASKED, 2 * SENTINEL, images=(image,))),
                    self._turn(Message(SAID, "x")),
                ]
            )
        except BadSampleError:
            return token
        between = text.split(SENTINEL)
        return between[1] if len(between) == 3 and between[1].count(token) == 1 else token

    def assistant_spans(self, messages: Sequence[Message], text: str) -> list[Span]:
        """Where the rendered text holds what the assistant says, end token included.

        A turn starts where the conversation before it, with the generation prompt, ends. It ends
        where the conversation up to it ends. Raises BadSampleError where this cannot be told.
        """
        conversation = [self._turn(message) for message in messages]
        if self._marks_turns:
            return list(self._marked_spans(conversation, text))
        spans = []
        for turn, message in enumerate(messages):
            if message.role != "assistant":
                continue
            content = message.content.strip()
            start = self._start(conversation, turn, text)
            upto, last = conversation[: turn + 1], turn + 1 == len(conversation)
            said = self._rendered_turn(upto, content, text, start, last=last)
            spans.append((start, start + len(self._without_trailing_space(said))))
        return spans

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as the template takes it."""
        if self._image_token and self._in_parts(message.role):
            parts = [
                {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"}
                for part in message.parts
            ]
            return {"role": message.role, "content": parts, **message.extra}
        content = message.text(lambda _: self._image_token or "")
        return {"role": message.role, "content": content, **message.extra}

    def _in_parts(self, role: str) -> bool:
        """Whether what a role says is rendered, and as itself, where it is a list of parts."""
        if role not in self._takes_parts:
            self._takes_parts[role] = True
            self._takes_parts[role] = any(
                self._renders_once(conversation) for conversation in _conversations_with(role)
            )
        return self._takes_parts[role]

    def _renders_once(self, conversation: Sequence[Message]) -> bool:
        try:
            text = self._rendered([self._turn(message) for message in conversation])
        except BadSampleError:
            return False
        return text.count(SENTINEL) == 1 and "'text'" not in text

    def _marked_spans(self, conversation: Conversation, text: str) -> Iterator[Span]:
        """The characters of the tokens that the template itself marks as the assistant's."""
        marked = self._rendered(
            conversation, tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )
        tokens = self._tokenizer(
            text, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        offsets = np.array(tokens["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        end = 0
        for is_said, run in groupby(marked["assistant_masks"]):
            start, end = end, end + len(list(run))
            if is_said:
                yield int(offsets[start, 0]), int(offsets[end - 1, 1])

    def _start(self, conversation: Conversation, turn: int, text: str) -> int:
        """Where in the rendered text the assistant begins to say `turn`, after its header.

        Where the generation prompt is not what the template writes before an answer (that of
        LLaVA-OneVision lacks a space), the header is what precedes a known answer.
        """
        before = ""
        if turn:  # templates cannot render no turn at all
            before = self._rendered(conversation[:turn], add_generation_prompt=True)
        if not before or not text.startswith(before):
            known = {**conversation[turn], **self._turn(_SAID)}
            marked: str = self._rendered([*conversation[:turn], known])
            before = marked.partition(SENTINEL)[0]
        if not text.startswith(before):
            raise BadSampleError(
                f"the chat template renders what precedes turn {turn + 1} otherwise once the turn "
                "is there, so the assistant's tokens cannot be told apart; use --template plain "
                "with prompt/response columns, or --labels all"
            )
        return len(before)

    def _rendered_turn(
        self, upto: Conversation, content: str, text: str, start: int, *, last: bool
    ) -> str:
        """The rendered last turn of `upto`, which stands in `text` at `start` and has `content`.

        Templates that render the last turn of a conversation in a way of their own (Qwen3 adds
        an empty thought to it) are met by the content and what follows it.
        """
        rendered: str = text if last else self._rendered(upto)
        if text.startswith(rendered):
            return rendered[start:]
        tail = rendered[rendered.rfind(content) + len(content) :]
        end = text.find(content + tail, start)
        if not content or end < 0:
            raise BadSampleError(
                f"the assistant's turn {len(upto)} is not found in what the chat template renders; "
                "use --template plain with prompt/response columns, or --labels all"
            )
        return text[start : end + len(content + tail)]

    def _without_trailing_space(self, said: str) -> str:
        """Templates put a line break after the end token that the model never has to say."""
        stripped: str = said.rstrip()
        return stripped if stripped.endswith(self._special) else said

    def _rendered(self, conversation: Conversation, **options: Any) -> Any:
        try:
            return self._tokenizer.apply_chat_template(
                conversation,
                **({"tokenize": False} | self._fixed_date | options),
            )
        except Exception as error:  # A template is a program, and fails as programs do.
            roles = ", ".join(m["role"] for m in conversation)
            raise BadSampleError(f"the chat template refuses the roles {roles}: {error}") from error


def _fixed_date(chat_template: Any) -> dict[str, str]:
    """The template, where it asks for the date, with a `strftime_now` that says TEMPLATE_DATE.

    The function is written in Jinja, as transformers hands no function of ours to a template.
    The empty expression after it keeps a line break with which the template may start.
    """
    if not isinstance(chat_template, str) or "strftime_now" not in chat_template:
        return {}
    replaced = "".join(
        f"|replace('%{d}', '{TEMPLATE_DATE.strftime(f'%{d}')}')" for d in DATE_DIRECTIVES
    )
    macro = (
        f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}"
    )
    return {"chat_template": macro + chat_template}
