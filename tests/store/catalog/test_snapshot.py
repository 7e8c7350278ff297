"""A snapshot sees one state, whatever other connections commit meanwhile."""

import pytest
from catalogs import UID, Now, commit, sample, segment

from forvalue_index.store.catalog.catalog import Catalog

pytest_plugins = ("catalog_fixtures",)

NEW = sample(7, own_id="new", source="c.jsonl", lang="fr")


def everything(snapshot):
    """All that the methods of a snapshot tell."""
    ids = range(20)
    candidates = [sample(n, own_id=f"own-{n}") for n in range(3)] + [sample(3), sample(4), NEW]
    return {
        "version": snapshot.version(),
        "segments": snapshot.segments(),
        "live": snapshot.live_ids().tolist(),
        "german": snapshot.live_ids("metadata.lang = 'de'").tolist(),
        "removed": snapshot.removed_ids().tolist(),
        "total": snapshot.total(),
        "known": snapshot.known(candidates),
        "samples": snapshot.samples(ids),
        "listed": snapshot.list_samples(limit=20),
        "count": snapshot.count("loss >= 0"),
        "identities": list(snapshot.identities()),
        "summary": snapshot.summary(),
        "every": list(snapshot.every_sample()),
        "of segments": {
            s.file.uid: (snapshot.segment_ids(s.file.uid).tolist(), snapshot.norms(s.file.uid))
            for s in snapshot.segments()
        },
    }


def merge(catalog):
    old = [stored.file.uid for stored in Now(catalog).segments()]
    catalog.replace_segments(old, segment(len(Now(catalog).live_ids())), first_id=0)


CHANGES = {
    "add": lambda catalog: commit(catalog, [NEW]),
    "remove": lambda catalog: catalog.remove([0, 4]),
    "restore": lambda catalog: catalog.restore({1: sample(1, own_id="own-1", source="c.jsonl")}),
    "update metadata": lambda catalog: catalog.update_metadata({2: {"lang": "de"}}),
    "replace segments": merge,
    "start a run": lambda catalog: catalog.start_run(["c.jsonl"]),
}


@pytest.fixture
def changed(full_catalog, database_url):
    """A catalog with a removed sample, and another connection that changes it."""
    full_catalog.remove([1])
    with Catalog.open(database_url, UID) as other:
        yield full_catalog, other


@pytest.mark.parametrize("change", CHANGES)
def test_a_snapshot_does_not_see_what_is_committed_after_it_was_opened(changed, change):
    catalog, other = changed
    with catalog.snapshot() as snapshot:
        CHANGES[change](other)
        before = everything(snapshot)
        with other.snapshot() as later:
            assert everything(later) != before
    with catalog.snapshot() as snapshot:
        after = everything(snapshot)
    assert {name for name in after if after[name] != before[name]} >= {
        "start a run": {"summary"},
        "update metadata": {"version", "german", "known", "samples", "listed"},
        "replace segments": {"version", "segments", "removed", "total", "samples"},
    }.get(change, {"version", "live", "summary", "count", "identities", "known"})


def test_a_snapshot_sees_one_state_while_all_of_these_are_committed(changed):
    catalog, other = changed
    with catalog.snapshot() as snapshot:
        before = everything(snapshot)
        for change in CHANGES.values():
            change(other)
            assert everything(snapshot) == before
    assert Now(catalog).live_ids().tolist() == [1, 2, 3, 5]


def test_the_state_is_that_of_the_opening_even_if_nothing_was_read_since(
    full_catalog, database_url
):
    with full_catalog.snapshot() as snapshot, Catalog.open(database_url, UID) as other:
        other.remove([0])
        assert snapshot.count() == 5


def test_a_stream_of_samples_goes_on_over_a_removal(full_catalog, database_url, monkeypatch):
    monkeypatch.setattr("forvalue_index.store.catalog.snapshot.STREAMED_ROWS", 1)
    with full_catalog.snapshot() as snapshot, Catalog.open(database_url, UID) as other:
        streamed = snapshot.identities()
        first = next(streamed)
        other.remove(range(5))
        merge(other)
        assert [first, *streamed] == list(snapshot.identities())
        assert first[0] == 0
    assert Now(full_catalog).total() == 0


def test_two_snapshots_of_one_catalog_see_a_state_each(full_catalog):
    with full_catalog.snapshot() as old:
        full_catalog.remove([0])
        with full_catalog.snapshot() as new:
            assert (old.count(), new.count()) == (5, 4)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_postgresql_is_told_that_a_snapshot_only_reads(full_catalog):
    with (
        full_catalog.snapshot() as snapshot,
        pytest.raises(Exception, match="read-only transaction"),
    ):
        snapshot._connection.exec_driver_sql("DELETE FROM samples")
