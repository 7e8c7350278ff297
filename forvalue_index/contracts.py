"""The promises between modules. An implementation needs no inheritance, only these methods."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from forvalue_index.records import (
    BadRow,
    Batch,
    Image,
    Inputs,
    Message,
    Progress,
    Reference,
    Sample,
)

if TYPE_CHECKING:
    from torch import Tensor

    from forvalue_index.images import Pixels

OnProgress = Callable[[Progress], None]
OpenPixels = Callable[[Image], "Pixels"]
"""Gives the RGB pixels of an image, or raises BadSampleError."""


def ignore_progress(progress: Progress) -> None:
    """Report nothing."""


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


@runtime_checkable
class Texts(Protocol):
    """The texts of samples that the catalog only refers to."""

    def locate(self, name: str, path: Path | None) -> str:
        """A file's path as the catalog stores it. Raises UsageError where none can be stored."""
        ...

    def read(self, references: Sequence[Reference]) -> list[tuple[Message, ...] | str]:
        """The messages of each sample, or why they are not there any more."""
        ...


@runtime_checkable
class SearchIndex(Protocol):
    """Rows of float32 under int64 ids. Scores are signed inner products: larger helps more.

    `kind` says what finds them, as `--search` does.
    """

    @property
    def kind(self) -> str:
        """One of SEARCH_KINDS."""
        ...

    def search(
        self, queries: NDArray[np.float32], k: int, allowed: NDArray[np.int64] | None = None
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Ids and scores of the k best rows for each query [q, dim], among those of allowed ids.

        Best first, ties by id, never padded: fewer than k come back where there are fewer rows.
        The most harmful rows are the best rows for the negated query. Scores are those of the rows
        as they are stored, whatever found them. Refuses NaN and infinity, and another width.
        """
        ...

    def rows(self, ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """The rows of known ids, in their order, [n, dim]."""
        ...

    def __len__(self) -> int: ...


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
class Trunk(Protocol):
    """A language model up to, and without, its head."""

    def hidden_states(self, batch: Batch) -> Tensor:
        """Inputs of the head where labels are predicted, [label, hidden]."""
        ...
