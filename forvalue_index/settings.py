"""What an index is made with: frozen when it is created, checked whenever it is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from typing import Any, get_args, get_type_hints

from forvalue_index.exceptions import UsageError

# Tokens, for models that do not say what they read at most.
DEFAULT_CONTEXT = 4096
DEFAULT_CATALOG = "sqlite"
LABELS = ("response", "last", "all")
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
GEOMETRIES = (RAW := "raw", CENTERED := "centered", FISHER := "fisher", KFAC := "kfac")


@dataclass(frozen=True)
class Settings:
    """What a user chooses. `auto` and a `max_length` of None are resolved against the model.

    The options of `init` are made of these fields: their types, defaults, choices and help. `info`
    shows them all.

    `chat_template` is the text of a template: an index does not depend on the file it came from.

    `geometry` names one or several, with commas between. `max_label_tokens` keeps the first label
    tokens of a sample alone, `hardest` the share of them with the highest loss.

    `trust_remote_code` records that the model runs code of its own. What a file says is not trust:
    whoever opens the index has to say it again.

    Raises:
        UsageError: a value that can never work, with what is allowed.
    """

    model: str = field(metadata={"help": "Hub id, local directory or GGUF file."})
    adapter: str | None = field(
        default=None, metadata={"help": "PEFT adapter to merge into the model."}
    )
    revision: str | None = field(default=None, metadata={"help": "Revision of a model on the hub."})
    dim: int = field(default=4096, metadata={"help": "Floats a row: more is exacter."})
    seed: int = field(default=0, metadata={"help": "Seed of the sketch."})
    labels: str = field(
        default="response",
        metadata={
            "help": "Which tokens are scored: what the assistant says, in its last turn alone, or "
            "all.",
            "choices": LABELS,
        },
    )
    template: str = field(
        default="auto",
        metadata={
            "help": "Chat template, or plain prompt + response; auto: the template where there is "
            "one.",
            "choices": TEMPLATES,
        },
    )
    chat_template: str | None = field(
        default=None,
        metadata={
            "help": "File with a chat template in place of the model's.  [default: the adapter's, "
            "or else the model's]"
        },
    )
    max_length: int | None = field(
        default=None, metadata={"help": "Tokens a sample, at most.  [default: the context]"}
    )
    row_dtype: str = field(
        default="bfloat16",
        metadata={
            "help": "Precision of stored rows; int8 has one scale a row, and half the bytes.",
            "choices": tuple(ROW_DTYPES),
        },
    )
    dtype: str = field(
        default="auto",
        metadata={
            "help": "Precision of the model; auto: bfloat16 on a GPU, float32 on a CPU.",
            "choices": DTYPES,
        },
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Let the model run code that comes with it."}
    )
    payload: str = field(
        default="catalog",
        metadata={
            "help": "Keep the texts, or refer to them: files and offsets, below the directory of "
            "INDEX.",
            "choices": PAYLOADS,
        },
    )
    media: str = field(
        default="reference",
        metadata={
            "help": "Refer to the files of images, or keep copies in INDEX.",
            "choices": MEDIA,
        },
    )
    geometry: str = field(
        default=RAW,
        metadata={
            "help": f"What rows are made of, one or several: {', '.join(GEOMETRIES)}, with commas "
            "between."
        },
    )
    damping: float = field(
        default=1.0,
        metadata={"help": "Of fisher and kfac, in units of the mean of what it is added to."},
    )
    max_label_tokens: int | None = field(
        default=None, metadata={"help": "Score the first labels of a sample alone."}
    )
    hardest: float | None = field(
        default=None, metadata={"help": "Score this share of labels alone: of highest loss."}
    )

    def __post_init__(self) -> None:
        refuse_other_types(self)
        require(bool(self.model), "model", self.model, "name a hub id, a directory or a file")
        self._require_choices()
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

    def _require_choices(self) -> None:
        for chosen in fields(self):
            if "choices" in chosen.metadata:
                value = getattr(self, chosen.name)
                require_one_of(chosen.name, value, chosen.metadata["choices"])

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

    def __post_init__(self) -> None:
        refuse_other_types(self)

    @property
    def reads_images(self) -> bool:
        """Whether samples may have images."""
        return self.processor_digest is not None


def refuse_other_types(record: Any) -> None:
    """Raise UsageError where a field of a record has a value of another type than it says."""
    for name, kind in get_type_hints(type(record)).items():
        allowed = get_args(kind) or (kind,)
        value = getattr(record, name)
        is_whole = type(value) is int and float in allowed
        names = " or ".join("nothing" if a is type(None) else a.__name__ for a in allowed)
        require(type(value) in allowed or is_whole, name, value, f"use {names}")


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
