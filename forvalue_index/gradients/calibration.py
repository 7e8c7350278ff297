"""A calibration: what geometries and sketches know of data, frozen before the first row is stored.

It holds the moments that geometries are made of, the principal directions along which sketches
spend floats, and how large the errors of sketched inner products are beside the formula for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError
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

    @property
    def digest(self) -> str:
        """Names these numbers, wherever they lie."""
        return tables_digest(self.tensors())

    def save(self, model_digest: str) -> bytes:
        """The contents of a file, which says what model it was made with."""
        return save(self.tensors(), {"digest": self.digest, "model": model_digest})

    @classmethod
    def load(cls, path: Path, model_digest: str) -> Calibration | None:
        """What `save` gave, or None where there is no file.

        Raises:
            BrokenIndexError: the file is damaged.
            SettingsMismatchError: it was made with another model.
        """
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="numpy") as file:
                said = file.metadata() or {}
                names = list(file.keys())
                calibration = cls.from_tensors({name: file.get_tensor(name) for name in names})
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            raise BrokenIndexError(f"{path} cannot be read ({error}); {CURE}") from error
        if calibration.digest != said.get("digest"):
            raise BrokenIndexError(f"{path} is damaged: its numbers are not its own; {CURE}")
        if said.get("model") != model_digest:
            raise SettingsMismatchError(
                f"{path} is the calibration of another model ({said.get('model')}, the index has "
                f"{model_digest}); use one that was made with this model"
            )
        return calibration
