"""Tells which training samples helped and which hurt a language model.

Embed every training sample once, then ask, for any validation set, which samples helped and
which hurt (For-Value, arXiv 2508.10180).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from forvalue_index.index import ValuationIndex

__all__ = ["ValuationIndex"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Lazily, so that the command line can show its help without importing torch.
    if name == "ValuationIndex":
        from forvalue_index.index import ValuationIndex

        return ValuationIndex
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
