"""From a conversation to the text that a model reads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.contracts import Tokenizer
from forvalue_index.model.template_source import with_fixed_date
from forvalue_index.sources.sample import ASSISTANT, Image, Message, Sample

# What a known turn says, by which a template's headers are found.
SENTINEL = "\N{OBJECT REPLACEMENT CHARACTER}content"
USER = "user"
TAGS = re.compile(r"(\s|<[^<>]*>)*")
_ASKED, _SAID = Message(USER, "x"), Message(ASSISTANT, SENTINEL)


class Chat(NamedTuple):
    """A conversation as templates take it: turns, and the tools that the assistant may call."""

    turns: list[dict[str, Any]]
    tools: list[Mapping[str, Any]] | None = None

    def until(self, turn: int) -> Chat:
        """What is said before a turn."""
        return self._replace(turns=self.turns[:turn])


class ChatTemplate:
    """Renders conversations with the chat template of a tokenizer.

    Where `image_token` stands for an image, content is given as a list of parts to templates that
    take one, as some of them pass over all other content; else the token stands in the text.
    """

    def __init__(self, tokenizer: Tokenizer, *, image_token: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._image_token = image_token
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added if token.special}
        self.special = tuple(
            token for token in special | set(tokenizer.all_special_tokens) if token
        )
        self.end_token: str | None = tokenizer.special_tokens_map.get("eos_token")
        # By role, whether content is to be a list of parts.
        self._takes_parts: dict[str, bool] = {}
        self._sources: dict[bool, str] = {}
        self._mentioned: dict[str, bool] = {}
        self._leads: dict[bool, str] = {}

    def chat(self, sample: Sample) -> Chat:
        """A sample as the template takes it."""
        turns = [self._turn(message) for message in sample.messages]
        return Chat(turns, list(sample.tools) or None)

    def known_answer(self) -> dict[str, Any]:
        """A turn in which the assistant says SENTINEL."""
        return self._turn(_SAID)

    def question(self) -> dict[str, Any]:
        """A turn in which the user says something."""
        return self._turn(_ASKED)

    def rendered(
        self, chat: Chat, *, generation_prompt: bool = False, source: str | None = None
    ) -> str:
        """The text of a conversation, by this template or a changed `source` of it.

        Raises BadSampleError where the template refuses it.
        """
        source = source or self.source(tools=chat.tools is not None)
        try:
            text: str = self._tokenizer.apply_chat_template(
                chat.turns,
                tools=chat.tools,
                chat_template=source,
                tokenize=False,
                add_generation_prompt=generation_prompt,
            )
        except Exception as error:  # A template is a program, and fails as programs do.
            roles = ", ".join(str(turn["role"]) for turn in chat.turns)
            raise BadSampleError(f"the chat template refuses the roles {roles}: {error}") from error
        return text

    def source(self, *, tools: bool) -> str:
        """The template that is used with or without tools, as some models have one for each.

        Raises BadSampleError where there is none.
        """
        if tools not in self._sources:
            try:
                chosen = self._tokenizer.get_chat_template(None, [{}] if tools else None)
            except Exception as error:
                raise BadSampleError(f"there is no chat template: {error}") from error
            self._sources[tools] = with_fixed_date(str(chosen))
        return self._sources[tools]

    def mentions(self, name: str) -> bool:
        """Whether the template speaks of a field of that name at all."""
        if name not in self._mentioned:
            word = re.compile(rf"\b{re.escape(name)}\b")
            sources = (self.source(tools=tools) for tools in (False, True))
            self._mentioned[name] = any(word.search(source) for source in sources)
        return self._mentioned[name]

    @cached_property
    def generation_prompt(self) -> str | None:
        """What the template writes before an answer when asked for one, None if nobody knows."""
        asked = Chat([self.question()])
        try:
            before, after = (self.rendered(asked, generation_prompt=on) for on in (False, True))
        except BadSampleError:
            return None
        if before == after:
            return self._always_appended()
        if after.startswith(before):
            return after[len(before) :]
        return after[self._shared(before, after) :]

    def _always_appended(self) -> str:
        """What a template that passes over the wish for a generation prompt puts at the end."""
        try:
            text = self.rendered(Chat([self.question(), self.known_answer()]))
        except BadSampleError:
            return ""
        rest = text.rpartition(SENTINEL)[2]
        return rest.partition(self.end_token)[2].lstrip() if self.end_token else ""

    def _shared(self, text: str, other: str) -> int:
        """Up to where two texts are equal: the last special token or white space in common."""
        differs = (at for at, (one, two) in enumerate(zip(text, other, strict=False)) if one != two)
        common = text[: next(differs, min(len(text), len(other)))]
        ends = [common.rfind(token) + len(token) for token in self.special if token in common]
        spaces = [found.end() for found in re.finditer(r"\s", common)]
        return max([0, *ends, *spaces[-1:]])

    def lead(self, *, last: bool) -> str:
        """What the template writes between the generation prompt and an answer.

        As a thought that is empty, or the name of a channel. Where answers do not begin with the
        generation prompt (it opens a thought), only tags count: other text belongs to the header.
        """
        if last not in self._leads:
            self._leads[last] = self._find_lead([] if last else [self.question()])
        return self._leads[last]

    def _find_lead(self, following: Sequence[dict[str, Any]]) -> str:
        asked = Chat([self.question()])
        try:
            prompted = self.rendered(asked, generation_prompt=True)
            text = self.rendered(Chat([*asked.turns, self.known_answer(), *following]))
        except BadSampleError:
            return ""
        before, found, _ = text.partition(SENTINEL)
        if found and before.startswith(prompted):
            return before[len(prompted) :]
        rest = before[self._shared(prompted, before) :] if found else ""
        return rest if TAGS.fullmatch(rest) else ""

    def image_mark(self) -> str:
        """What the template writes for an image between two texts."""
        token = self._image_token or ""
        image = Image("", 1, 1, at=len(SENTINEL))
        asked = self._turn(Message(USER, 2 * SENTINEL, images=(image,)))
        try:
            text = self.rendered(Chat([asked, self._turn(Message(ASSISTANT, "x"))]))
        except BadSampleError:
            return token
        between = text.split(SENTINEL)
        return between[1] if len(between) == 3 and between[1].count(token) == 1 else token

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
            text = self.rendered(Chat([self._turn(message) for message in conversation]))
        except BadSampleError:
            return False
        return text.count(SENTINEL) == 1 and "'text'" not in text


def _conversations_with(role: str) -> Iterator[list[Message]]:
    """Conversations in which a role says something known, where templates may expect it."""
    known = Message(role, SENTINEL)
    if role == USER:
        yield [known, Message(ASSISTANT, "x")]
    elif role == ASSISTANT:
        yield [_ASKED, known]
    else:
        yield [known, _ASKED, Message(ASSISTANT, "x")]
        yield [_ASKED, Message(ASSISTANT, "x"), known, Message(ASSISTANT, "x")]
