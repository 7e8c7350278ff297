"""The checksum of a sample: over all that a reader sees, the same on every database."""

import math
import zlib

import pytest
import sqlalchemy as sa
from catalogs import Now, commit, sample
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.sample_rows import changed_metadata, clean_metadata, pack
from forvalue_index.store.catalog.schema import samples, sources

pytest_plugins = ("catalog_fixtures",)

OTHER = {
    "key": "other",
    "content_hash": "0" * 32,
    "position": 999,
    "n_tokens": 999,
    "n_label_tokens": 999,
    "truncated": True,
    "loss": math.nextafter(1 / 8, 1),
    "label_error_mass": math.nextafter(0.5, 0),
    "norm": -1.0,
    "metadata": {"lang": "fr"},
    "payload": zlib.compress(b'[{"role": "user", "content": "other"}]'),
    "id": 99,
    "offset": 7,
}


def change(catalog, table, **values):
    with catalog._engine.begin() as connection:
        connection.execute(sa.update(table).values(**values))


def damaged(catalog):
    return [id_ for id_, found in Now(catalog).every_sample() if isinstance(found, str)]


@pytest.mark.parametrize("column", OTHER)
def test_a_change_of_any_shown_column_is_found(catalog, column):
    commit(catalog, [sample(1, own_id="own", lang="de")])
    assert damaged(catalog) == []
    change(catalog, samples, **{column: OTHER[column]})
    assert len(damaged(catalog)) == 1
    key = "other" if column == "key" else "own"
    with pytest.raises(BrokenIndexError, match="damaged"):
        Now(catalog).sample(key)


def test_no_shown_column_is_left_out():
    unseen = {"index_id", "segment_id", "source_id", "removed", "checksum"}
    assert {column.name for column in samples.c} == OTHER.keys() | unseen


def test_another_name_of_the_source_is_found(full_catalog):
    change(full_catalog, sources, name=sa.literal("x-") + sources.c.name)
    assert damaged(full_catalog) == [0, 1, 2, 3, 4]


def test_a_changed_checksum_is_found(full_catalog):
    change(full_catalog, samples, checksum=samples.c.checksum + 1)
    assert damaged(full_catalog) == [0, 1, 2, 3, 4]


def test_removal_restoring_and_new_metadata_leave_checksums_that_hold(full_catalog):
    full_catalog.remove([0, 3])
    full_catalog.restore({3: sample(3, source="c.jsonl", year=2.0)})
    full_catalog.update_metadata({1: {"size": 1e23}, 0: {"size": -0.0}})
    full_catalog.remove([1])
    assert damaged(full_catalog) == []


def test_the_checksum_of_a_sample_does_not_depend_on_how_it_came_to_be(catalog):
    def checksum():
        with catalog._engine.connect() as connection:
            return connection.execute(sa.select(samples.c.checksum)).scalar_one()

    commit(catalog, [sample(0, lang="de", year=1)])
    first = checksum()
    catalog.update_metadata({0: {}})
    assert checksum() != first
    catalog.update_metadata({0: {"year": 1.0, "lang": "de"}})
    assert checksum() == first
    catalog.remove([0])
    catalog.restore({0: sample(0, lang="de", year=1)})
    assert checksum() == first


def test_checksums_stay_what_they_were_in_earlier_versions():
    """A golden value: another one would make every stored sample look damaged."""
    one = Sample(
        (Message("user", "Frage ü 😀", {"name": "é"}), Message("assistant", "answer")),
        "ä.jsonl", 7, "own", {"b": [1e23, 2.0, {"ü": None}], "a": 0.1, "c": -0.0, "d": True},
    )  # fmt: skip
    statistics = SampleStatistics(12, 5, True, 0.1 + 0.2, 1e-9, 123.0)
    assert pack(41, one, statistics)["checksum"] == GOLDEN


GOLDEN = 2669549142


def test_samples_from_before_there_were_checksums_are_readable(full_catalog):
    change(full_catalog, samples, checksum=None)
    assert damaged(full_catalog) == []
    assert Now(full_catalog).sample("own-1").sample == sample(1, own_id="own-1")
    full_catalog.update_metadata({1: {"lang": "de"}})
    assert damaged(full_catalog) == []
    change(full_catalog, samples, norm=7.0)
    assert damaged(full_catalog) == [1]  # the one that has a checksum by now


NUMBERS = st.one_of(
    st.sampled_from([1e22, 1e23, 2.0, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 2.0**63]),
    st.sampled_from([1.2345678901234567e18, 2**63 - 1, -(2**63), 2**53 + 1, 2**64, 10**400, 0]),
    st.floats(),
    st.floats(min_value=1e15, max_value=1e25).map(round).map(float),
    st.integers(),
)
TEXTS = st.text(st.characters(exclude_categories=()), max_size=8)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def same(found, given):
    """Floats may come back as equal integers: JSON has one kind of number."""
    if isinstance(given, dict):
        return found.keys() == given.keys() and all(same(found[k], given[k]) for k in given)
    if isinstance(given, list):
        return len(found) == len(given) and all(map(same, found, given))
    if isinstance(given, float):
        return float(found) == given
    return found == given and type(found) is type(given)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(metadata=st.lists(st.dictionaries(TEXTS, JSON, max_size=4), min_size=1, max_size=4))
def test_any_metadata_comes_back_equal_and_with_a_checksum_that_holds(catalog, metadata):
    before = Now(catalog).total()
    new = [
        Sample((Message("text", f"{before + n}"),), "a", n + 1, None, m)
        for n, m in enumerate(metadata)
    ]
    first = commit(catalog, new)
    stored = Now(catalog).samples(range(first, first + len(new)))
    for n, given_metadata in enumerate(metadata):
        found = stored[first + n].sample.metadata
        assert same(found, clean_metadata(given_metadata))
        assert changed_metadata(found, given_metadata) is None
