"""What an index is, and where its parts lie. Needs neither torch nor FAISS.

runs/a/index.json           settings, model digests, fingerprint; written last at creation
runs/a/sketch.safetensors   hash tables of the sketch
runs/a/calibration.safetensors  what was measured on a sample of the first data
runs/a/catalog.sqlite       samples, segments, sources (or a database elsewhere)
runs/a/committed.json       the number of the last change to the catalog
runs/a/segments/            rows
runs/a/media/               copies of images, if `--media copy` asks for them
runs/a/rejected/            rows that `add --on-bad skip` left out
runs/a/lds/                 losses after training on halves, which `evaluate lds` keeps
runs/a/writer.lock          held by the one process that writes
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError, UsageError
from forvalue_index.settings import ROW_DTYPES, ModelIdentity, Settings
from forvalue_index.store.catalog.addresses import CATALOG, catalog_address, refuse_strange_catalog
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import upgrade
from forvalue_index.store.catalog.witness import WITNESS, Witness
from forvalue_index.store.durable import whole_name
from forvalue_index.store.permissions import parsed_document, read_text
from forvalue_index.store.records import Texts
from forvalue_index.store.writer_lock import LOCK, writer_lock

MANIFEST = "index.json"
TABLES = "sketch.safetensors"
CALIBRATION = "calibration.safetensors"
SEGMENTS = "segments"
MEDIA = "media"
# Derived from the segments, and made anew where it is missing.
SEARCH = "search"
REJECTED = "rejected"
# What `evaluate lds` keeps.
LDS = "lds"
FILES = (
    *(MANIFEST, TABLES, CALIBRATION, WITNESS, LOCK),
    *(CATALOG + suffix for suffix in ("", "-wal", "-shm", "-journal")),
)
DIRECTORIES = (SEGMENTS, MEDIA, REJECTED, LDS)
# What an interrupted creation may leave behind; it is safe to create an index over it.
PARTS = (TABLES, SEGMENTS, LOCK)
PARTIAL_PARTS = (TABLES, MANIFEST)
FORMAT_VERSION = 4
# How the model is found and run, and where texts and images lie. The digest of the tokenizer covers
# the chat template.
FOUND_AND_RUN = (
    *("model", "adapter", "revision", "trust_remote_code", "payload", "media", "chat_template"),
)
# What indexes were made with before these could be chosen; part of a fingerprint only where other.
BEFORE = {
    "geometry": "raw",
    "damping": 1.0,
    "max_label_tokens": None,
    "hardest": None,
    "media": "reference",
}


@dataclass(frozen=True)
class Manifest:
    """Everything an index is, as `index.json` holds it.

    `settings` are resolved: they hold no `auto`, and `max_length` is a number.
    """

    uid: str
    catalog: str
    settings: Settings
    model: ModelIdentity
    sketch_digest: str
    format_version: int = FORMAT_VERSION

    @property
    def fingerprint(self) -> str:
        """Digest of all that rows depend on: how the model is found and run is not part of it."""
        canonical = json.dumps(self._row_facts(), sort_keys=True)
        return hashlib.blake2b(canonical.encode(), digest_size=16).hexdigest()

    @property
    def shown_catalog(self) -> str:
        """Where the catalog lies, without a password."""
        return re.sub(r"(://[^:/@]*):[^@/]*@", r"\1:***@", self.catalog)

    @property
    def exact_rows(self) -> bool:
        """Whether a row is the gradient itself, as it is where that is no larger than `dim`."""
        return self.model.vocab_size * self.model.hidden_size <= self.settings.dim

    @property
    def row_width(self) -> int:
        """Floats in a row."""
        size = self.model.vocab_size * self.model.hidden_size
        return min(size, self.settings.dim)

    @property
    def sample_bytes(self) -> int:
        """Bytes of the rows of a sample, of all geometries, but for scales and checksums."""
        width = self.row_width * len(self.settings.geometries)
        return width * ROW_DTYPES[self.settings.row_dtype]

    def _row_facts(self) -> dict[str, Any]:
        chosen = asdict(self.settings)
        for name in FOUND_AND_RUN:
            del chosen[name]
        for name, value in BEFORE.items():
            if chosen.get(name) == value:
                del chosen[name]
        model = {name: value for name, value in asdict(self.model).items() if value is not None}
        return {**chosen, **model, "sketch_digest": self.sketch_digest}

    def to_json(self) -> str:
        """The text of `index.json`."""
        return json.dumps({**asdict(self), "fingerprint": self.fingerprint}, indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Manifest:
        """Parse `index.json`. Raises BrokenIndexError for a newer version or a damaged file."""
        try:
            document = parsed_document(text)
            _check_version(document["format_version"], where)
            manifest = cls(
                uid=str(document["uid"]),
                catalog=str(document["catalog"]),
                settings=Settings(**BEFORE | document["settings"]),
                model=ModelIdentity(**document["model"]),
                sketch_digest=str(document["sketch_digest"]),
                format_version=int(document["format_version"]),
            )
        except (ValueError, KeyError, TypeError, ArithmeticError, UsageError) as error:
            raise BrokenIndexError(
                f"{where}: index.json is damaged ({error!r}); restore it from a backup, or build "
                "the index anew"
            ) from error
        if document.get("fingerprint") != manifest.fingerprint:
            raise BrokenIndexError(
                f"{where}: index.json was edited: its fingerprint is {document.get('fingerprint')}"
                f", its contents give {manifest.fingerprint}. Settings are frozen when an index "
                "is created; restore the file, or build a new index"
            )
        return manifest


def open_catalog(path: Path) -> tuple[Manifest, Catalog]:
    """The manifest and the catalog of the index at `path`; close the catalog after use.

    Raises:
        BrokenIndexError: there is no index, or a damaged one, or one of a newer version.
        SettingsMismatchError: manifest and catalog are not from the same index.
    """
    manifest = read_manifest(path)
    refuse_strange_catalog(manifest.catalog)
    address = catalog_address(path, manifest.catalog)
    texts = texts_of(path, manifest.settings, manifest.model)
    catalog = Catalog.open(address, manifest.uid, texts=texts, witness=Witness(path.absolute()))
    if catalog.fingerprint != manifest.fingerprint:
        catalog.close()
        raise SettingsMismatchError(
            f"{path}: the catalog belongs to rows of fingerprint {catalog.fingerprint}, "
            f"{MANIFEST} to {manifest.fingerprint}; restore both from one backup"
        )
    return manifest, catalog


def migrate_catalog(path: Path, *, wait: bool = False) -> tuple[str, str]:
    """Bring the catalog of the index at `path` to this version's schema.

    Returns the schema before and after. Raises BusyIndexError where another process writes and
    `wait` is false, BrokenIndexError where the catalog is missing, damaged or of a newer version.
    """
    manifest = read_manifest(path)
    refuse_strange_catalog(manifest.catalog)
    with writer_lock(path, wait=wait):
        return upgrade(catalog_address(path, manifest.catalog))


def read_manifest(path: Path) -> Manifest:
    """The manifest of the index at `path`. Raises BrokenIndexError where there is none."""
    _refuse_strange_parts(path)
    try:
        text = read_text(path / MANIFEST)
    except (FileNotFoundError, NotADirectoryError) as error:
        there = path.exists()
        state, new = ("is not an index", "NEW_DIRECTORY") if there else ("does not exist", path)
        raise BrokenIndexError(
            f"{path} {state}; create one with: forvalue init {new} --model MODEL"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise BrokenIndexError(f"{path / MANIFEST} cannot be read ({error}); mend it") from error
    return Manifest.from_json(text, where=str(path))


def texts_of(path: Path, settings: Settings, model: ModelIdentity) -> Texts | None:
    """The texts that the catalog of the index at `path` refers to, or None where it holds them."""
    if settings.payload != "reference":
        return None
    # Imported here because few indexes need it, and it loads every reader of data files.
    from forvalue_index.store.texts import FileTexts

    return FileTexts(path.resolve().parent, images=model.reads_images)


def is_index(path: Path) -> bool:
    """Whether an index was created here."""
    return (path / MANIFEST).is_file()


def refuse_occupied(path: Path) -> None:
    """Raise BrokenIndexError where a new index would mix with something else."""
    if path.exists() and not path.is_dir():
        raise BrokenIndexError(f"{path} is a file; name a directory for the new index")
    strangers = [p.name for p in path.iterdir() if not _is_part(p.name)] if path.is_dir() else []
    if strangers:
        raise BrokenIndexError(
            f"{path} holds other files ({strangers[0]}, ...) and no index; name a new directory"
        )
    _refuse_strange_parts(path)


def _refuse_strange_parts(path: Path) -> None:
    """An index may come from a stranger: nothing of it may stand for a file elsewhere.

    And all parts are files and directories: a pipe is waited for for ever.
    """
    inside = path.resolve()
    for name in (*FILES, *DIRECTORIES):
        part = path / name
        if not part.resolve().is_relative_to(inside):
            raise BrokenIndexError(
                f"{part} is a link that leads out of the index, and nothing outside of an "
                "index is read; put the file itself there, or link the whole directory"
            )
        is_sound = part.is_file() if name in FILES else part.is_dir()
        if not is_sound and os.path.lexists(part):
            kind = "file" if name in FILES else "directory"
            lost = name in (MANIFEST, TABLES, CALIBRATION, CATALOG, SEGMENTS)
            cure = "restore it from a backup, or build the index anew" if lost else "delete it"
            raise BrokenIndexError(f"{part} is no {kind}; {cure}")


def _is_part(name: str) -> bool:
    return name in PARTS or name.startswith(CATALOG) or whole_name(name) in PARTIAL_PARTS


def _check_version(version: Any, where: str) -> None:
    if int(version) > FORMAT_VERSION:
        raise BrokenIndexError(
            f"{where}: the index has format version {version}, and this forvalue-index reads up "
            f"to {FORMAT_VERSION}; install a newer forvalue-index"
        )
