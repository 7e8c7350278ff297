"""What an index is made with: frozen when it is created, checked whenever it is opened."""

from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from forvalue_index.exceptions import BrokenIndexError, UsageError

FORMAT_VERSION = 3

DEFAULT_DIM = 4096
# Tokens, for models that do not say what they read at most.
DEFAULT_CONTEXT = 4096
DEFAULT_CATALOG = "sqlite"
LABELS = ("response", "all")
TEMPLATES = ("auto", "chat", "plain")
# With the bytes of a float.
ROW_DTYPES = {"bfloat16": 2, "float32": 4, "int8": 1}
DTYPES = ("auto", "float32", "bfloat16", "float16")
ON_BAD = ("fail", "skip")
# Where the texts of samples lie: in the catalog, or in the data files that it refers to.
PAYLOADS = ("catalog", "reference")
# Where images lie: in the files that rows name, or copied into the index; with none, a model that
# could read them reads text alone.
MEDIA = ("reference", "copy", NO_IMAGES := "none")
GEOMETRIES = ("raw", "centered", "fisher", "kfac")
DEFAULT_GEOMETRY = "raw"
FLAT, RABITQ, IVF_RABITQ = SEARCH_KINDS = ("flat", "rabitq", "ivf-rabitq")
# From so many rows on, one bit a float is searched. Lists of them are for whoever tuned them: with
# inner products and norms of a long tail, the lists near a query do not hold its best rows.
RABITQ_FROM = 50_000
DEFAULT_DAMPING = 1.0
# What indexes were made with before these could be chosen; part of a fingerprint only where other.
BEFORE = {
    "geometry": "raw",
    "damping": 1.0,
    "max_label_tokens": None,
    "hardest": None,
    "media": "reference",
}


@dataclass(frozen=True)
class Settings:
    """What a user chooses. `auto` and a `max_length` of None are resolved against the model.

    `geometry` names one or several, with commas between. `max_label_tokens` keeps the first label
    tokens of a sample alone, `hardest` the share of them with the highest loss.

    `trust_remote_code` records that the model runs code of its own. What a file says is not trust:
    whoever opens the index has to say it again.

    Raises:
        UsageError: a value that can never work, with what is allowed.
    """

    model: str
    adapter: str | None = None
    revision: str | None = None
    dim: int = DEFAULT_DIM
    seed: int = 0
    labels: str = "response"
    template: str = "auto"
    max_length: int | None = None
    row_dtype: str = "bfloat16"
    dtype: str = "auto"
    trust_remote_code: bool = False
    payload: str = "catalog"
    media: str = "reference"
    geometry: str = DEFAULT_GEOMETRY
    damping: float = DEFAULT_DAMPING
    max_label_tokens: int | None = None
    hardest: float | None = None

    def __post_init__(self) -> None:
        _require(bool(self.model), "model", self.model, "name a hub id, a directory or a file")
        _one_of("labels", self.labels, LABELS)
        _one_of("template", self.template, TEMPLATES)
        _one_of("row_dtype", self.row_dtype, tuple(ROW_DTYPES))
        _one_of("dtype", self.dtype, DTYPES)
        _one_of("payload", self.payload, PAYLOADS)
        _one_of("media", self.media, MEDIA)
        held = self.payload == "catalog" or self.media != "copy"
        _require(held, "media", self.media, "with --payload reference, images stay in the data")
        _one_of("trust_remote_code", self.trust_remote_code, (False, True))
        _require(16 <= self.dim <= 2**20, "dim", self.dim, "use 16 to 1,048,576")
        _require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 or more")
        shortest = self.max_length is None or self.max_length >= 2
        _require(shortest, "max_length", self.max_length, "use at least 2 tokens")
        for name in self.geometries:
            _one_of("geometry", name, GEOMETRIES)
        once = len(set(self.geometries)) == len(self.geometries)
        _require(once, "geometry", self.geometry, "name each geometry once")
        _require(0 < self.damping < math.inf, "damping", self.damping, "use more than 0")
        some = self.max_label_tokens is None or self.max_label_tokens >= 1
        _require(some, "max_label_tokens", self.max_label_tokens, "use at least 1 token")
        share = self.hardest is None or 0 < self.hardest <= 1
        _require(share, "hardest", self.hardest, "use more than 0 and at most 1")

    @property
    def geometries(self) -> tuple[str, ...]:
        """The geometries that rows are kept in; the first is the one that queries use."""
        return tuple(name.strip() for name in self.geometry.split(","))


@dataclass(frozen=True)
class ModelIdentity:
    """What a model is, wherever it lies: digests of its parts, and the head's size.

    Models that read text alone have no processor.
    """

    weights_digest: str
    tokenizer_digest: str
    vocab_size: int
    hidden_size: int
    processor_digest: str | None = None

    @property
    def reads_images(self) -> bool:
        """Whether samples may have images."""
        return self.processor_digest is not None


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
        for how in ("model", "adapter", "revision", "trust_remote_code", "payload", "media"):
            del chosen[how]
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
            document = json.loads(text)
            _check_version(document["format_version"], where)
            manifest = cls(
                uid=str(document["uid"]),
                catalog=str(document["catalog"]),
                settings=Settings(**BEFORE | document["settings"]),
                model=ModelIdentity(**document["model"]),
                sketch_digest=str(document["sketch_digest"]),
                format_version=int(document["format_version"]),
            )
        except (ValueError, KeyError, TypeError, UsageError) as error:
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


def refuse_on_bad(on_bad: str) -> None:
    """Raise UsageError unless this says what to do about bad rows."""
    _one_of("on_bad", on_bad, ON_BAD)


def search_kind(n_rows: int, wanted: str | None = None) -> str:
    """The kind of search index for so many rows, unless one is asked for."""
    if wanted is not None:
        _one_of("search", wanted, SEARCH_KINDS)
        return wanted
    return FLAT if n_rows < RABITQ_FROM else RABITQ


def first_difference(stored: Any, given: Any) -> tuple[str, Any, Any] | None:
    """The first field in which two dataclasses of one kind differ, with both values."""
    for f in fields(stored):
        mine, theirs = getattr(stored, f.name), getattr(given, f.name)
        if mine != theirs:
            return f.name, mine, theirs
    return None


def _check_version(version: Any, where: str) -> None:
    if int(version) > FORMAT_VERSION:
        raise BrokenIndexError(
            f"{where}: the index has format version {version}, and this forvalue-index reads up "
            f"to {FORMAT_VERSION}; install a newer forvalue-index"
        )


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    _require(value in allowed, name, value, "use one of " + ", ".join(map(str, allowed)))


def _require(condition: bool, name: str, value: object, advice: str) -> None:
    if not condition:
        option = "--" + name.replace("_", "-")
        raise UsageError(f"{option} cannot be {value!r}; {advice}")
