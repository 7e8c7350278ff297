"""What an index is made with: frozen when it is created, checked whenever it is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass

from forvalue_index.exceptions import UsageError

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


DEFAULT_DAMPING = 1.0


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
        require(bool(self.model), "model", self.model, "name a hub id, a directory or a file")
        require_one_of("labels", self.labels, LABELS)
        require_one_of("template", self.template, TEMPLATES)
        require_one_of("row_dtype", self.row_dtype, tuple(ROW_DTYPES))
        require_one_of("dtype", self.dtype, DTYPES)
        require_one_of("payload", self.payload, PAYLOADS)
        require_one_of("media", self.media, MEDIA)
        held = self.payload == "catalog" or self.media != "copy"
        require(held, "media", self.media, "with --payload reference, images stay in the data")
        require_one_of("trust_remote_code", self.trust_remote_code, (False, True))
        require(16 <= self.dim <= 2**20, "dim", self.dim, "use 16 to 1,048,576")
        require(0 <= self.seed < 2**63, "seed", self.seed, "use 0 or more")
        shortest = self.max_length is None or self.max_length >= 2
        require(shortest, "max_length", self.max_length, "use at least 2 tokens")
        for name in self.geometries:
            require_one_of("geometry", name, GEOMETRIES)
        once = len(set(self.geometries)) == len(self.geometries)
        require(once, "geometry", self.geometry, "name each geometry once")
        require(0 < self.damping < math.inf, "damping", self.damping, "use more than 0")
        some = self.max_label_tokens is None or self.max_label_tokens >= 1
        require(some, "max_label_tokens", self.max_label_tokens, "use at least 1 token")
        share = self.hardest is None or 0 < self.hardest <= 1
        require(share, "hardest", self.hardest, "use more than 0 and at most 1")

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


def refuse_on_bad(on_bad: str) -> None:
    """Raise UsageError unless this says what to do about bad rows."""
    require_one_of("on_bad", on_bad, ON_BAD)


def require_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise UsageError, naming the option, unless a value is one of those allowed."""
    require(value in allowed, name, value, "use one of " + ", ".join(map(str, allowed)))


def require(condition: bool, name: str, value: object, advice: str) -> None:
    """Raise UsageError, naming the option and its value, unless a condition holds."""
    if not condition:
        option = "--" + name.replace("_", "-")
        raise UsageError(f"{option} cannot be {value!r}; {advice}")
