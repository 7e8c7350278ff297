"""An opened index with progress drawn, as every command that needs the model uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forvalue_index.index import ValuationIndex


@contextmanager
def opened_index(path: Path, model: str | None) -> Iterator[ValuationIndex]:
    """Open the index at `path`; `model` says where its model lies now."""
    from forvalue_index.manifest import read_manifest

    # Before the libraries are imported, which takes seconds: most errors show here.
    read_manifest(path)
    from forvalue_index.cli.progress import drawn_progress
    from forvalue_index.index import ValuationIndex

    with (
        drawn_progress() as on_progress,
        ValuationIndex.open(path, model=model, on_progress=on_progress) as index,
    ):
        yield index
