"""Files at an address: whatever fsspec opens, read as a stream. Its home."""

from __future__ import annotations

import glob
import re
from functools import partial
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import SourceError, missing_extra
from forvalue_index.sources.files.data_files import DataFile
from forvalue_index.sources.files.dataset_library import refuse_split
from forvalue_index.sources.files.folders import shards
from forvalue_index.sources.files.rows import reachable

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
# These list no folders, and a question mark in them is no pattern.
WEB = ("http://", "https://")


def is_address(name: str) -> bool:
    """Whether a name says by which protocol it is found."""
    return ADDRESS.match(name) is not None


def local_path(address: str) -> Path | None:
    """The path of an address on this machine (`file://`), or None."""
    system, path = _system(address)
    protocols = system.protocol if isinstance(system.protocol, tuple) else (system.protocol,)
    return Path(path) if "file" in protocols else None


def remote_files(address: str, split: str | None) -> list[DataFile]:
    """The file at an address, those of a folder of shards, or those that a pattern matches.

    Raises SourceError, and MissingDependencyError for a protocol whose library is not installed.
    """
    system, path = _system(address)
    with reachable(address):
        system.invalidate_cache()
        if address.startswith(WEB):
            refuse_split(address, None, split)
            return [DataFile(address, partial(_open, system, path, address))]
        protocol = address[: address.index("://") + 3]
        if glob.has_magic(path):
            refuse_split(address, None, split)
            names = sorted(name for name in system.glob(path) if system.isfile(name))
            if not names:
                raise SourceError(f"{address} matches no file: check the pattern")
        elif system.isdir(path):
            names = _in_folder(system, path, address, split)
        else:
            refuse_split(address, None, split)
            system.info(path)  # It raises where there is nothing.
            names = [path]
        return [_file(system, name, protocol) for name in names]


def _in_folder(system: Any, path: str, address: str, split: str | None) -> list[str]:
    top = path.rstrip("/")

    def listed(below: str) -> dict[str, bool]:
        folder = f"{top}/{below}".rstrip("/")
        entries = {e["name"].rstrip("/"): e for e in system.ls(folder, detail=True)}
        # Some object stores list a folder in itself.
        return {
            name.rpartition("/")[2]: entry["type"] == "directory"
            for name, entry in entries.items()
            if name.strip("/") != folder.strip("/")
        }

    return [f"{top}/{name}" for name in shards(address.rstrip("/"), listed, split)]


def _file(system: Any, path: str, protocol: str) -> DataFile:
    name = protocol + path.removeprefix(protocol).lstrip("/")
    return DataFile(name, partial(_open, system, path, name))


def _open(system: Any, path: str, name: str) -> Any:
    with reachable(name):
        return system.open(path, "rb")


def _system(address: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        return url_to_fs(address)  # type: ignore[no-any-return]
    except ImportError as error:
        scheme = address.partition("://")[0]
        need = f"{address} needs a library for {scheme}:// that is not installed ({error});"
        raise missing_extra(need, "remote") from error
    except ValueError as error:
        raise SourceError(
            f"{address} has a protocol that is not known; use https, s3, gs, hf or file"
        ) from error
    except Exception as error:
        with reachable(address):
            raise error
