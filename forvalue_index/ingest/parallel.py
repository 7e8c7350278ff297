"""Batches embedded by several devices at once, one each, in the order of batches."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, nullcontext
from itertools import islice
from typing import NamedTuple

import torch

from forvalue_index.exceptions import BadSampleError
from forvalue_index.gradients.embedder import Embedded, Embedder
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Batch
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.threads import prefetched


class Finished(NamedTuple):
    """A batch, what it was embedded to, and its share of the seconds that this took."""

    batch: Batch
    embedded: Embedded
    seconds: float


def embedded_batches(
    embedders: Sequence[Embedder], members: Sequence[Prepared], lost: list[tuple[int, str]]
) -> Iterator[Finished]:
    """All batches of some samples; embedders are alike but for their device.

    Samples whose images cannot be read by now are left out: their places and the reasons are added
    to `lost`.

    Neighbours in the order of length take about as long as each other, so no device waits long.
    """
    with (
        closing(_read_ahead(embedders[0], members, lost)) as batches,
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


def _read_ahead(
    embedder: Embedder, members: Sequence[Prepared], lost: list[tuple[int, str]]
) -> Generator[Batch]:
    """The batches of some samples; images of the next one are read while one is embedded."""
    batches = iter(embedder.batches(members))
    if any(member.encoded.read_inputs is not None for member in members):
        read = (_with_images(batch, members, lost) for batch in batches)
        yield from prefetched(batch for batch in read if batch is not None)
    else:
        yield from batches


def _with_images(
    batch: Batch, members: Sequence[Prepared], lost: list[tuple[int, str]]
) -> Batch | None:
    """A batch with its images read, without the samples whose images cannot be, if one is left."""
    try:
        _ = batch.inputs  # read now, and kept
    except BadSampleError:
        unreadable = dict(_unreadable(batch))
        lost += unreadable.items()
        left = [i for i in batch.indices if i not in unreadable]
        return collate([members[i].encoded for i in left], left) if left else None
    return batch


def _unreadable(batch: Batch) -> Iterator[tuple[int, str]]:
    for place, read in zip(batch.indices, batch.readers, strict=True):
        try:
            read()
        except BadSampleError as error:
            yield place, str(error)


def _embedded(embedder: Embedder, batch: Batch, members: Sequence[Prepared]) -> Embedded:
    """On the embedder's GPU also what asks for the current one, as some models' kernels do."""
    device = embedder.reader.head.weight.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        return embedder.embed_batch(batch, members)
