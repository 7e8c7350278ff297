"""From samples to rows: label tokens -> geometry -> sketch, and the sums a sample is known by.

A row is a function of the sample alone, to rounding: never of its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from forvalue_index.devices import none_if_out_of_memory
from forvalue_index.exceptions import ModelError, UsageError
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.geometry import Geometry, Moments
from forvalue_index.gradients.hash_tables import HashTables, geometry_tables
from forvalue_index.gradients.sketch import Sketch, make_sketch
from forvalue_index.model.batching import halves
from forvalue_index.model.encoded import Batch, SampleStatistics
from forvalue_index.model.label_tokens import LabelTokens, ModelReader, Prepared
from forvalue_index.settings import RAW, Settings
from forvalue_index.sources.sample import BadRow, Sample

Rows = Mapping[str, Tensor]


class Feature(NamedTuple):
    """What makes the rows of one geometry."""

    geometry: Geometry
    sketch: Sketch


class Embedded(NamedTuple):
    """Samples in the order asked for.

    `rows` holds [sample, dim] in float32 on the CPU for each geometry; `finite` [sample] says
    whether a sample's rows hold numbers alone.
    """

    rows: Rows
    statistics: tuple[SampleStatistics, ...]
    finite: Tensor


class _Sums(NamedTuple):
    """Sums over the label tokens of each sample of a batch."""

    sketches: Mapping[str, Any]
    n_labels: Tensor
    loss: Tensor
    error_mass: Tensor


class Embedder:
    """Turns samples into rows with one model, in one or several geometries.

    The norm among a sample's statistics is that of its row in the first geometry.
    """

    def __init__(self, reader: ModelReader, features: Mapping[str, Feature]) -> None:
        self.reader = reader
        self._features = features

    def prepare(self, sample: Sample) -> Prepared | BadRow:
        """Tokenise a sample, or say why it cannot be valued."""
        return self.reader.prepare(sample)

    def batches(self, prepared: Sequence[Prepared]) -> Iterable[Batch]:
        """The batches that `embed_batch` should be given for these samples."""
        return self.reader.batches(prepared)

    def embed(self, prepared: Sequence[Prepared]) -> Embedded:
        """Rows and statistics of samples, in their order. Raises as `refuse_undefined`."""
        rows = {
            name: torch.empty(len(prepared), feature.sketch.dim)
            for name, feature in self._features.items()
        }
        statistics: dict[int, SampleStatistics] = {}
        for batch in self.batches(prepared):
            done = self.embed_batch(batch, prepared)
            refuse_undefined(done, [prepared[i] for i in batch.indices])
            for name, part in done.rows.items():
                rows[name][list(batch.indices)] = part
            statistics.update(zip(batch.indices, done.statistics, strict=True))
        ordered = tuple(statistics[i] for i in range(len(prepared)))
        return Embedded(rows, ordered, torch.ones(len(prepared), dtype=torch.bool))

    def embed_batch(self, batch: Batch, prepared: Sequence[Prepared]) -> Embedded:
        """Rows and statistics of one batch of `prepared`, in the batch's order.

        One that memory does not suffice for is embedded in halves. Raises ModelError where it does
        not suffice for a single sample.
        """
        embedded = none_if_out_of_memory(partial(self._embed, batch, prepared))
        if embedded is not None:
            return embedded
        if len(batch.indices) == 1:
            sample, device = prepared[batch.indices[0]].sample, self.reader.vocab_order.device
            raise ModelError(
                f"{sample.source}:{sample.position}: there is not the memory on {device} for the "
                "rows of this sample; close other programs, or make the index with a smaller --dim"
            )
        return _joined([self.embed_batch(half, prepared) for half in halves(batch)])

    @torch.inference_mode()
    def _embed(self, batch: Batch, prepared: Sequence[Prepared]) -> Embedded:
        sums = self._sum_over_tokens(self.reader.label_tokens(batch), len(batch.indices))
        rows = {
            name: feature.sketch.rows(sums.sketches[name]).float().cpu()
            for name, feature in self._features.items()
        }
        finite = torch.stack([torch.isfinite(r).all(dim=1) for r in rows.values()]).all(dim=0)
        members = [prepared[i] for i in batch.indices]
        first = next(iter(rows.values()))
        return Embedded(rows, _statistics(members, first, sums), finite)

    def _sum_over_tokens(self, chunks: Iterable[LabelTokens], n_samples: int) -> _Sums:
        sums = self._no_tokens(n_samples)
        for tokens in chunks:
            for name, (geometry, sketch) in self._features.items():
                error, hidden = geometry.error(tokens.error), geometry.hidden(tokens.hidden)
                sketch.accumulate(sums.sketches[name], error, hidden, tokens.owner)
            sums.n_labels.index_add_(0, tokens.owner, torch.ones_like(tokens.loss))
            sums.loss.index_add_(0, tokens.owner, tokens.loss)
            sums.error_mass.index_add_(0, tokens.owner, 1 - tokens.probability)
        return sums

    def _no_tokens(self, n_samples: int) -> _Sums:
        like = self.reader.empty()
        zeros = like.new_zeros(n_samples)
        sketches = {n: f.sketch.empty(n_samples, like) for n, f in self._features.items()}
        return _Sums(sketches, zeros, zeros.clone(), zeros.clone())


def features_of(
    reader: ModelReader,
    tables: HashTables,
    settings: Settings,
    calibration: Calibration | None,
    geometries: Sequence[str],
) -> dict[str, Feature]:
    """What makes the rows of some geometries of an index; all but raw need a calibration."""
    device, features = reader.vocab_order.device, {}
    for name in geometries:
        geometry = geometry_of(name, reader, calibration, settings)
        directions = None if calibration is None else calibration.directions.get(name)
        own_tables = geometry_tables(tables, name, directions)
        features[name] = Feature(geometry, make_sketch(own_tables, dim=settings.dim, device=device))
    return features


def geometry_of(
    name: str, reader: ModelReader, calibration: Calibration | None, settings: Settings
) -> Geometry:
    """A geometry for the reader's order of the vocabulary.

    Raises UsageError where it needs a calibration and there is none.
    """
    if name == RAW:
        return Geometry(name)
    if calibration is None:
        raise UsageError(
            f"the {name} geometry needs the calibration of the index, and there is none; restore "
            "calibration.safetensors from a backup, use --geometry raw, or build the index anew"
        )
    device, order = reader.vocab_order.device, reader.vocab_order
    error_size, mean, square = (tensor.to(device) for tensor in calibration.moments)
    return Geometry(name, Moments(error_size[order], mean, square), damping=settings.damping)


def refuse_undefined(embedded: Embedded, members: Sequence[Prepared]) -> None:
    """Raise ModelError, naming the first sample, where rows hold infinite or undefined numbers."""
    if not embedded.finite.all():
        sample = members[int((~embedded.finite).nonzero()[0])].sample
        raise ModelError(f"{sample.source}:{sample.position}: {undefined_numbers(sample)}")


def undefined_numbers(sample: Sample) -> str:
    """What is said of a sample for which the model gives no usable numbers."""
    return (
        f"the model gives infinite or undefined numbers for sample {sample.key}; use "
        "--dtype float32, or leave the sample out"
    )


def _joined(parts: Sequence[Embedded]) -> Embedded:
    rows = {name: torch.cat([part.rows[name] for part in parts]) for name in parts[0].rows}
    statistics = tuple(one for part in parts for one in part.statistics)
    return Embedded(rows, statistics, torch.cat([part.finite for part in parts]))


def _statistics(
    members: Sequence[Prepared], rows: Float[Tensor, "sample dim"], sums: _Sums
) -> tuple[SampleStatistics, ...]:
    norms = torch.linalg.vector_norm(rows, dim=1).tolist()
    per_sample = (sums.n_labels.tolist(), sums.loss.tolist(), sums.error_mass.tolist())
    return tuple(
        SampleStatistics(
            n_tokens=len(member.encoded),
            n_label_tokens=int(count),
            truncated=member.encoded.truncated,
            loss=loss / count,
            label_error_mass=mass / count,
            norm=norm,
        )
        for member, norm, count, loss, mass in zip(members, norms, *per_sample, strict=True)
    )
