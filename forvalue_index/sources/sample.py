"""The frozen records that cross module borders. Nothing here reads a file or a model."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

TEXT_ROLE, TOKENS_ROLE, ASSISTANT = "text", "tokens", "assistant"
# The field of a turn that says, where it is false, that the model is not trained to say it.
TRAINED = "train"
PREVIEW_CHARACTERS = 80
# What data sets write where an image belongs, whatever the model.
IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class Image:
    """An image, known by its pixels: `digest` is that of size and RGB values.

    `at` is its place in a message: that many characters of the text stand before it. `path` is
    where its file lies, from the directory that holds the index where it is stored there;
    `content` are the bytes of its file where it came so.
    """

    digest: str
    width: int
    height: int
    at: int = 0
    path: str | None = None
    content: bytes | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        return f"image {self.width} x {self.height}" + (f", {self.path}" if self.path else "")

    def as_dict(self) -> dict[str, Any]:
        """The image as JSON, without its pixels."""
        facts: dict[str, Any] = {
            "digest": self.digest,
            "width": self.width,
            "height": self.height,
            "at": self.at,
        }
        return facts | ({} if self.path is None else {"path": self.path})


@dataclass(frozen=True)
class Message:
    """One turn. `role` is `user`, `assistant`, `system`, ... or `text` for a plain document.

    Of a row that is tokenised already it is `tokens`, and `content` the ids, as `tokens` has it.
    `extra` holds further fields that a chat template may read, such as `tool_calls`. `images` are
    in order of their places in `content`.
    """

    role: str
    content: str
    extra: Mapping[str, Any] = field(default_factory=dict)
    images: tuple[Image, ...] = ()

    @property
    def is_trained(self) -> bool:
        """Whether the model is trained to say this: what the assistant says, unless data say no."""
        return self.role == ASSISTANT and self.extra.get(TRAINED, True) is not False

    def as_dict(self) -> dict[str, Any]:
        """The message as JSON."""
        images = {"images": [image.as_dict() for image in self.images]} if self.images else {}
        return {"role": self.role, "content": self.content, **self.extra, **images}

    def as_row(self) -> dict[str, Any]:
        """The message as a row of a data set has it, with files of images or paths to them."""
        if not self.images:
            return self.as_dict()
        parts = [
            {"type": "text", "text": part}
            if isinstance(part, str)
            else {"type": "image", "image": part.content or part.path}
            for part in self.parts
        ]
        return {"role": self.role, "content": parts, **self.extra}

    @property
    def parts(self) -> Iterator[str | Image]:
        """Text and images in order; no text is empty."""
        start = 0
        for image in self.images:
            if image.at > start:
                yield self.content[start : image.at]
            yield image
            start = image.at
        if start < len(self.content):
            yield self.content[start:]

    def text(self, show: Callable[[Image], str]) -> str:
        """The text with what `show` says of an image in place of each."""
        return "".join(part if isinstance(part, str) else show(part) for part in self.parts)

    def _hashed(self) -> dict[str, Any]:
        if not self.images:
            return self.as_dict()
        return self.as_dict() | {"images": [[image.at, image.digest] for image in self.images]}


@dataclass(frozen=True)
class Sample:
    """One row of a data set: what the model reads, and everything that came with it.

    `key` is the row's own id where it has one, else the content hash. `position` counts from 1:
    the line in a text file, the row elsewhere. `offset` is where its line begins, in bytes.
    `tools` describe what the assistant may call, as a chat template takes them. `cut_turns` counts
    turns after the assistant's last, which were left out; `unread` names columns of long text, or
    of what prompts are made of, that were not read.
    """

    messages: tuple[Message, ...]
    source: str = ""
    position: int = 0
    own_id: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    offset: int | None = field(default=None, compare=False)
    tools: tuple[Mapping[str, Any], ...] = ()
    cut_turns: int = field(default=0, compare=False)
    unread: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def content_hash(self) -> str:
        """128-bit BLAKE2b over messages and tools alone: id, source and metadata do not enter.

        Of images their pixels and places do, and where their files lie does not.
        """
        hashed: list[Any] = [message._hashed() for message in self.messages]
        if self.tools:
            hashed.append({"tools": self.tools})
        content = json.dumps(hashed, sort_keys=True, default=str)
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @property
    def key(self) -> str:
        """What names this sample within an index."""
        return self.content_hash if self.own_id is None else self.own_id

    @property
    def images(self) -> tuple[Image, ...]:
        """All images, in order."""
        return tuple(image for message in self.messages for image in message.images)

    @property
    def is_text(self) -> bool:
        """Whether this is a plain document rather than a conversation."""
        return self.messages[0].role == TEXT_ROLE

    @property
    def is_tokens(self) -> bool:
        """Whether this is tokenised already, so that its one message holds token ids."""
        return self.messages[0].role == TOKENS_ROLE

    @property
    def response(self) -> str:
        """The last assistant turn, or the document itself, or its token ids."""
        return self.messages[-1].content

    @property
    def prompt(self) -> str:
        """Everything before the last turn, one turn a line; empty for a document or tokens."""
        return "\n".join(m.content for m in self.messages[:-1])

    @property
    def preview(self) -> str:
        """One line, at most 80 characters: the last prompt turn, an arrow, the response."""
        parts = [m.text(lambda image: f"[{image.width}x{image.height}] ") for m in self.messages]
        parts = parts[-2:]
        line = " ".join(" → ".join(parts).split())
        cut = PREVIEW_CHARACTERS
        return line if len(line) <= cut else line[: cut - 1] + "…"


@dataclass(frozen=True)
class BadRow:
    """A row that is not a usable sample, with the reason. `raw` is the row as it was read."""

    source: str
    position: int
    reason: str
    raw: Any = None

    def __str__(self) -> str:
        return f"{self.source}:{self.position}: {self.reason}"


def bad_row(sample: Sample, reason: str) -> BadRow:
    """Why a row that was read as a sample cannot be used, with all that it held."""
    own_id = {} if sample.own_id is None else {"id": sample.own_id}
    messages = [message.as_row() for message in sample.messages]
    tools = {"tools": list(sample.tools)} if sample.tools else {}
    raw = {**own_id, **sample.metadata, "messages": messages, **tools}
    return BadRow(sample.source, sample.position, reason, raw)


@runtime_checkable
class Source(Protocol):
    """Rows of one data set, in order. `rereadable` says whether `samples` may be called twice.

    `path` is the file or saved data set, if it is one; `columns` says which column holds a field.
    """

    name: str
    rereadable: bool
    path: Path | None
    columns: Mapping[str, str]

    def samples(self) -> Iterator[Sample | BadRow]:
        """Every row, as a sample or as the reason why it is none. Raises SourceError."""
        ...
