import pytest
from rows import rows, write_jsonl

from forvalue_index.exceptions import FilterError, UsageError
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.samples import chosen_ids

pytest_plugins = ("tiny",)


@pytest.fixture
def snapshot(index, tmp_path):
    """Ten samples of one file and four of another; r3 is removed."""
    index.add(write_jsonl(tmp_path / "one.jsonl", rows(10)))
    last = {"id": "@5", "text": "red green"}
    index.add(write_jsonl(tmp_path / "other.jsonl", [*rows(3, seed=1, prefix="s"), last]))
    index.remove(["r3"])
    with index.storage.catalog.snapshot() as opened:
        yield opened


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["r1"], [1]),
        (["r7", "r1", "r7"], [1, 7]),
        ([2, "4", "@6"], [2, 4, 6]),
        # Always the number, though there is such a key.
        (["@5"], [5]),
        # It is there, and no longer live.
        (["r3"], []),
        ([3, "r4"], [4]),
    ],
)
def test_names_are_keys_or_numbers(snapshot, names, expected):
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


def numbered(index, keys):
    """Samples with these keys, in their order."""
    index.add([{**row, "id": key} for row, key in zip(rows(len(keys)), keys, strict=True)])


def test_a_name_never_names_another_sample_after_its_own_was_removed(index):
    """Ids of data sets are often numbers. The second `remove 1` took the sample numbered 1."""
    numbered(index, [1, 2, 3])
    assert index.remove(["1"]) == 1
    assert index.remove(["1"]) == 0
    removed = index.sample(1)
    assert (removed.sample.key, removed.id, removed.removed) == ("1", 0, True)
    index.compact()
    said = "no sample with the key '1' in the index. .* the sample numbered 1 is called @1"
    for name in ("1", 1):
        with pytest.raises(CatalogError, match=said):
            index.remove([name])
    assert [stored.sample.key for stored in index.list_samples()] == ["2", "3"]
    assert index.sample("@1").sample.key == "2"
    assert index.remove(["@1"]) == 1
    assert index.remove(["@1"]) == 0
    assert [stored.sample.key for stored in index.list_samples()] == ["3"]


@pytest.mark.parametrize("how", ["live", "removed"])
def test_digits_are_no_number_where_any_key_is_made_of_digits(index, how):
    numbered(index, ["a", "007", "b", "c"])
    if how == "removed":
        index.remove(["007"])
    with pytest.raises(CatalogError, match="the sample numbered 0 is called @0"):
        index.sample(0)
    index.compact()
    assert index.remove(["@0"]) == 1
    if how == "removed":
        assert index.sample("2").sample.key == "b"


@pytest.mark.parametrize(
    "name", ["@", "@x", "@-1", "@9", "@9223372036854775808", "٣", "-1", "", "@@1"]
)
def test_what_is_no_key_and_no_number_names_nothing(index, name):
    numbered(index, ["a", "b"])
    with pytest.raises(CatalogError, match="There is no sample with the key or id"):
        index.sample(name)
