"""What embeds the samples of one `add`: one embedder a device, once the index is calibrated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from forvalue_index.gradients.calibrating import Choice, calibrate
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.model.label_tokens import LabelReader, Prepared
from forvalue_index.progress import OnProgress
from forvalue_index.store.store import Storage


class Embedders:
    """Embedders, made when the first samples come.

    `others` give readers on other devices, and are asked when there is more than a batch to embed.
    An index without a calibration gets one first, from those samples and what `choice` holds.
    """

    def __init__(
        self,
        storage: Storage,
        reader: LabelReader,
        others: Callable[[], Sequence[LabelReader]],
        *,
        choice: Choice,
        on_progress: OnProgress,
    ) -> None:
        self._storage = storage
        self._reader, self._others = reader, others
        self._choice = choice
        self._on_progress = on_progress
        self._embedders: list[Embedder] = []

    def of(self, samples: Sequence[Prepared]) -> Sequence[Embedder]:
        """What is to embed these samples."""
        if not self._embedders:
            if self._storage.uncalibrated:
                self._calibrate(samples)
            self._embedders = [self._storage.embedder(self._reader)]
        if len(self._embedders) == 1 and self._more_than_a_batch(samples):
            self._embedders += [self._storage.embedder(other) for other in self._others()]
        return self._embedders

    def _calibrate(self, samples: Sequence[Prepared]) -> None:
        for prepared in samples:
            self._choice.offer(prepared)
        calibration = calibrate(
            self._reader,
            self._storage.tables(),
            self._storage.manifest.settings,
            self._choice.samples(),
            on_progress=self._on_progress,
        )
        self._storage.freeze(calibration)

    def _more_than_a_batch(self, samples: Sequence[Prepared]) -> bool:
        return sum(len(one.encoded) for one in samples) > self._reader.token_budget
