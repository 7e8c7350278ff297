"""An opened index with progress drawn, as every command that needs its rows uses it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forvalue_index.index import ValuationIndex


@contextmanager
def opened_index(
    path: Path, model: str | None = None, *, trust_remote_code: bool | None = None
) -> Iterator[ValuationIndex]:
    """Open the index at `path`; `model` says where its model lies now.

    Without `trust_remote_code`, true or false, the model is not to be loaded.
    """
    from forvalue_index.store.agreement import refuse_trust
    from forvalue_index.store.manifest import read_manifest

    # Before the libraries are imported, which takes seconds: most errors show here.
    settings = read_manifest(path).settings
    if trust_remote_code is not None:
        refuse_trust(path, settings, trust_remote_code=trust_remote_code)
    from forvalue_index.cli.progress import drawn_progress
    from forvalue_index.index import ValuationIndex

    with (
        drawn_progress() as on_progress,
        ValuationIndex.open(
            path, model=model, trust_remote_code=bool(trust_remote_code), on_progress=on_progress
        ) as index,
    ):
        yield index
