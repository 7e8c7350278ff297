"""The promises between modules. An implementation needs no inheritance, only these methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from forvalue_index.model.encoded import Batch, Inputs
from forvalue_index.sources.sample import Image

if TYPE_CHECKING:
    from torch import Tensor

    from forvalue_index.sources.images import Pixels


@runtime_checkable
class Tokenizer(Protocol):
    """The part of a fast Hugging Face tokenizer that prompts are made with."""

    chat_template: Any
    all_special_tokens: list[str]
    special_tokens_map: Mapping[str, Any]
    added_tokens_decoder: Mapping[int, Any]

    def __call__(self, text: str, **options: Any) -> Any:
        """Tokenise one string."""
        ...

    def convert_tokens_to_ids(self, tokens: str) -> Any:
        """The id of one token."""
        ...

    def decode(self, token_ids: Sequence[int], **options: Any) -> Any:
        """The text of tokens."""
        ...

    def get_chat_template(self, chat_template: str | None, tools: Any) -> str:
        """The template for conversations with or without tools."""
        ...

    def apply_chat_template(self, conversation: Sequence[dict[str, Any]], **options: Any) -> Any:
        """Render a conversation."""
        ...


class Expanded(NamedTuple):
    """A text with the tokens that stand for its images; `n_patches` is what these cost to read.

    `spans` has the characters of each image, before the text was expanded and in it.
    """

    text: str
    spans: tuple[tuple[tuple[int, int], tuple[int, int]], ...]
    n_patches: int


@runtime_checkable
class Vision(Protocol):
    """The part of a Hugging Face processor that makes of images what a model reads.

    In a text that is not expanded, `image_token` stands for an image. `context_tokens` are ids of
    tokens that stand around images, and are never said.
    """

    image_token: str
    context_tokens: Sequence[int]

    def open(self, image: Image) -> Pixels:
        """The pixels of an image. Raises BadSampleError where it is lost."""
        ...

    def expand(self, text: str, sizes: Sequence[tuple[int, int]]) -> Expanded:
        """Put the tokens for images of such widths and heights into a text.

        Raises BadSampleError where it has another number of places, or an image is refused.
        """
        ...

    def inputs(
        self, text: str, images: Sequence[Image], *, add_special_tokens: bool
    ) -> tuple[list[int], Inputs]:
        """The token ids of a text that is not expanded, and what else the model reads.

        Raises BadSampleError where an image cannot be opened, or is refused.
        """
        ...


@runtime_checkable
class InputSide(Protocol):
    """What stands before the weights of a model: samples are tokenised with it alone.

    `processor` reads images, if any are read; `placeholders` are ids of tokens that stand for
    parts of them. `context` is the most tokens that the model reads, where it says so.
    """

    @property
    def tokenizer(self) -> Any:
        """The `Tokenizer`, a Hugging Face one."""
        ...

    @property
    def processor(self) -> Any:
        """The Hugging Face processor that a `Vision` is made of, or None."""
        ...

    @property
    def placeholders(self) -> set[int]:
        """The ids of tokens that stand for something else, such as a part of an image."""
        ...

    @property
    def context(self) -> int | None:
        """The most tokens that the model reads, or None where it does not say."""
        ...


@runtime_checkable
class Trunk(Protocol):
    """A language model up to, and without, its head."""

    def hidden_states(self, batch: Batch) -> Tensor:
        """Inputs of the head where labels are predicted, [label, hidden]."""
        ...
