"""What refuses an index that is not the one asked for: other settings, model, catalog or trust."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import SettingsMismatchError, UsageError
from forvalue_index.settings import DEFAULT_CATALOG, ModelIdentity, Settings
from forvalue_index.store.manifest import Manifest

MOST_SHOWN = 80


def refuse_other_settings(path: Path, stored: Settings, wanted: Settings) -> None:
    """Raise SettingsMismatchError, naming the first field, where a wish is not what is stored.

    A wish for `auto` or None is met by whatever it was resolved to.
    """
    given = {name: value for name, value in vars(wanted).items() if value not in ("auto", None)}
    difference = first_difference(stored, Settings(**{**vars(stored), **given}))
    if difference is not None:
        name, own, asked = difference
        raise SettingsMismatchError(
            f"{path} was built with {name} {_brief(own)}, and this asks for {_brief(asked)}. "
            "Settings are "
            "frozen: use the stored ones, or build a new index in another directory"
        )


def _brief(value: object) -> str:
    """A setting in a line; of a chat template, which is a program, the beginning."""
    text = repr(value)
    return text if len(text) <= MOST_SHOWN else f"{text[:MOST_SHOWN]}…"


def refuse_trust(path: Path, stored: Settings, *, trust_remote_code: bool) -> None:
    """Raise where the index says that its model runs code of its own and its user does not.

    Or the other way round. What stands in an index that came from a stranger is no trust.
    """
    if stored.trust_remote_code and not trust_remote_code:
        raise UsageError(
            f"{path}: the model {stored.model} runs code of its own; give --trust-remote-code if "
            "you trust it and the index"
        )
    if trust_remote_code and not stored.trust_remote_code:
        raise SettingsMismatchError(
            f"{path} was built with a model that runs no code of its own; leave out "
            "--trust-remote-code"
        )


def refuse_other_model(path: Path, stored: ModelIdentity, given: ModelIdentity) -> None:
    """Raise SettingsMismatchError, naming the first difference, where the model is another."""
    difference = first_difference(stored, given)
    if difference is not None:
        name, own, other = difference
        raise SettingsMismatchError(
            f"{path} was built with another model: its {name.replace('_', ' ')} is {own}, that of "
            f"the model given is {other}. Use the model, revision and adapter that the index was "
            "built with, or build a new index"
        )


def refuse_other_catalog(path: Path, stored: Manifest, wanted: str) -> None:
    """Raise UsageError where an index has its catalog elsewhere."""
    if wanted not in (DEFAULT_CATALOG, stored.catalog):
        raise UsageError(
            f"{path} has its catalog at {stored.shown_catalog}, and this asks for another; leave "
            "--catalog out"
        )


def first_difference(stored: Any, given: Any) -> tuple[str, Any, Any] | None:
    """The first field in which two dataclasses of one kind differ, with both values."""
    for f in fields(stored):
        own, other = getattr(stored, f.name), getattr(given, f.name)
        if own != other:
            return f.name, own, other
    return None
