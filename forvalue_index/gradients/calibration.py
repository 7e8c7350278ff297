"""A calibration: what geometries and sketches know of data, frozen before the first row is stored.

It holds the moments that geometries are made of, the principal directions along which sketches
spend floats, and how large the errors of sketched inner products are beside the formula for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.gradients.geometry import Moments
from forvalue_index.gradients.hash_tables import tables_digest
from forvalue_index.gradients.sketch_error import ErrorScale

CURE = "restore it from a backup, or build the index anew"


@dataclass(frozen=True, eq=False)
class Calibration:
    """What was measured on `samples` samples with `label_tokens` label tokens.

    `moments` have the vocabulary in the order of token ids. `directions` [direction, hidden] and
    `error_scale`, that of sketched inner products, are per geometry.
    """

    moments: Moments
    samples: int
    label_tokens: int
    directions: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    error_scale: Mapping[str, ErrorScale] = field(default_factory=dict)

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As named arrays, for a file."""
        named: dict[str, NDArray[Any]] = {
            name: tensor.cpu().numpy() for name, tensor in self.moments._asdict().items()
        }
        named["samples"] = np.array([self.samples])
        named["label_tokens"] = np.array([self.label_tokens])
        named |= {f"{name}.directions": d for name, d in self.directions.items()}
        return named | {f"{name}.error_scale": np.array(s) for name, s in self.error_scale.items()}

    @classmethod
    def from_tensors(cls, named: Mapping[str, NDArray[Any]]) -> Calibration:
        """What `tensors` gave. Raises KeyError where something is missing."""
        moments = Moments(*(torch.from_numpy(np.array(named[name])) for name in Moments._fields))
        return cls(
            moments,
            int(named["samples"][0]),
            int(named["label_tokens"][0]),
            {
                n.removesuffix(".directions"): d
                for n, d in named.items()
                if n.endswith(".directions")
            },
            {
                n.removesuffix(".error_scale"): ErrorScale(*s.tolist())
                for n, s in named.items()
                if n.endswith(".error_scale")
            },
        )

    @cached_property
    def digest(self) -> str:
        """Names these numbers, wherever they lie."""
        return tables_digest(self.tensors())
