"""Geometries: what is done to errors and hidden states before their inner products are taken.

In the metric of For-Value (arXiv 2508.10180) all entries of a head gradient count the same. A
geometry applies a linear map to both sides, of training and of validation samples alike:

* `raw`: nothing, the paper's own score;
* `centered`: the mean hidden state is subtracted from h;
* `fisher`: entry v of e is divided by sqrt(f_v + damping), where f_v is the diagonal of the
  output-side factor of the head's Fisher information matrix (as in K-FAC, Martens and Grosse
  2015), so that errors on rare tokens count as much as on frequent ones;
* `kfac`: `fisher`, and h is mapped by (A + damping I)^(-1/2) with A = E[h h^T], the input side.

f_v is estimated by the mean absolute error E|e_v|. For a plain head that is the sum of E[e_v^2],
the empirical Fisher of the labels, and E[p_v (1 - p_v)], what the model expects of it: the first
alone is noise where a sample has few tokens, the second alone knows nothing of the data.

Both f and A are divided by their mean, of entries and of eigenvalues, so damping and scores keep
their order of magnitude across models. A token that was never seen has f_v near 0, and is divided
by the root of the damping alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from forvalue_index.settings import CENTERED, FISHER, KFAC


class Moments(NamedTuple):
    """What a geometry is made of, over label tokens.

    `error_size` [vocab] is E|e_v|, `hidden_mean` [hidden] E[h], `hidden_square`
    [hidden, hidden] E[h h^T].
    """

    error_size: Tensor
    hidden_mean: Tensor
    hidden_square: Tensor


class Geometry:
    """The linear maps of one geometry, for a vocabulary in the order of its moments."""

    def __init__(self, name: str, moments: Moments | None = None, *, damping: float = 1.0) -> None:
        """Moments are needed by all geometries but raw."""
        self.name = name
        self._error_scale: Tensor | None = None
        self._hidden_mean: Tensor | None = None
        self._hidden_map: Tensor | None = None
        if moments is None:
            return
        if name in (FISHER, KFAC):
            size = moments.error_size.double()
            self._error_scale = (size / size.mean() + damping).rsqrt()
        if name == CENTERED:
            self._hidden_mean = moments.hidden_mean.double()
        if name == KFAC:
            self._hidden_map = _inverse_root(moments.hidden_square.double(), damping)

    def error(self, error: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
        """The error side, scaled per vocabulary entry."""
        return error if self._error_scale is None else error * self._error_scale.to(error)

    def hidden(self, hidden: Float[Tensor, "token hidden"]) -> Float[Tensor, "token hidden"]:
        """The hidden side, shifted and mapped."""
        if self._hidden_mean is not None:
            hidden = hidden - self._hidden_mean.to(hidden)
        return hidden if self._hidden_map is None else hidden @ self._hidden_map.to(hidden)

    def directions(self, moments: Moments, count: int) -> Float[Tensor, "direction hidden"]:
        """The leading principal directions of the mapped hidden states, orthonormal.

        Uncentred: eigenvectors of E[h' h'^T], each with its largest entry positive.
        """
        square = moments.hidden_square.double()
        if self._hidden_mean is not None:
            square = square - torch.outer(self._hidden_mean, self._hidden_mean)
        if self._hidden_map is not None:
            square = self._hidden_map @ square @ self._hidden_map
        vectors: Tensor = torch.linalg.eigh(square).eigenvectors.flip(1)[:, :count].T
        largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
        directed: Tensor = vectors * largest.sign()
        return directed


def _inverse_root(
    square: Float[Tensor, "hidden hidden"], damping: float
) -> Float[Tensor, "hidden hidden"]:
    """(A / mean eigenvalue + damping * I)^(-1/2)."""
    values, vectors = torch.linalg.eigh(square)
    damped = values.clamp(min=0) / values.mean() + damping
    root: Tensor = (vectors * damped.rsqrt()) @ vectors.T
    return root
