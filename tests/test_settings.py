import dataclasses

import pytest

from forvalue_index.exceptions import UsageError
from forvalue_index.settings import Settings


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("model", "", "--model cannot be ''; name a hub id, a directory or a file"),
        ("labels", "some", "--labels cannot be 'some'; use one of response, last, all"),
        ("template", "xml", "--template cannot be 'xml'; use one of auto, chat, plain"),
        ("row_dtype", "int4", "--row-dtype cannot be 'int4'; use one of bfloat16, float32, int8"),
        ("dtype", "int8", "--dtype cannot be 'int8'; use one of auto, float32, bfloat16, float16"),
        ("dim", 15, "--dim cannot be 15; use 16 to 1,048,576"),
        ("dim", 2**20 + 1, "--dim cannot be 1048577; use 16 to 1,048,576"),
        ("seed", -1, "--seed cannot be -1; use 0 or more"),
        ("seed", 2**63, "--seed cannot be 9223372036854775808; use 0 or more"),
        ("max_length", 1, "--max-length cannot be 1; use at least 2 tokens"),
        ("geometry", "", "--geometry cannot be ''; use one of raw, centered, fisher, kfac"),
        ("geometry", "raw,adam", "--geometry cannot be 'adam'; use one of raw, centered, fisher"),
        ("geometry", "raw,kfac,raw", "--geometry cannot be 'raw,kfac,raw'; name each geometry"),
        ("damping", 0.0, "--damping cannot be 0.0; use more than 0"),
        ("damping", float("inf"), "--damping cannot be inf; use more than 0"),
        ("damping", float("nan"), "--damping cannot be nan; use more than 0"),
        ("max_label_tokens", 0, "--max-label-tokens cannot be 0; use at least 1 token"),
        ("hardest", 0.0, "--hardest cannot be 0.0; use more than 0 and at most 1"),
        ("hardest", 1.5, "--hardest cannot be 1.5; use more than 0 and at most 1"),
    ],
)
def test_a_value_that_can_never_work_is_refused(field, value, said):
    with pytest.raises(UsageError) as caught:
        Settings(**{"model": "m", field: value})
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    "settings",
    [
        *({"dim": 16}, {"dim": 2**20}, {"seed": 0}, {"seed": 2**63 - 1}, {"max_length": 2}),
        *({"geometry": "raw, centered,fisher,kfac"}, {"damping": 1e-9}, {"max_label_tokens": 1}),
        *({"hardest": 1e-9}, {"hardest": 1.0}),
    ],
)
def test_the_limits_themselves_are_allowed(settings):
    assert Settings(model="m", **settings)


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings(model="m").dim = 1
