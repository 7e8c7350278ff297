"""A sample as the model reads it: tokens, labels, batches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.threads import parallel_map

# What else a model reads of a sample than its tokens, by the names of its arguments.
Inputs = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, eq=False)
class Encoded:
    """A tokenised sample. `label_mask[t]` says whether token t is a label; never true at t = 0.

    Image n of the sample is what the tokens from `image_tokens[n][0]` up to `image_tokens[n][1]`
    stand for. `read_inputs` reads the images of a sample that has some; their arrays hold
    `n_patches` times the values of 14 x 14 pixels, which is what they cost to read. `unrendered`
    are fields of its turns that the chat template passes over.
    """

    token_ids: NDArray[np.int64]
    label_mask: NDArray[np.bool_]
    truncated: bool = False
    image_tokens: tuple[tuple[int, int], ...] = ()
    read_inputs: Callable[[], Inputs] | None = None
    n_patches: int = 0
    unrendered: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def n_label_tokens(self) -> int:
        """How many tokens the score sums over."""
        return int(self.label_mask.sum())


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples padded to [batch, token], and where their labels are predicted.

    Label n is the token `labels[n]`, predicted at (`label_rows[n]`, `label_columns[n]`); labels
    are in order of row and column. `indices` [batch] are the samples' places in the input.
    `readers` [batch] read the images of samples; there are none in a batch of texts.
    """

    token_ids: NDArray[np.int64]
    attention_mask: NDArray[np.int64]
    label_rows: NDArray[np.int64]
    label_columns: NDArray[np.int64]
    labels: NDArray[np.int64]
    indices: tuple[int, ...]
    readers: Sequence[Callable[[], Inputs]] = ()

    @cached_property
    def inputs(self) -> tuple[Inputs, ...]:
        """What the model reads of each sample besides tokens. Raises BadSampleError."""
        return tuple(parallel_map(lambda read: read(), self.readers))


@dataclass(frozen=True)
class SampleStatistics:
    """What one forward pass tells about a sample besides its row.

    `loss` is the mean cross-entropy over label tokens in nats, `label_error_mass` the mean of
    1 - p(label) over them, `norm` the Euclidean norm of the row.
    """

    n_tokens: int
    n_label_tokens: int
    truncated: bool
    loss: float
    label_error_mass: float
    norm: float
