"""What embeds the samples of one `add`: one embedder a device, once the index is calibrated."""

from __future__ import annotations

from collections.abc import Sequence

from forvalue_index.gradients.calibrating import CalibrationSample, calibrate
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.model.label_tokens import Prepared
from forvalue_index.store.model import IndexModel, embedder_of


class Embedders:
    """Embedders, made when the first samples come.

    Other GPUs are used when there is more than a batch to embed.
    An index without a calibration gets one first, from those samples and what `choice` holds.
    """

    def __init__(self, model: IndexModel, choice: CalibrationSample) -> None:
        self._model = model
        self._choice = choice
        self._embedders: list[Embedder] = []

    def of(self, samples: Sequence[Prepared]) -> Sequence[Embedder]:
        """What is to embed these samples."""
        if not self._embedders:
            if self._model.storage.uncalibrated:
                self._calibrate(samples)
            self._embedders = [self._model.embedder()]
        if len(self._embedders) == 1 and self._more_than_a_batch(samples):
            self._embedders += [
                embedder_of(self._model.storage, other) for other in self._model.other_readers()
            ]
        return self._embedders

    def _calibrate(self, samples: Sequence[Prepared]) -> None:
        for prepared in samples:
            self._choice.offer(prepared)
        storage = self._model.storage
        calibration = calibrate(
            self._model.reader,
            storage.frozen.hash_tables(),
            storage.manifest.settings,
            self._choice.samples(),
            on_progress=self._model.on_progress,
        )
        storage.frozen.freeze(calibration)

    def _more_than_a_batch(self, samples: Sequence[Prepared]) -> bool:
        return sum(len(one.encoded) for one in samples) > self._model.reader.token_budget
