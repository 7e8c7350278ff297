"""What changes stored samples: removal, restoring, new metadata, merged segments; and runs."""

import dataclasses

import pytest
import sqlalchemy as sa
from catalogs import UID, Now, commit, sample, segment, statistics

from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.catalog.schema import runs, samples

pytest_plugins = ("catalog_fixtures",)


def uids(catalog):
    return [stored.file.uid for stored in Now(catalog).segments()]


def removed_flags(catalog):
    with catalog._engine.connect() as connection:
        query = sa.select(samples.c.id, samples.c.removed).order_by(samples.c.id)
        return [tuple(row) for row in connection.execute(query)]


def test_the_key_of_a_removed_sample_can_be_taken_by_other_content(full_catalog):
    full_catalog.remove([1])
    other = sample(8, own_id="own-1")
    assert Now(full_catalog).known([other]) == {}
    assert commit(full_catalog, [other]) == 5
    assert Now(full_catalog).sample("own-1").sample == other
    assert Now(full_catalog).sample("1").sample == sample(1, own_id="own-1")
    assert Now(full_catalog).known([other])["own-1"].id == 5
    # The live one answers, also where the removed one has the content that is asked for.
    found = Now(full_catalog).known([sample(1, own_id="own-1")])["own-1"]
    assert (found.id, found.content_hash, found.removed) == (5, other.content_hash, False)
    with pytest.raises(CatalogError, match="a key is taken"):
        commit(full_catalog, [sample(1, own_id="own-1")])


def test_of_removed_samples_with_one_key_that_of_equal_content_is_known(full_catalog):
    full_catalog.remove([1])
    commit(full_catalog, [sample(8, own_id="own-1")])
    full_catalog.remove([5])
    for number, id_ in ((1, 1), (8, 5)):
        found = Now(full_catalog).known([sample(number, own_id="own-1")])
        assert (found["own-1"].id, found["own-1"].removed) == (id_, True)
    assert Now(full_catalog).known([sample(9, own_id="own-1")]) == {}


def test_restoring_brings_source_position_and_metadata_of_the_new_row(full_catalog):
    before = Now(full_catalog).samples([1])[1]
    full_catalog.remove([1, 3])
    again = dataclasses.replace(sample(1, own_id="own-1"), source="c.jsonl", position=77)
    again = dataclasses.replace(again, metadata={"lang": "fr", "bad": float("nan")})
    full_catalog.restore({1: again})
    found = Now(full_catalog).sample("own-1")
    stored = dataclasses.replace(again, metadata={"lang": "fr", "bad": None})
    assert found == dataclasses.replace(before, sample=stored)
    assert Now(full_catalog).live_ids("source = 'c.jsonl' AND metadata.lang = 'fr'").tolist() == [1]
    assert Now(full_catalog).removed_ids().tolist() == [3]
    assert Now(full_catalog).version() == 4


def test_restoring_keeps_the_messages_as_they_were_stored(catalog):
    """Content is equal whatever the order of a message's fields, and the text is not."""
    first = Message("user", "question", {"name": "a", "weight": 1})
    second = Message("user", "question", {"weight": 1, "name": "a"})
    assert Sample((first,)).content_hash == Sample((second,)).content_hash
    catalog.commit_segment(segment(1), [Sample((first,), "a", 1)], [statistics(1)])
    catalog.remove([0])
    catalog.restore({0: Sample((second,), "b", 2)})
    assert Now(catalog).samples([0])[0].sample == Sample((first,), "b", 2)


def test_new_metadata_replace_all_that_a_sample_had_and_nothing_else(full_catalog):
    before = Now(full_catalog).samples(range(5))
    full_catalog.update_metadata({3: {"new": 1}, 0: {}})
    after = Now(full_catalog).samples(range(5))
    for id_, metadata in ((3, {"new": 1}), (0, {})):
        changed = dataclasses.replace(before[id_].sample, metadata=metadata)
        before[id_] = dataclasses.replace(before[id_], sample=changed)
    assert after == before
    assert Now(full_catalog).live_ids("metadata.new = 1").tolist() == [3]
    assert Now(full_catalog).version() == 3


def test_removed_samples_get_new_metadata_and_stay_removed(full_catalog):
    full_catalog.remove([3])
    full_catalog.update_metadata({3: {"new": 1}})
    assert Now(full_catalog).samples([3])[3].sample.metadata == {"new": 1}
    assert Now(full_catalog).removed_ids().tolist() == [3]


def test_an_unfinished_run_of_the_same_sources_goes_on(catalog):
    first = catalog.start_run(["a.jsonl", "b.jsonl"])
    assert catalog.start_run(["a.jsonl", "b.jsonl"]) == first
    others = [["b.jsonl", "a.jsonl"], ["a.jsonl"], []]
    started = [catalog.start_run(names) for names in others]
    assert len({first, *started}) == 4
    assert Now(catalog).summary().stopped == (
        ("a.jsonl", "b.jsonl"), ("b.jsonl", "a.jsonl"), ("a.jsonl",), (),
    )  # fmt: skip


def test_a_median_over_some_of_many_samples(catalog, monkeypatch):
    """Without an index over the column: at random, with gaps where samples are gone."""
    monkeypatch.setattr("forvalue_index.store.catalog.summary.MEDIAN_SAMPLES", 100)
    n = 400
    masses = [(k * 37 % n) / n for k in range(n)]
    measured = [dataclasses.replace(statistics(0), label_error_mass=mass) for mass in masses]
    catalog.commit_segment(segment(n), [sample(k) for k in range(n)], measured)
    assert Now(catalog).summary().label_error_mass == pytest.approx(0.5, abs=0.15)
    catalog.remove([k for k in range(n) if masses[k] >= 0.5])
    assert Now(catalog).summary().label_error_mass == pytest.approx(0.25, abs=0.08)


def test_a_finished_run_does_not_go_on(catalog):
    first = catalog.start_run(["a.jsonl"])
    catalog.finish_run(first)
    assert Now(catalog).summary().stopped == ()
    assert catalog.start_run(["a.jsonl"]) != first
    with catalog._engine.connect() as connection:
        times = connection.execute(sa.select(runs.c.started_at, runs.c.finished_at)).all()
    assert [finished is None for _, finished in times] == [False, True]
    assert times[0].finished_at >= times[0].started_at


def test_a_finished_run_finishes_the_stopped_ones_that_it_holds(catalog):
    for names in (["a.jsonl"], ["a.jsonl", "c.jsonl"], ["b.jsonl"]):
        catalog.start_run(names)
    catalog.finish_run(catalog.start_run(["b.jsonl", "a.jsonl"]))
    assert Now(catalog).summary().stopped == (("a.jsonl", "c.jsonl"),)


def test_runs_belong_to_their_index(catalog, database_url):
    run = catalog.start_run(["a.jsonl"])
    with Catalog.create(database_url, "other", "print") as other:
        assert other.start_run(["a.jsonl"]) != run
        assert len(Now(other).summary().stopped) == 1


def test_a_merged_segment_takes_the_place_of_others_and_what_was_removed_is_forgotten(full_catalog):
    commit(full_catalog, [sample(5)])
    full_catalog.remove([1, 3])
    before = Now(full_catalog).samples([0, 2, 4, 5])
    merged = segment(3)
    full_catalog.replace_segments(uids(full_catalog)[:2], merged, first_id=0)
    files = Now(full_catalog).segments()
    assert [(s.first_id, s.file.n_rows) for s in files] == [(0, 3), (5, 1)]
    assert files[0].file == merged
    after = Now(full_catalog).samples(range(6))
    assert after.keys() == {0, 2, 4, 5}
    for id_ in (0, 2, 4):
        assert after[id_] == dataclasses.replace(before[id_], segment=merged.uid)
    assert after[5] == before[5]
    assert Now(full_catalog).segment_ids(merged.uid).tolist() == [0, 2, 4]
    assert Now(full_catalog).removed_ids().tolist() == []
    assert commit(full_catalog, [sample(1, own_id="own-1")]) == 6


def test_segments_without_live_samples_go_without_a_successor(full_catalog):
    full_catalog.remove([3, 4])
    full_catalog.replace_segments(uids(full_catalog)[1:], None, first_id=3)
    assert [s.first_id for s in Now(full_catalog).segments()] == [0]
    assert (Now(full_catalog).total(), Now(full_catalog).count()) == (3, 3)
    assert Now(full_catalog).list_samples("source = 'b.jsonl'", limit=1) == []
    assert commit(full_catalog, [sample(3)]) == 5


def test_of_removed_samples_only_those_named_are_forgotten(full_catalog):
    full_catalog.remove([0, 1, 3])
    first, second = uids(full_catalog)
    new = segment(2)
    # 2 is live and 3 is elsewhere: neither is forgotten.
    full_catalog.replace_segments([first], new, first_id=0, forget=[1, 2, 3])
    assert Now(full_catalog).segment_ids(new.uid).tolist() == [0, 2]
    assert Now(full_catalog).segment_ids(second).tolist() == [3, 4]
    assert Now(full_catalog).removed_ids().tolist() == [0, 3]
    full_catalog.restore({3: sample(3)})
    whole = segment(4)
    full_catalog.replace_segments(uids(full_catalog), whole, first_id=0, forget=[])
    assert removed_flags(full_catalog) == [(0, True), (2, False), (3, False), (4, False)]


@pytest.mark.parametrize(("forget", "n_rows"), [([], 4), ([], 6), ([1], 5), ([1, 3], 3)])
def test_a_segment_without_exactly_the_rows_that_stay_replaces_none(full_catalog, forget, n_rows):
    full_catalog.remove([1])
    before, flags = Now(full_catalog).segments(), removed_flags(full_catalog)
    with pytest.raises(CatalogError, match=r"changed while .* nothing has changed"):
        full_catalog.replace_segments(
            uids(full_catalog), segment(n_rows), first_id=0, forget=forget
        )
    assert (Now(full_catalog).segments(), removed_flags(full_catalog)) == (before, flags)


@pytest.mark.parametrize(
    ("meanwhile", "n_rows"),
    [
        pytest.param(lambda catalog: catalog.remove([0]), 4, id="removed"),
        pytest.param(
            lambda catalog: catalog.restore({1: sample(1, own_id="own-1")}), 4, id="restored"
        ),
        pytest.param(lambda catalog: None, 3, id="too few rows"),
        pytest.param(lambda catalog: None, 5, id="too many rows"),
        pytest.param(lambda catalog: None, None, id="none at all"),
    ],
)
def test_segments_whose_samples_changed_meanwhile_are_not_replaced(full_catalog, meanwhile, n_rows):
    full_catalog.remove([1])
    meanwhile(full_catalog)
    version, before = Now(full_catalog).version(), Now(full_catalog).segments()
    stored, flags = Now(full_catalog).samples(range(5)), removed_flags(full_catalog)
    new = None if n_rows is None else segment(n_rows)
    with pytest.raises(CatalogError, match=r"changed while .* nothing has changed"):
        full_catalog.replace_segments(uids(full_catalog), new, first_id=0)
    assert (Now(full_catalog).version(), Now(full_catalog).segments()) == (version, before)
    assert (Now(full_catalog).samples(range(5)), removed_flags(full_catalog)) == (stored, flags)


def test_merging_leaves_other_indexes_alone(full_catalog, database_url):
    with Catalog.create(database_url, "other", "print") as other:
        commit(other, [sample(0), sample(1)])
        other.remove([0])
        full_catalog.replace_segments(uids(full_catalog) + uids(other), segment(5), first_id=0)
        assert Now(other).total() == 2
        assert len(Now(other).segments()) == 1


def test_a_sound_catalog_has_no_complaints_and_can_be_reindexed(full_catalog, database_url):
    full_catalog.remove([1])
    full_catalog.reindex()
    assert full_catalog.complaints() == []
    with Catalog.open(database_url, UID) as again:
        assert Now(again).count("source = 'a.jsonl'") == 2
