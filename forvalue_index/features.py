"""From samples to rows: prompts -> batches -> trunk -> prediction error -> sketch.

The head is applied to label positions only and in chunks, so logits of [batch, token, vocabulary]
never exist. A row is a function of the sample alone, to rounding: never of its batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from forvalue_index.batching import batches
from forvalue_index.contracts import Trunk
from forvalue_index.exceptions import BadSampleError, ModelError
from forvalue_index.prediction_error import Head, prediction_error
from forvalue_index.prompts import PromptEncoder
from forvalue_index.records import BadRow, Batch, Encoded, Sample, SampleStatistics, bad_row
from forvalue_index.sketch import Sketch, Sums

# Measured on SmolLM2-135M: the trunk is at full speed from 1,024 tokens on; a chunk's logits
# should stay in the processor's cache (128 x 49,152 floats).
TOKEN_BUDGET = {"cpu": 2048, "cuda": 16384}
CHUNK_TOKENS = {"cpu": 128, "cuda": 2048}


@dataclass(frozen=True, eq=False)
class Prepared:
    """A sample and what the model reads of it."""

    sample: Sample
    encoded: Encoded


class Embedded(NamedTuple):
    """`rows` [sample, dim] in float32 on the CPU, and statistics, in the order asked for."""

    rows: Tensor
    statistics: tuple[SampleStatistics, ...]


class _Sums(NamedTuple):
    """Sums over the label tokens of each sample of a batch."""

    sketch: Sums
    loss: Tensor
    error_mass: Tensor


class Embedder:
    """Turns samples into rows with one model and one sketch."""

    def __init__(self, trunk: Trunk, head: Head, *, encoder: PromptEncoder, sketch: Sketch) -> None:
        self.trunk = trunk
        self._encoder = encoder
        self._sketch = sketch
        self.head = head.reordered(sketch.vocab_order)
        # Where each vocabulary entry went, so that labels follow the reordered head.
        self._place = torch.argsort(sketch.vocab_order)
        self._chunk_tokens = CHUNK_TOKENS[head.weight.device.type]
        self.token_budget = TOKEN_BUDGET[head.weight.device.type]

    def prepare(self, sample: Sample) -> Prepared | BadRow:
        """Tokenise a sample, or say why it cannot be valued."""
        try:
            encoded = self._encoder.encode(sample)
        except BadSampleError as error:
            return bad_row(sample, str(error))
        largest, vocab_size = int(encoded.token_ids.max()), len(self._place)
        if largest >= vocab_size:
            reason = (
                f"it has token {largest:,}, and the model knows {vocab_size:,} tokens; the "
                "tokenizer is of another model, or was extended alone"
            )
            return bad_row(sample, reason)
        return Prepared(sample, encoded)

    def batches(self, prepared: Sequence[Prepared]) -> Iterable[Batch]:
        """The batches that `embed_batch` should be given for these samples."""
        return batches([p.encoded for p in prepared], token_budget=self.token_budget)

    def embed(self, prepared: Sequence[Prepared]) -> Embedded:
        """Rows and statistics of samples, in their order."""
        rows = torch.empty(len(prepared), self._sketch.dim)
        statistics: dict[int, SampleStatistics] = {}
        for batch in self.batches(prepared):
            done = self.embed_batch(batch, prepared)
            rows[list(batch.indices)] = done.rows
            statistics.update(zip(batch.indices, done.statistics, strict=True))
        return Embedded(rows, tuple(statistics[i] for i in range(len(prepared))))

    @torch.inference_mode()
    def embed_batch(self, batch: Batch, prepared: Sequence[Prepared]) -> Embedded:
        """Rows and statistics of one batch of `prepared`, in the batch's order.

        Raises:
            ModelError: the model gave infinite or undefined numbers for a sample, which is named.
        """
        hidden = self.trunk.hidden_states(batch)
        sums = self._sum_over_tokens(
            hidden,
            self._place[torch.from_numpy(batch.labels).to(hidden.device)],
            torch.from_numpy(batch.label_rows).to(hidden.device),
        )
        rows = self._sketch.rows(sums.sketch).float().cpu()
        finite = torch.isfinite(rows).all(dim=1)
        members = [prepared[i] for i in batch.indices]
        if not finite.all():
            sample = members[int((~finite).nonzero()[0])].sample
            raise ModelError(
                f"{sample.source}:{sample.position}: the model gives infinite or undefined numbers "
                f"for sample {sample.key}; use --dtype float32, or leave the sample out"
            )
        return Embedded(rows, _statistics(members, rows, sums))

    def _sum_over_tokens(
        self,
        hidden: Float[Tensor, "label hidden"],
        labels: Int[Tensor, " label"],
        owner: Int[Tensor, " label"],
    ) -> _Sums:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        n_samples = int(owner[-1]) + 1
        like = hidden.new_empty(0, dtype=wide)
        sums = _Sums(
            self._sketch.empty(n_samples, like),
            like.new_zeros(n_samples),
            like.new_zeros(n_samples),
        )
        for start in range(0, len(hidden), self._chunk_tokens):
            chunk = slice(start, start + self._chunk_tokens)
            found = prediction_error(self.head, hidden[chunk], labels[chunk])
            self._sketch.accumulate(sums.sketch, found.error, hidden[chunk].to(wide), owner[chunk])
            sums.loss.index_add_(0, owner[chunk], found.loss)
            sums.error_mass.index_add_(0, owner[chunk], 1 - found.probability)
        return sums


def _statistics(
    members: Sequence[Prepared], rows: Float[Tensor, "sample dim"], sums: _Sums
) -> tuple[SampleStatistics, ...]:
    norms = torch.linalg.vector_norm(rows, dim=1).tolist()
    losses, masses = sums.loss.tolist(), sums.error_mass.tolist()
    return tuple(
        SampleStatistics(
            n_tokens=len(member.encoded),
            n_label_tokens=member.encoded.n_label_tokens,
            truncated=member.encoded.truncated,
            loss=loss / member.encoded.n_label_tokens,
            label_error_mass=mass / member.encoded.n_label_tokens,
            norm=norm,
        )
        for member, norm, loss, mass in zip(members, norms, losses, masses, strict=True)
    )
