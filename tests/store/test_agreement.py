import dataclasses

import pytest

from forvalue_index.exceptions import SettingsMismatchError
from forvalue_index.settings import ModelIdentity, Settings
from forvalue_index.store.agreement import (
    first_difference,
    refuse_other_model,
    refuse_other_settings,
)

IDENTITY = ModelIdentity("w" * 32, "t" * 32, vocab_size=288, hidden_size=32)
SETTINGS = Settings(
    model="owner/name", revision="abc", template="chat", max_length=512, dtype="float32"
)


@pytest.mark.parametrize(
    ("field", "value"),
    [("dim", 256), ("seed", 1), ("labels", "all"), ("template", "plain"), ("max_length", 9)],
)
def test_other_settings_are_refused_by_name(tmp_path, field, value):
    wanted = dataclasses.replace(SETTINGS, **{field: value})
    stored = getattr(SETTINGS, field)
    with pytest.raises(SettingsMismatchError, match=f"{field} {stored!r}, .* {value!r}.*frozen"):
        refuse_other_settings(tmp_path, SETTINGS, wanted)


def test_a_wish_for_auto_is_met_by_what_it_became(tmp_path):
    refuse_other_settings(tmp_path, SETTINGS, Settings(model="owner/name"))


def test_another_model_is_refused_by_what_differs(tmp_path):
    refuse_other_model(tmp_path, IDENTITY, IDENTITY)
    for field in ("weights_digest", "tokenizer_digest"):
        other = dataclasses.replace(IDENTITY, **{field: "x" * 32})
        with pytest.raises(SettingsMismatchError, match=f"its {field.replace('_', ' ')} is"):
            refuse_other_model(tmp_path, IDENTITY, other)


def test_the_first_difference_is_in_order_of_fields():
    assert first_difference(SETTINGS, SETTINGS) is None
    other = dataclasses.replace(SETTINGS, seed=3, dim=64)
    assert first_difference(SETTINGS, other) == ("dim", 4096, 64)
