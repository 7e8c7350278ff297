"""One bit a float: what RaBitQ codes of rows are made with, and the FAISS indexes over them.

RaBitQ (Gao and Long, SIGMOD 2024) keeps the signs of a rotated row about a centre, and two floats
that make the estimate of its inner product with a query unbiased. A quantizer is what was trained
once: a rotation and centres. It is kept as plain arrays, never as a file of FAISS.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.search.contract import Rows
from forvalue_index.search.faiss_library import faiss_library
from forvalue_index.search.kinds import IVF_RABITQ, RABITQ
from forvalue_index.search.rotation import Rotation

Codes = NDArray[np.uint8]
CODED_KINDS = (RABITQ, IVF_RABITQ)
# k-means gets slow with the number of lists, and better by little.
MOST_LISTS = 4096
ROWS_PER_LIST = 64
LEAST_PER_LIST = 39  # what FAISS asks for
QUERY_BITS = 8


class Quantizer:
    """Encodes rows of one kind, and makes empty FAISS indexes for its codes.

    `centres` [centre, width] are rotated: one for `rabitq`, those of the lists for `ivf-rabitq`.
    """

    def __init__(self, kind: str, rotation: Rotation, centres: Rows) -> None:
        self.kind, self.rotation, self.centres = kind, rotation, centres
        self._encoder = self.empty()

    @classmethod
    def train(cls, kind: str, rows: Rows, *, n_lists: int, seed: int) -> Quantizer:
        """Learn the centres from a sample of rows [row, dim]."""
        rotation = Rotation.draw(rows.shape[1], seed)
        if kind == RABITQ:
            mean = rows.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
            return cls(kind, rotation, rotation(mean))
        faiss = faiss_library()
        clustering = faiss.Kmeans(
            rotation.width,
            n_lists,
            niter=10,
            seed=seed,
            spherical=True,
            min_points_per_centroid=1,
            max_points_per_centroid=ROWS_PER_LIST,
        )
        clustering.train(rotation(rows))
        return cls(kind, rotation, clustering.centroids.copy())

    @classmethod
    def from_tensors(cls, named: Mapping[str, NDArray[Any]]) -> Quantizer:
        """What `tensors` gave. Raises KeyError or ValueError for something else."""
        kind = bytes(named["kind"]).decode()
        rotation, centres = Rotation(named["signs"]), named["centres"]
        fits = kind in CODED_KINDS and centres.ndim == 2 and centres.shape[1] == rotation.width
        if not fits or not np.isfinite(centres).all() or (kind == RABITQ) != (len(centres) == 1):
            raise ValueError(f"no centres of {kind} codes")
        return cls(kind, rotation, np.ascontiguousarray(centres, dtype=np.float32))

    def tensors(self) -> dict[str, NDArray[Any]]:
        """As named arrays, for a file."""
        kind = np.frombuffer(self.kind.encode(), dtype=np.uint8)
        return {"kind": kind, "signs": self.rotation.signs, "centres": self.centres}

    @cached_property
    def digest(self) -> str:
        """Names the quantizer by what it was trained to."""
        hasher = hashlib.blake2b(digest_size=16)
        for name, tensor in sorted(self.tensors().items()):
            hasher.update(name.encode() + np.ascontiguousarray(tensor).tobytes())
        return hasher.hexdigest()

    @property
    def code_size(self) -> int:
        """Bytes of a row's code."""
        return int(self._encoder.sa_code_size())

    def encode(self, rows: Rows) -> Codes:
        """The codes [row, code_size] of rows [row, dim]."""
        codes: Codes = self._encoder.sa_encode(self.rotation(rows))
        return codes

    def empty(self, expected: int = 0) -> Any:
        """A FAISS index over codes, without any; it grows to `expected` ones without a copy."""
        faiss = faiss_library()
        width, metric = self.rotation.width, faiss.METRIC_INNER_PRODUCT
        if self.kind == RABITQ:
            index = faiss.IndexRaBitQ(width, metric)
            faiss.copy_array_to_vector(self.centres[0], index.center)
            index.codes.resize(expected * index.code_size)
            index.codes.resize(0)
        else:
            lists = faiss.IndexFlatIP(width)
            lists.add(self.centres)
            index = faiss.IndexIVFRaBitQ(lists, width, len(self.centres), metric)
            index.referenced_objects = [lists]  # FAISS does not own it
        index.is_trained = True
        return index

    def add(self, index: Any, codes: Codes, positions: NDArray[np.int64]) -> None:
        """Add codes to an index of `empty`, under `positions`, which count up from its size.

        Raises BrokenIndexError where they name a list that there is not, which FAISS believes.
        """
        if self.kind == RABITQ:
            index.add_sa_codes(codes)
            return
        size = index.coarse_code_size()
        padded = np.zeros((len(codes), 8), dtype=np.uint8)
        padded[:, :size] = codes[:, :size]
        if (padded.view("<u8") >= len(self.centres)).any():
            raise BrokenIndexError("a code names a list that the index has not")
        index.add_sa_codes(codes, positions)

    def parameters(self, *, probes: int | None, selector: Any | None) -> Any:
        """How FAISS is to search: in so many lists, and among what a selector allows."""
        faiss = faiss_library()
        chosen = {"qb": QUERY_BITS} | ({} if selector is None else {"sel": selector})
        if self.kind == RABITQ:
            return faiss.RaBitQSearchParameters(**chosen)
        nprobe = min(probes or len(self.centres), len(self.centres))
        return faiss.IVFRaBitQSearchParameters(nprobe=nprobe, **chosen)


def lists_for(n_rows: int) -> int:
    """How many lists an index of so many rows has: 4 sqrt(n), as far as there are rows to learn."""
    return max(1, min(int(4 * n_rows**0.5), MOST_LISTS, n_rows // LEAST_PER_LIST))
