"""Codes of rows on disk: derived from segments, one file for each, and deleted at will.

`search/<rows>/<kind>/quantizer.safetensors` holds what was trained, `<uid>.safetensors` beside it
the codes of a segment and their checksums. Each names the quantizer and the version of FAISS that
it was made with. What is missing, damaged or of another version counts as not there, and is made
anew from the segment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from forvalue_index.search.coded import REFINE
from forvalue_index.search.faiss_library import faiss_library
from forvalue_index.search.quantizer import Codes, Quantizer
from forvalue_index.store.durable import replacing, whole_name, write_durably
from forvalue_index.store.permissions import read_document, refuse_strange_file
from forvalue_index.store.rows import row_checksums

FORMAT = "1"
QUANTIZER = "quantizer"
SUFFIX = ".safetensors"
TUNED = "tuned.json"
MOST_GROWTH = 2
CODES, CHECKSUMS = "codes", "checksum"
# Codes, which this module may delete, and what versions before left half written.
CODE_FILE = re.compile(r"[0-9a-f]{32}\.safetensors|\w+\.safetensors\.[0-9a-f]{32}")


@dataclass(frozen=True)
class Tuned:
    """The cheapest way to search codes that reached a recall at both ends, over so many rows."""

    refine: int = REFINE
    probes: int | None = None
    recall: float | None = None
    rows: int = 0


class CodeFiles:
    """The files of one kind of codes over one kind of rows, at `search/<rows>/<kind>` of an index.

    Where that is a link that leads elsewhere, nothing is read, written or deleted.
    """

    def __init__(self, search_path: Path, rows: str, kind: str) -> None:
        self._directory = search_path / rows / kind
        index = search_path.parent.resolve()
        self._is_own = self._directory.resolve() == index / search_path.name / rows / kind

    def quantizer(self) -> Quantizer | None:
        """What was trained, if it is there and sound."""
        named = self._read(QUANTIZER)
        if named is None:
            return None
        with suppress(KeyError, ValueError, TypeError):
            return Quantizer.from_tensors(named)
        return None

    def keep_quantizer(self, quantizer: Quantizer) -> None:
        """Keep what was trained, if the disk allows it."""
        self._write(QUANTIZER, quantizer.tensors())

    def codes(self, uid: str, n_rows: int, quantizer: Quantizer) -> Codes | None:
        """The codes of a segment, if they are there, sound and of this quantizer."""
        named = self._read(uid, quantizer=quantizer.digest)
        if named is None or named.keys() != {CODES, CHECKSUMS}:
            return None
        codes, checksums = named[CODES], named[CHECKSUMS]
        if codes.shape != (n_rows, quantizer.code_size) or codes.dtype != np.uint8:
            return None
        return codes if np.array_equal(checksums, _checksums(codes)) else None

    def has_codes(self, uid: str, quantizer: Quantizer) -> bool:
        """Whether there are codes of a segment that name this quantizer; whoever reads, checks."""
        return self._read(uid, quantizer=quantizer.digest, whole=False) is not None

    def keep_codes(self, uid: str, codes: Codes, quantizer: Quantizer) -> None:
        """Keep the codes of a segment, if the disk allows it."""
        named: dict[str, NDArray[Any]] = {CODES: codes, CHECKSUMS: _checksums(codes)}
        self._write(uid, named, **{QUANTIZER: quantizer.digest})

    def tuned(self, n_rows: int) -> Tuned:
        """What `tune` found, or the defaults; these, too, where an index has outgrown it."""
        with suppress(OSError, ValueError, TypeError):
            tuned = Tuned(**read_document(self._directory / TUNED))
            fits = tuned.refine >= 1 and (tuned.probes is None or tuned.probes >= 1)
            if self._is_own and fits and n_rows <= MOST_GROWTH * tuned.rows:
                return tuned
        return Tuned()

    def keep_tuned(self, tuned: Tuned) -> None:
        """Keep what `tune` found."""
        if self._is_own:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_durably(self._directory / TUNED, json.dumps(asdict(tuned)).encode())

    def sweep(self, uids: Iterable[str]) -> None:
        """Delete the codes of all but these segments, and what was left half written."""
        wanted = {f"{uid}{SUFFIX}" for uid in uids}
        for path in self._directory.iterdir() if self._is_own else ():
            is_left = whole_name(path.name) is not None or CODE_FILE.fullmatch(path.name)
            if is_left and path.name not in wanted:
                with suppress(OSError):
                    path.unlink()

    def _read(
        self, name: str, *, quantizer: str | None = None, whole: bool = True
    ) -> dict[str, NDArray[Any]] | None:
        path = self._directory / f"{name}{SUFFIX}"
        if not self._is_own:
            return None
        try:
            refuse_strange_file(path)
            with safe_open(path, framework="numpy") as file:
                fields = file.metadata() or {}
                said = _versions() | ({} if quantizer is None else {QUANTIZER: quantizer})
                if any(fields.get(key) != value for key, value in said.items()):
                    return None
                return {key: file.get_tensor(key) for key in file.keys() if whole}  # noqa: SIM118
        except (OSError, SafetensorError, RuntimeError, ValueError):
            return None

    def _write(self, name: str, named: Mapping[str, NDArray[Any]], **said: str) -> None:
        if not self._is_own:
            return
        with suppress(OSError):  # a disk that is full, or not ours: nothing is lost but time
            self._directory.mkdir(parents=True, exist_ok=True)
            # Readers write, too, and two at once: each to a name of its own.
            with replacing(self._directory / f"{name}{SUFFIX}") as partial:
                partial.write_bytes(save(dict(named), {**_versions(), **said}))


def _checksums(codes: Codes) -> NDArray[np.int32]:
    return row_checksums(torch.from_numpy(codes), np.arange(len(codes)))


def _versions() -> dict[str, str]:
    return {"format": FORMAT, "faiss": str(faiss_library().__version__)}
