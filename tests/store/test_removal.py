import pytest
from rows import rows, write_jsonl

from forvalue_index.exceptions import FilterError, UsageError
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.samples import chosen_ids

pytest_plugins = ("tiny",)


@pytest.fixture
def snapshot(index, tmp_path):
    """Ten samples of one file and four of another; r3 is removed, and one is named like an id."""
    index.add(write_jsonl(tmp_path / "one.jsonl", rows(10)))
    index.add(
        write_jsonl(
            tmp_path / "other.jsonl",
            [*rows(3, seed=1, prefix="s"), {"id": "5", "text": "red green"}],
        )
    )
    index.remove(["r3"])
    with index.storage.catalog.snapshot() as opened:
        yield opened


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["r1"], [1]),
        (["r7", "r1", "r7"], [1, 7]),
        ([2, "4"], [2, 4]),
        (["5"], [13]),
        (["r5", 5], [5, 13]),
        # It is there, and no longer live.
        (["r3"], []),
        ([3, "r4"], [4]),
    ],
)
def test_names_are_keys_or_ids(snapshot, names, expected):
    assert chosen_ids(snapshot, names).tolist() == expected


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("metadata.topic = 'law'", [0, 6, 9, 10]),
        ("id >= 12", [12, 13]),
        ("key = 'r3'", []),
    ],
)
def test_a_condition_chooses_live_samples(snapshot, where, expected):
    assert chosen_ids(snapshot, where=where).tolist() == expected


def test_a_source_and_a_condition_are_both_met(snapshot, tmp_path):
    source = str(tmp_path / "other.jsonl")
    assert chosen_ids(snapshot, source=source).tolist() == [10, 11, 12, 13]
    assert chosen_ids(snapshot, source=source, where="id > 11").tolist() == [12, 13]


@pytest.mark.parametrize(
    "choice",
    [{}, {"names": []}, {"names": ["r1"], "where": "id = 1"}, {"names": [1], "source": "a"}],
)
def test_either_names_or_a_description_is_given(snapshot, choice):
    with pytest.raises(UsageError, match="say which samples to remove: either by key or number"):
        chosen_ids(snapshot, **choice)


def test_one_name_that_is_not_there_chooses_nothing(snapshot):
    with pytest.raises(CatalogError, match="no sample with the key or id 'nobody'"):
        chosen_ids(snapshot, ["r1", "nobody"])


def test_a_source_that_is_not_there(snapshot):
    with pytest.raises(CatalogError, match="There is no source 'none' in the index"):
        chosen_ids(snapshot, source="none")


@pytest.mark.parametrize("where", ["", "colour = 'red'", "id ="])
def test_a_condition_that_is_none(snapshot, where):
    with pytest.raises(FilterError):
        chosen_ids(snapshot, where=where)


def test_a_name_is_a_live_key_then_a_live_number_then_what_was_removed(index):
    """Ids of data sets are often numbers, and samples have numbers of their own."""
    made = [{**row, "id": i + 1} for i, row in enumerate(rows(6))]  # number i has the key i + 1
    index.add(made)
    assert index.sample("3").id == 2
    assert index.remove(["3"]) == 1
    # The key 3 is free now, so 3 is the sample with that number.
    assert index.sample("3").sample.key == "4"
    assert index.remove(["3"]) == 1
    removed = index.sample("3")
    assert (removed.sample.key, removed.removed) == ("3", True)
    assert index.remove(["3"]) == 0
    assert index.remove(where="id = 4") == 1
    assert [stored.id for stored in index.list_samples()] == [0, 1, 5]
