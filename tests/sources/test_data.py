"""Data and how they are read: one record, whoever asks."""

import pytest
from rows import rows

from forvalue_index.exceptions import UsageError
from forvalue_index.sources.data import Data

ROWS = rows(2)


def keys(sources):
    return [sample.key for source in sources for sample in source.samples()]


def test_rows_become_data_with_the_options_given():
    assert Data.of(ROWS) == Data(ROWS)
    assert Data.of(ROWS, {"on_bad": "skip"}) == Data(ROWS, on_bad="skip")


def test_data_keep_what_is_not_said_anew():
    data = Data(ROWS, columns={"id": "id"}, on_bad="skip")
    assert Data.of(data) is data
    assert Data.of(data, {"on_bad": "fail"}) == Data(ROWS, columns={"id": "id"})


def test_what_to_do_about_bad_rows_is_fail_or_skip():
    with pytest.raises(UsageError, match="--on-bad cannot be 'no'; use one of fail, skip"):
        Data(ROWS, on_bad="no")


def test_an_unknown_option_is_no_field():
    with pytest.raises(TypeError, match="limit"):
        Data.of(ROWS, {"limit": 3})


def test_sources_read_the_columns_that_are_mapped():
    data = Data([{"Q": "a", "A": "b", "n": "7"}], columns={"prompt": "Q", "response": "A"})
    (sample,) = next(iter(data.open(images=False))).samples()
    assert (sample.prompt, sample.response, dict(sample.metadata)) == ("a", "b", {"n": "7"})
    assert keys(Data(ROWS).open(images=True)) == ["r0", "r1"]


@pytest.mark.parametrize("ignore", ["id,Tools", ["id", "tools"]])
def test_columns_and_fields_that_are_ignored(ignore):
    row = {"id": "i", "prompt": "a", "response": "b", "tools": "none"}
    (source,) = Data([row], ignore=ignore).open(images=False)
    (sample,) = source.samples()
    assert (sample.own_id, sample.metadata) == (None, {"id": "i", "tools": "none"})
    assert dict(source.columns) == {"ignore": "id,tools"}
    with pytest.raises(UsageError, match="--ignore cannot leave out 'role'"):
        Data([row], ignore="role").open(images=False)
