"""What of a sample's row in the catalog is not what was stored."""

from __future__ import annotations

import zlib
from typing import Any

from forvalue_index.exceptions import BrokenIndexError

# Of a text, once it is decompressed: a few bytes may stand for a text that fills the memory.
MOST_TEXT_BYTES = 2**29
_NUMBER, _MAYBE = (int, float), type(None)
_TYPES = {
    **dict.fromkeys(("id", "position", "n_tokens", "n_label_tokens"), (int,)),
    **dict.fromkeys(("key", "content_hash", "source", "segment"), (str,)),
    **dict.fromkeys(("loss", "label_error_mass", "norm"), _NUMBER),
    **dict.fromkeys(("offset", "checksum"), (int, _MAYBE)),
    **dict.fromkeys(("truncated", "removed"), (bool,)),
    "metadata": (dict,),
    "payload": (bytes, _MAYBE),
    "mapping": (dict, _MAYBE),
}


def refuse_other_types(row: Any) -> None:
    """Raise BrokenIndexError where a column has a value of another type than was stored."""
    for name, kinds in _TYPES.items():
        value = getattr(row, name)
        if type(value) not in kinds:
            raise damaged(row.id, f"its {name} is {type(value).__name__}")


def decompressed(id_: int, payload: bytes) -> bytes:
    """The text of a sample. Raises BrokenIndexError where it is damaged, or fills the memory."""
    try:
        inflating = zlib.decompressobj()
        text = inflating.decompress(payload, MOST_TEXT_BYTES)
    except zlib.error as error:
        raise damaged(id_, str(error)) from error
    if not inflating.eof:
        reason = "is cut off" if not inflating.unconsumed_tail else "is far too long"
        raise damaged(id_, f"its text {reason}")
    return text


def damaged(id_: object, reason: str) -> BrokenIndexError:
    """An error that names a sample and what to do."""
    return BrokenIndexError(
        f"What the catalog holds of sample {id_} is damaged ({reason}). Restore the catalog from a "
        "backup, or remove the sample, compact the index and add it again"
    )
