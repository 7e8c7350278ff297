"""Which turns of the assistant are labels: what data sets write to leave some out.

OpenAI's fine-tuning has `weight`, axolotl `train` or `training`, ms-swift `loss` or `loss_scale`,
LLaMA-Factory v1 `loss_weight`. Each is one or zero here: a label counts in full or not at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.sample import ASSISTANT, TRAINED

ON_ROLES = ("train", "training")
TRAINING_MARKS = (*ON_ROLES, "weight", "loss", "loss_scale", "loss_weight")
DETAIL = "train_detail"
WORDS = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def with_training_marks(extra: dict[str, Any], role: str, location: str) -> dict[str, Any]:
    """The fields of a turn, with `train` false where one of them says that it is no label.

    Raises BadSampleError for a weight in between, and for a label that is none of the assistant.
    """
    if extra.get(DETAIL):
        raise BadSampleError(
            f"{location} has {DETAIL}, and a turn is a label as a whole or not at all; split the "
            f"turn, or read it whole with --ignore {DETAIL}"
        )
    said = {
        name: _is_label(name, extra[name], role, location)
        for name in TRAINING_MARKS
        if name in extra
    }
    if role != ASSISTANT or False not in said.values():
        return extra
    if True in said.values():
        told = ", ".join(f"{name} {extra[name]!r}" for name in said)
        raise BadSampleError(f"{location} has {told}, which contradict each other; keep one")
    return extra | {TRAINED: False}


def context_only(extra: Mapping[str, Any]) -> Mapping[str, Any]:
    """The fields of the assistant's turn in a prompt, which is no label unless they say so."""
    return extra if any(name in extra for name in TRAINING_MARKS) else {**extra, TRAINED: False}


def _is_label(name: str, value: Any, role: str, location: str) -> bool:
    if isinstance(value, str):
        verdict = WORDS.get(value.strip().lower())
    else:
        verdict = bool(value) if isinstance(value, int | float) and value in (0, 1) else None
    if role != ASSISTANT:
        if verdict and name in ON_ROLES:
            raise BadSampleError(
                f"{location} is '{role}' and says {name} {value!r}, and only what the assistant "
                f"says is a label; leave the field out with --ignore {name}"
            )
        return False
    if verdict is None:
        raise BadSampleError(
            f"{location} has {name} {value!r}, and a turn is a label or not: 1 or 0; round it, or "
            f"leave the field out with --ignore {name}"
        )
    return verdict
