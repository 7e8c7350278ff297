"""Fields of the metadata of samples, which say what an evaluation compares."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from forvalue_index.exceptions import UsageError
from forvalue_index.sources.sample import Sample


def field_values(samples: Iterable[Sample], field: str, *, role: str) -> list[Any]:
    """What each sample has under a field of its metadata. Raises UsageError where one lacks it."""
    values = []
    for sample in samples:
        value = sample.metadata.get(field)
        if value is None:
            there = ", ".join(sorted(map(str, sample.metadata))) or "none at all"
            raise UsageError(
                f"the {role} sample {sample.key} ({sample.source}:{sample.position}) has no field "
                f"{field!r}; it has {there}. Name a field that every sample has"
            )
        values.append(value)
    return values


def class_names(samples: Iterable[Sample], field: str, *, role: str) -> list[str]:
    """The classes of samples as texts, so that 1 and "1" are one class. Raises UsageError."""
    return [
        value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
        for value in field_values(samples, field, role=role)
    ]
