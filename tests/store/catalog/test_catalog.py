import dataclasses
import threading
import uuid
from datetime import date

import numpy as np
import pytest
import sqlalchemy as sa
from catalogs import UID, Now, commit, sample, segment, statistics

from forvalue_index.exceptions import BadSampleError, BrokenIndexError
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import CatalogError, connect
from forvalue_index.store.catalog.schema import samples as samples_table
from forvalue_index.store.records import KnownSample, Measured

pytest_plugins = ("catalog_fixtures",)


def test_a_new_catalog_is_empty(catalog):
    assert catalog.fingerprint == "print"
    assert Now(catalog).version() == 0
    assert Now(catalog).segments() == []
    assert Now(catalog).count() == 0
    assert Now(catalog).summary().loss is None
    assert Now(catalog).identities() == []
    assert Now(catalog).live_ids().dtype == Now(catalog).removed_ids().dtype == np.int64


def test_what_is_stored_comes_back(catalog):
    extra = {"tool_calls": [{"name": "f"}], "name": "é"}
    stored = Sample(
        (Message("user", "half \ud83d pair, NUL \0", extra), Message("assistant", "é")),
        "ä.jsonl", 7, "own", {"n": 1, "f": 0.1 + 0.2, "list": [1, {"ü": None}], "t": True},
    )  # fmt: skip
    assert catalog.commit_segment(segment(1), [stored], [statistics(1)]) == 0
    found = Now(catalog).sample("own")
    assert found.sample == stored
    assert found.sample.content_hash == stored.content_hash
    assert (found.id, found.statistics) == (0, statistics(1))
    assert found.segment == Now(catalog).segments()[0].file.uid


def test_a_sample_without_an_own_id_is_keyed_by_its_content(catalog):
    commit(catalog, [sample(1)])
    found = Now(catalog).sample(sample(1).content_hash)
    assert found.sample.own_id is None
    assert found.sample == sample(1)


def test_metadata_that_databases_cannot_hold_is_changed_as_promised(catalog):
    metadata = {
        "nan": float("nan"), "inf": [float("inf")], "day": date(2020, 1, 2), "big": 10**4400,
        "n\0ul": "a\0b", "half": "\ud83d", 3: "three", "tuple": (1, 2),
    }  # fmt: skip
    commit(catalog, [sample(0, own_id="x", **{str(k): v for k, v in metadata.items()})])
    assert Now(catalog).sample("x").sample.metadata == {
        "nan": None, "inf": [None], "day": "2020-01-02", "big": hex(10**4400),
        "n�ul": "a�b", "half": "�", "3": "three", "tuple": [1, 2],
    }  # fmt: skip


@pytest.mark.parametrize("own_id", ["nul \0", "half \ud83d"])
def test_keys_that_databases_cannot_hold_are_refused(catalog, own_id):
    with pytest.raises(BadSampleError, match=r"a.jsonl:1: .*id"):
        commit(catalog, [sample(0, own_id=own_id)])
    assert Now(catalog).known([sample(0, own_id=own_id)]) == {}
    with pytest.raises(CatalogError, match="no sample"):
        Now(catalog).sample(own_id)


def test_deep_metadata_and_infinite_statistics_are_refused(catalog):
    deep = []
    for _ in range(60):
        deep = [deep]
    with pytest.raises(BadSampleError, match="nested deeper than 50"):
        commit(catalog, [sample(0, deep=deep)])
    bad = dataclasses.replace(statistics(0), norm=float("nan"))
    with pytest.raises(BadSampleError, match="not all finite"):
        catalog.commit_segment(segment(1), [sample(0)], [bad])
    assert Now(catalog).version() == 0


def test_ids_are_contiguous_over_segments_and_changes_are_counted(full_catalog):
    assert [s.first_id for s in Now(full_catalog).segments()] == [0, 3]
    assert [s.file.n_rows for s in Now(full_catalog).segments()] == [3, 2]
    assert Now(full_catalog).live_ids().tolist() == [0, 1, 2, 3, 4]
    assert Now(full_catalog).version() == 2


def measured(number):
    told = statistics(number)
    return Measured(told.n_tokens, told.n_label_tokens, told.truncated)


def test_known_finds_keys_in_bulk_with_their_content(full_catalog):
    candidates = [sample(n, own_id=f"own-{n}") for n in range(2500)]
    expected = {
        f"own-{n}": KnownSample(n, sample(n).content_hash, False, {}, measured(n)) for n in range(3)
    }
    assert Now(full_catalog).known(iter(candidates)) == expected
    by_content = sample(4, source="elsewhere")
    assert Now(full_catalog).known([by_content])[by_content.key].metadata == {"lang": "de"}


@pytest.mark.parametrize("clash", ["own-1", "twice"])
def test_a_taken_key_leaves_nothing(full_catalog, clash):
    before = Now(full_catalog).summary()
    new = [sample(8, own_id="twice", source="new"), sample(9, own_id=clash, source="new")]
    with pytest.raises(CatalogError, match=rf"nothing has changed.*{clash}"):
        commit(full_catalog, new)
    assert Now(full_catalog).summary() == before
    assert Now(full_catalog).version() == 2
    assert commit(full_catalog, [sample(9)]) == 5


def test_a_segment_of_another_length_is_refused(catalog):
    with pytest.raises(CatalogError, match="3 rows for 1 samples"):
        catalog.commit_segment(segment(3), [sample(0)], [statistics(0)])


def test_an_empty_segment_is_a_segment(catalog):
    assert catalog.commit_segment(segment(0), [], []) == 0
    assert Now(catalog).live_ids().tolist() == []


def test_samples_are_read_in_bulk_by_id(full_catalog):
    found = Now(full_catalog).samples(np.array([4, 0, 99]))
    assert found.keys() == {0, 4}
    assert found[4].sample == sample(4, source="b.jsonl", lang="de")
    assert set(Now(full_catalog).samples(range(2000))) == {0, 1, 2, 3, 4}


def test_a_key_goes_before_an_id(catalog):
    commit(catalog, [sample(0, own_id="1"), sample(1, own_id="other")])
    assert Now(catalog).sample("1").id == 0
    assert Now(catalog).sample("@0").id == 0
    for missing in ("0", "2", "-1", "9" * 30, "٣", "", "x"):
        with pytest.raises(CatalogError, match="forvalue list"):
            Now(catalog).sample(missing)


def test_lists_and_counts_keep_conditions_limits_and_order(full_catalog):
    assert Now(full_catalog).count("source = 'b.jsonl'") == 2
    assert Now(full_catalog).count("metadata.lang = 'de' AND n_tokens > 13") == 1
    assert [s.id for s in Now(full_catalog).list_samples("id >= 1", limit=2, offset=1)] == [2, 3]
    assert Now(full_catalog).live_ids("NOT truncated").tolist() == [1, 3]


def test_removed_samples_stay_readable_but_are_not_listed(full_catalog):
    assert full_catalog.remove(np.array([1, 3, 99])) == 2
    assert full_catalog.remove([1]) == 0
    assert Now(full_catalog).version() == 3
    assert Now(full_catalog).removed_ids().tolist() == [1, 3]
    assert Now(full_catalog).live_ids().tolist() == [0, 2, 4]
    assert [row[0] for row in Now(full_catalog).identities()] == [0, 2, 4]
    assert [s.id for s in Now(full_catalog).list_samples(limit=10)] == [0, 2, 4]
    assert Now(full_catalog).sample("own-1").id == 1
    assert Now(full_catalog).known([sample(1, own_id="own-1")])["own-1"].removed
    assert Now(full_catalog).total() == 5


def test_identities_stream_in_order(full_catalog, monkeypatch):
    monkeypatch.setattr("forvalue_index.store.catalog.snapshot.STREAMED_ROWS", 2)
    keys = [f"own-{n}" for n in range(3)] + [sample(n).content_hash for n in (3, 4)]
    sources = ["a.jsonl"] * 3 + ["b.jsonl"] * 2
    assert Now(full_catalog).identities() == list(zip(range(5), keys, sources, strict=True))


def test_the_summary_counts_live_samples_and_takes_real_medians(full_catalog):
    assert dataclasses.asdict(Now(full_catalog).summary()) == {
        "samples": 5, "removed": 0, "segments": 2, "bytes": 500, "loss": 0.25,
        "label_error_mass": 0.5, "stopped": (),
        "sources": (
            {"source": "a.jsonl", "samples": 3},
            {"source": "b.jsonl", "samples": 2},
        ),
    }  # fmt: skip
    full_catalog.remove([0])
    assert Now(full_catalog).summary().loss == (0.25 + 0.375) / 2
    assert Now(full_catalog).summary().removed == 1


def test_indexes_that_share_a_database_do_not_meet(full_catalog, database_url):
    with Catalog.create(database_url, uuid.uuid4().hex, "other") as other:
        assert commit(other, [sample(0, own_id="own-0")]) == 0
        assert Now(other).count() == 1
        assert Now(other).summary().segments == len(Now(other).segments()) == 1
        assert other.remove([0, 1]) == 1
    assert Now(full_catalog).count() == 5
    assert Now(full_catalog).removed_ids().tolist() == []


def test_writers_at_the_same_time_get_ids_of_their_own(catalog, database_url):
    def write(start):
        with Catalog.open(database_url, UID) as own:
            for n in range(start, start + 50, 5):
                commit(own, [sample(i, source=f"s{i % 3}") for i in range(n, n + 5)])

    threads = [threading.Thread(target=write, args=(start,)) for start in (0, 50, 100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert Now(catalog).live_ids().tolist() == list(range(150))
    assert [s.first_id for s in Now(catalog).segments()] == list(range(0, 150, 5))
    assert Now(catalog).version() == 30
    assert len(Now(catalog).summary().sources) == 3


def test_opening_finds_what_was_committed(full_catalog, database_url):
    with Catalog.open(database_url, UID) as again:
        assert (again.fingerprint, Now(again).version(), Now(again).count()) == ("print", 2, 5)


def test_a_uid_is_created_once_and_opened_only_where_it_is(catalog, database_url):
    with pytest.raises(CatalogError, match="already holds the index"):
        Catalog.create(database_url, UID, "print")
    with pytest.raises(BrokenIndexError, match="holds no index f00d"):
        Catalog.open(database_url, "f00d")


def test_damaged_text_of_a_sample_is_reported(full_catalog, database_url):
    engine = connect(database_url)
    with engine.begin() as connection:
        connection.execute(sa.update(samples_table).values(payload=b"no zlib"))
    engine.dispose()
    with pytest.raises(BrokenIndexError, match=r"holds of sample 1 is damaged.*add it again"):
        Now(full_catalog).sample("own-1")
