"""The FAISS that is installed: exactly one of the packages that install it, whichever it is."""

from __future__ import annotations

from functools import cache
from importlib import metadata
from typing import Any

from forvalue_index.exceptions import MissingDependencyError, missing_extra

# They all install the module `faiss`, over each other's files.
DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu", "faiss-gpu-cuvs", "faiss-gpu-cu11", "faiss-gpu-cu12")


@cache
def faiss_library() -> Any:
    """The module `faiss`. Raises MissingDependencyError where none, or more than one, is there."""
    installed = [name for name in DISTRIBUTIONS if _is_installed(name)]
    if len(installed) > 1:
        names = " ".join(installed)
        raise MissingDependencyError(
            f"{' and '.join(installed)} are installed and overwrite each other's files; "
            f"pip uninstall {names}, then install the one for your machine"
        )
    try:
        import faiss
    except ImportError as error:
        raise missing_extra(f"FAISS is missing ({error});", "cpu") from error
    return faiss


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
