"""How far inner products of sketched rows are from those of the gradients."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ErrorScale(NamedTuple):
    """How large errors of sketched inner products are.

    `noise` is in units of the formula for them, `relative` in units of the inner product itself: a
    sketch along few directions drops a part of it.
    """

    noise: float = 1.0
    relative: float = 0.0


class SketchError(NamedTuple):
    """How far inner products of sketched rows are from those of the gradients.

    `widths` are those of `part_widths`; `scale` is what a calibration measured.
    """

    widths: tuple[int, ...]
    scale: ErrorScale = ErrorScale()

    def standard_errors(
        self,
        query: NDArray[np.float32],
        rows: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Standard errors of the inner products of query [dim] with rows [row, dim].

        A part of D floats has |q| |row| / sqrt(D) of its own norms (Pham and Pagh), and the parts
        are independent, so squares add up. Exact rows, which have no parts, have 0.
        """
        return self.of_squares(query, self.squares(rows), np.vecdot(rows, query))

    def squares(self, rows: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The squared norms [row] of each of `parts` of rows [row, dim]."""
        return [np.vecdot(rows[:, part], rows[:, part]) for part in self.parts()]

    def of_squares(
        self,
        query: NDArray[np.float32],
        squares: Sequence[NDArray[np.floating]],
        scores: NDArray[np.floating],
    ) -> NDArray[np.float32]:
        """Standard errors from `squares` and the inner products [row]."""
        variances = np.zeros(len(scores))
        for part, square in zip(self.parts(), squares, strict=True):
            variances += square * float(query[part] @ query[part]) / (part.stop - part.start)
        noise, relative = self.scale if self.widths else ErrorScale(0.0, 0.0)
        errors: NDArray[np.float64] = np.hypot(noise * np.sqrt(variances), relative * scores)
        return errors.astype(np.float32)

    def parts(self) -> tuple[slice, ...]:
        """Where each part lies in a row."""
        return _slices(self.widths)


@cache
def _slices(widths: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(start, end) for start, end in pairwise(accumulate(widths, initial=0)))
