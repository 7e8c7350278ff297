"""Samples as rows of the catalog and back."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from decimal import Decimal
from itertools import islice
from operator import itemgetter
from typing import Any, TypeVar

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.cell_values import UNSTORABLE, are_integers
from forvalue_index.sources.images import MOST_PIXELS
from forvalue_index.sources.sample import TEXT_ROLE, Image, Message, Sample
from forvalue_index.store.catalog.damage import damaged, decompressed, refuse_other_types
from forvalue_index.store.records import Conversation, StoredSample

T = TypeVar("T")

# SQLite accepts 999 variables in its older versions.
CHUNK = 900
MAX_METADATA_DEPTH = 50
# PostgreSQL indexes up to 2,704 bytes.
MAX_NAME_BYTES = 2000
MOST_BITS = 13_000
DIGEST = re.compile(r"[0-9a-f]{32}")
_SCALARS = {str, int, float, bool, type(None)}
# What comes here was encoded once already, for its hash, and a search for circles takes its time.
_WRITTEN = json.JSONEncoder(ensure_ascii=False, default=str, check_circular=False).encode
_SORTED = json.JSONEncoder(sort_keys=True, check_circular=False).encode
_MEASURED = tuple(field.name for field in dataclasses.fields(SampleStatistics))
_FACTS = itemgetter("id", "key", "content_hash", "position", "offset", *_MEASURED)


def pack(
    id_: int, sample: Sample, statistics: SampleStatistics, *, referenced: bool = False
) -> dict[str, Any]:
    """Make the columns that depend on the sample and its id alone. Raises BadSampleError.

    The text of a `referenced` sample stays where it is.
    """
    measured = vars(statistics)
    if not all(map(math.isfinite, measured.values())):
        raise _bad(sample, f"its statistics {statistics} are not all finite; leave the sample out")
    if reason := unstorable(sample):
        raise _bad(sample, reason)
    text = b"" if referenced else _text(sample)
    row = {
        "id": id_,
        "key": sample.key,
        "content_hash": sample.content_hash,
        "position": sample.position,
        "metadata": clean_metadata(sample.metadata),
        "payload": None if referenced else zlib.compress(text),
        "offset": sample.offset if referenced else None,
        **measured,
    }
    return row | {"checksum": _checksum(row, sample.source, text)}


def revise(stored: StoredSample) -> dict[str, Any]:
    """The columns that change where a stored sample gets other metadata, source or images."""
    row = pack(stored.id, stored.sample, stored.statistics, referenced=stored.referenced)
    changing = ("position", "offset", "metadata", "payload", "checksum")
    return {name: row[name] for name in changing}


def unstorable(sample: Sample) -> str | None:
    """Why no catalog can hold a sample, or None; asked before a forward pass is spent on it."""
    for name, text in (("id", sample.key), ("source", sample.source)):
        if text != clean_text(text):
            return f"its {name} {text!r} holds a NUL or half a surrogate pair; mend it"
        if len(text.encode()) > MAX_NAME_BYTES:
            shown = f"{text[:40]}…"
            return f"its {name} {shown!r} is longer than {MAX_NAME_BYTES:,} bytes; shorten it"
    if _depth_exceeds(sample.metadata, MAX_METADATA_DEPTH):
        return f"its metadata is nested deeper than {MAX_METADATA_DEPTH}; flatten it"
    return None


def unpack(row: Any, text_found: Conversation | str = "") -> StoredSample:
    """Rebuild a sample from its row joined with the names of its source and segment.

    `text_found` is the text of a referenced sample, or why there is none. Raises BrokenIndexError
    where the row is not what was stored.
    """
    refuse_other_types(row)
    referenced = row.payload is None
    text = b"" if referenced else decompressed(row.id, row.payload)
    found = text_found if referenced else _conversation(row.id, text)
    lost = found if isinstance(found, str) else None
    if isinstance(found, str):
        found = Conversation((Message(TEXT_ROLE, f"[{lost}]"),))
    keyed = row.key == row.content_hash and lost is None
    sample = Sample(
        messages=found.messages,
        tools=found.tools,
        source=row.source,
        position=row.position,
        own_id=None if keyed else row.key,
        metadata=row.metadata,
        offset=row.offset,
    )
    checksum = _checksum(row._mapping, row.source, text)
    if row.checksum not in (None, checksum):
        raise damaged(row.id, f"its checksum is {checksum}, and was {row.checksum}")
    statistics = SampleStatistics(*(getattr(row, name) for name in _MEASURED))
    return StoredSample(
        row.id,
        sample,
        statistics,
        row.segment,
        row.removed,
        referenced,
        text_error=lost,
        columns=row.mapping or {},
    )


def with_facts_of(sample: Sample, stored: Sample) -> Sample:
    """A stored sample with what changes of an equal one: its position, metadata and images.

    The messages are equal, though the order of their fields may not be.
    """
    names = ("source", "position", "offset", "metadata")
    given = {name: getattr(sample, name) for name in names}
    messages = tuple(
        dataclasses.replace(message, images=given_message.images)
        for message, given_message in zip(stored.messages, sample.messages, strict=True)
    )
    return dataclasses.replace(stored, messages=messages, **given)


def changed_metadata(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Stored metadata with new and other values of a row read again; None where it has none."""
    merged = {**stored, **clean_metadata(given)}
    return None if compared(stored) == compared(merged) else merged


def compared(value: Any) -> str:
    """JSON that is equal for what is equal in a catalog: whole floats and the same integers are."""
    return _SORTED(_canonical(value))


def clean_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Turn metadata into what every database can hold as JSON and compare.

    NaN and infinity become null, integers of some 4,000 digits and unknown types become text, NUL
    and halves of surrogate pairs become U+FFFD.
    """
    return {clean_text(str(name)): _clean(value) for name, value in metadata.items()}


def clean_text(text: str) -> str:
    """Replace what no database stores as text, NUL and halves of surrogate pairs, by U+FFFD."""
    # Through UTF-16, where the two halves of a pair become one character again.
    whole = text if text.isascii() else _without_half_pairs(text)
    return whole.replace("\0", "�") if "\0" in whole else whole


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """Split into lists that fit into one statement as variables."""
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK)):
        yield chunk


def _bad(sample: Sample, reason: str) -> BadSampleError:
    return BadSampleError(f"{sample.source}:{sample.position}: cannot be stored: {reason}")


def _depth_exceeds(value: Any, limit: int) -> bool:
    if type(value) in _SCALARS or not isinstance(value, Mapping | list | tuple):
        return False
    entries = value.values() if isinstance(value, Mapping) else value
    if limit == 0 or are_integers(entries):
        return limit == 0
    return any(_depth_exceeds(entry, limit - 1) for entry in entries)


def _clean(value: Any) -> Any:
    if type(value) is str:
        return clean_text(value)
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return _clean_number(value)
    if isinstance(value, Mapping):
        return {clean_text(str(name)): _clean(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return list(value) if are_integers(value) else [_clean(entry) for entry in value]
    return clean_text(str(value))


def _clean_number(value: int | float) -> int | float | str | None:
    if isinstance(value, int):
        # Python writes no integer of more than 4,300 digits in decimals.
        return int(value) if value.bit_length() <= MOST_BITS else hex(value)
    return float(value) if math.isfinite(value) else None


def _without_half_pairs(text: str) -> str:
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _text(sample: Sample) -> bytes:
    """The messages; in an object where there are tools beside them."""
    messages = [message.as_dict() for message in sample.messages]
    whole = {"messages": messages, "tools": sample.tools} if sample.tools else messages
    return _WRITTEN(whole).encode("utf-8", "surrogatepass")


def _conversation(id_: int, text: bytes) -> Conversation:
    try:
        whole = json.loads(text or b"[]")
        held = whole if isinstance(whole, dict) else {"messages": whole, "tools": []}
        messages = tuple(_message(fields) for fields in held["messages"])
        return Conversation(messages, tuple(map(dict, held["tools"])))
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise damaged(id_, repr(error)) from error


def _checksum(row: Mapping[str, Any], source: str, text: bytes) -> int:
    """CRC-32 of all that a reader sees of a sample.

    Databases check their structure, and not all of them what they hold.
    """
    facts = [source, *_FACTS(row), _canonical(row["metadata"])]
    return zlib.crc32(text, zlib.crc32(_SORTED(facts).encode()))


def _canonical(value: Any) -> Any:
    """JSON with whole numbers as integers: PostgreSQL does not tell 2.0 from 2, nor 1e23 from 10²³.

    It keeps the digits that were written, not the nearest binary fraction.
    """
    if type(value) is str:
        return value
    if isinstance(value, dict):
        return {name: _canonical(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return value if are_integers(value) else [_canonical(entry) for entry in value]
    whole = isinstance(value, float) and value.is_integer()
    return int(Decimal(repr(value))) if whole else value


def _message(fields: dict[str, Any]) -> Message:
    extra = {name: value for name, value in fields.items() if name not in ("role", "content")}
    images: Any = extra.get("images")
    kept_images: tuple[Image, ...] = ()
    if _are_images(images):
        del extra["images"]
        kept_images = tuple(_image(image, len(fields["content"])) for image in images)
    return Message(fields["role"], fields["content"], extra, kept_images)


def _image(fields: dict[str, Any], length: int) -> Image:
    """A stored image; an index may come from a stranger, so nothing of it is taken on trust."""
    path = fields.get("path")
    sound = (
        fields.keys() <= {"digest", "width", "height", "at", "path"}
        and all(type(fields[name]) is int for name in ("width", "height", "at"))
        and _is_size(fields["width"], fields["height"])
        and 0 <= fields["at"] <= length
        and isinstance(fields["digest"], str)
        and DIGEST.fullmatch(fields["digest"])
        and (path is None or _is_name(path))
    )
    if not sound:
        raise ValueError(f"an image of it is {fields}")
    return Image(**fields)


def _is_size(width: int, height: int) -> bool:
    return min(width, height) > 0 and width * height <= MOST_PIXELS


def _is_name(path: Any) -> bool:
    return isinstance(path, str) and not UNSTORABLE.search(path)


def _are_images(value: Any) -> bool:
    """Whether this is what is stored of images, and no field of a row that has that name."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(one, dict) and "digest" in one for one in value)
    )
