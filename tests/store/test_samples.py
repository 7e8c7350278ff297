from dataclasses import replace

import pytest
from rows import rows

from forvalue_index.exceptions import BrokenIndexError, UsageError
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.samples import open_samples

pytest_plugins = ("tiny",)


@pytest.fixture
def opened(filled):
    """The samples of the built index, opened beside it."""
    with open_samples(filled.path) as samples:
        yield samples


def test_samples_are_read_as_the_index_reads_them(opened, filled):
    assert len(opened) == opened.count() == len(filled) == 30
    assert opened.list_samples(limit=30) == filled.list_samples(limit=30)
    assert opened.sample("r3") == opened.sample(3) == filled.sample("r3")
    assert opened.info() == filled.info()
    assert (opened.version, opened.manifest) == (filled.version, filled.manifest)


def test_removed_samples_no_longer_count(opened, filled):
    assert opened.remove(["r3", 4]) == 2
    assert opened.remove(["r3"]) == 0, "they are removed already"
    assert len(opened) == len(filled) == 28
    assert (opened.info().removed, opened.info().samples) == (2, 28)
    assert filled.query(rows(1)).searched == 28
    assert [s.sample.key for s in opened.list_samples(limit=4)] == ["r0", "r1", "r2", "r5"]
    assert opened.sample("r3").id == 3, "it can still be seen"


def test_a_removal_that_fails_removes_nothing(opened):
    version = opened.version
    with pytest.raises(CatalogError):
        opened.remove(["r1", "nobody"])
    with pytest.raises(UsageError):
        opened.remove()
    assert (len(opened), opened.version) == (30, version)


def test_a_removal_that_chooses_nothing_changes_nothing(opened):
    version = opened.version
    assert opened.remove(where="id < 0") == 0
    assert opened.version == version


def test_pages_follow_each_other(opened):
    pages = [opened.list_samples("id > 2", limit=10, offset=offset) for offset in (0, 10, 20)]
    assert [stored.id for page in pages for stored in page] == list(range(3, 30))


def test_a_path_without_an_index(tmp_path):
    with pytest.raises(BrokenIndexError, match="is not an index"):
        open_samples(tmp_path)


def test_a_relative_path_is_found_from_anywhere(filled, monkeypatch):
    monkeypatch.chdir(filled.path.parent)
    with open_samples(filled.path.name) as opened:
        monkeypatch.chdir("/")
        assert opened.path == filled.path
        assert opened.remove(["r1"]) == 1


def test_text_and_metadata_come_back(opened):
    sample = opened.sample("r1").sample
    assert sample == replace(sample, own_id="r1", metadata={"topic": "art"})
    assert (sample.prompt, sample.response) == (rows(2)[1]["prompt"], rows(2)[1]["response"])
