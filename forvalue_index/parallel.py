"""Batches embedded by several devices at once, one each, in the order of batches."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice
from typing import NamedTuple

import torch

from forvalue_index.features import Embedded, Embedder
from forvalue_index.label_tokens import Prepared
from forvalue_index.records import Batch
from forvalue_index.windows import one_ahead


class Finished(NamedTuple):
    """A batch, what it was embedded to, and its share of the seconds that this took."""

    batch: Batch
    embedded: Embedded
    seconds: float


def embedded_batches(
    embedders: Sequence[Embedder], members: Sequence[Prepared]
) -> Iterator[Finished]:
    """All batches of some samples; embedders are alike but for their device.

    Neighbours in the order of length take about as long as each other, so no device waits long.
    """
    with (
        closing(_read_ahead(embedders[0], members)) as batches,
        ThreadPoolExecutor(len(embedders)) as threads,
    ):
        run = map if len(embedders) == 1 else threads.map
        while group := list(islice(batches, len(embedders))):
            started = time.perf_counter()
            # The shorter of the two ends it.
            found = list(run(lambda e, b: _embedded(e, b, members), embedders, group))
            seconds = (time.perf_counter() - started) / len(group)
            for batch, embedded in zip(group, found, strict=True):
                yield Finished(batch, embedded, seconds)


def _read_ahead(embedder: Embedder, members: Sequence[Prepared]) -> Generator[Batch]:
    """The batches of some samples; images of the next one are read while one is embedded."""
    batches = iter(embedder.batches(members))
    if any(member.encoded.read_inputs is not None for member in members):
        batches = one_ahead(map(_with_images, batches))
    yield from batches


def _with_images(batch: Batch) -> Batch:
    _ = batch.inputs  # read now, and kept
    return batch


def _embedded(embedder: Embedder, batch: Batch, members: Sequence[Prepared]) -> Embedded:
    """On the embedder's GPU also what asks for the current one, as some models' kernels do."""
    device = embedder.reader.head.weight.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return embedder.embed_batch(batch, members)
