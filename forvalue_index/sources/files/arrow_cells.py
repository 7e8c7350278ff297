"""Cells of Arrow as values of Python, whatever their type: what Python cannot hold becomes text."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

Decode = Callable[[Any], Any]
HUGGINGFACE = b"huggingface"
ISO = re.compile(r"[+-]?(\d{4,}-\d\d-\d\d([ T]\d\d:\d\d:\d\d|$)|\d\d:\d\d:\d\d)")


def refuse_repeated_names(schema: pa.Schema) -> None:
    """Raise ValueError where a column, or a field of a struct, comes twice: one would be lost."""
    _refuse_repeated(schema.names, "the columns")
    for field in schema:
        _refuse_repeated_fields(field.type, f"'{field.name}'")


def _refuse_repeated_fields(kind: pa.DataType, where: str) -> None:
    if pa.types.is_struct(kind):
        _refuse_repeated([field.name for field in _children(kind)], where)
    for field in _children(kind):
        _refuse_repeated_fields(field.type, where)


def _refuse_repeated(names: list[str], where: str) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name '{twice}' comes twice in {where}; rename one of the two")


def _children(kind: pa.DataType) -> list[pa.Field[Any]]:
    return [kind.field(at) for at in range(kind.num_fields)]


def has_maps(kind: pa.DataType) -> bool:
    """Whether a map is somewhere in a type."""
    return pa.types.is_map(kind) or any(has_maps(field.type) for field in _children(kind))


def json_decoders(schema: pa.Schema) -> dict[str, Decode]:
    """By name, what makes objects of columns in which JSON stands as text.

    They have Arrow's own type of JSON, or are marked so by the `datasets` library (`Json()`).
    """
    features = _features(schema)
    found = {field.name: _decoder(field.type, features.get(field.name)) for field in schema}
    return {name: decode for name, decode in found.items() if decode is not None}


def _features(schema: pa.Schema) -> Mapping[str, Any]:
    try:
        facts = json.loads((schema.metadata or {}).get(HUGGINGFACE, b"{}"))
        features = facts["info"]["features"]
    except (ValueError, KeyError, TypeError):
        return {}
    return features if isinstance(features, dict) else {}


def _decoder(kind: pa.DataType, feature: Any) -> Decode | None:
    """What decodes the JSON inside of cells of a type, if there is any."""
    marked = isinstance(feature, dict) and feature.get("_type") == "Json"
    if marked or getattr(kind, "extension_name", None) == "arrow.json":
        return _decoded
    if isinstance(kind, pa.BaseExtensionType):
        return None
    if pa.types.is_struct(kind):
        return _struct_decoder(kind, feature)
    if pa.types.is_nested(kind) and kind.num_fields == 1 and not pa.types.is_map(kind):
        return _list_decoder(kind, feature)
    return None


def _struct_decoder(kind: pa.DataType, feature: Any) -> Decode | None:
    inner = feature if isinstance(feature, dict) else {}
    found = {field.name: _decoder(field.type, inner.get(field.name)) for field in _children(kind)}
    decoders = {name: decode for name, decode in found.items() if decode is not None}

    def decode(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return value | {name: one(value[name]) for name, one in decoders.items() if name in value}

    return decode if decoders else None


def _list_decoder(kind: pa.DataType, feature: Any) -> Decode | None:
    if isinstance(feature, list):
        inner = feature[0] if feature else None
    else:
        inner = feature.get("feature") if isinstance(feature, dict) else None
    decode = _decoder(kind.field(0).type, inner)
    if decode is None:
        return None
    return lambda value: [decode(item) for item in value] if isinstance(value, list) else value


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def cell(scalar: pa.Scalar[Any]) -> Any:
    """The value of one cell; a date past Python's range as text, what is no UTF-8 as surrogates."""
    if not scalar.is_valid:
        return None
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except Exception:  # Of a damaged cell; each type raises errors of its own.
        return _mended(scalar)


def _mended(scalar: Any) -> Any:
    kind = scalar.type
    if isinstance(kind, pa.BaseExtensionType) or pa.types.is_dictionary(kind):
        return cell(scalar.value)
    if hasattr(scalar, "as_buffer"):
        return scalar.as_buffer().to_pybytes().decode("utf-8", "surrogateescape")
    if pa.types.is_struct(kind):
        return {field.name: cell(scalar[field.name]) for field in _children(kind)}
    if pa.types.is_map(kind):
        return [[cell(item["key"]), cell(item["value"])] for item in scalar.values]
    if hasattr(scalar, "values"):
        return [cell(item) for item in scalar.values]
    return _as_text(scalar)


def _as_text(scalar: Any) -> str | None:
    """What Arrow says of a value, in the form of ISO 8601 where it has one."""
    try:
        text = str(scalar.cast(pa.string()).as_py())
    except Exception:  # A type that has no text, or a time zone that nobody knows.
        return None
    if ISO.match(text):
        return text.replace(" ", "T", 1).replace("Z", "+00:00")
    return f"{scalar.value} ({scalar.type})" if pa.types.is_temporal(scalar.type) else text
