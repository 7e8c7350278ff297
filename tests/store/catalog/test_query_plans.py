"""How SQLite finds things, asked of SQLite: with a million samples, a plan is what counts."""

import pytest
from catalogs import Now, sample
from sqlalchemy import event

pytest_plugins = ("catalog_fixtures",)

BY_SOURCE = "SEARCH samples USING COVERING INDEX ix_samples_source_id"
BY_LOSS = "SEARCH samples USING COVERING INDEX ix_samples_loss"
BY_ID = "SEARCH samples USING INDEX sqlite_autoindex_samples_1 (index_id=? AND id=?)"
BY_KEY = "SEARCH samples USING INDEX uq_samples_live_key (index_id=? AND key=?)"
BY_REMOVED_KEY = "SEARCH samples USING INDEX ix_samples_removed_key (index_id=? AND key=?)"
BY_SEGMENT = "SEARCH samples USING INDEX ix_samples_segment_id (segment_id=?)"

LISTED = {
    "source = 'a.jsonl'": [BY_SOURCE],
    "source IN ('a.jsonl', 'b.jsonl')": [BY_SOURCE],
    "source LIKE 'a%'": [BY_SOURCE],
    "loss > 3": [BY_LOSS],
    "loss BETWEEN 1 AND 2": [BY_LOSS],
    "3 >= loss": [BY_LOSS],
}


@pytest.fixture
def plans(full_catalog):
    """The catalog as it is now, and every step over samples of every statement that it runs."""
    steps = []

    def explain(connection, _cursor, statement, parameters, *_):
        if not statement.startswith("PRAGMA"):
            driver = connection.connection.driver_connection
            rows = driver.execute(f"EXPLAIN QUERY PLAN {statement}", parameters).fetchall()
            steps.extend(row[3] for row in rows if " samples" in row[3])

    event.listen(full_catalog._engine, "before_cursor_execute", explain)
    return Now(full_catalog), steps


def only(steps, allowed):
    return steps and all(step.startswith(tuple(allowed)) for step in steps)


sqlite_only = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


@sqlite_only
@pytest.mark.parametrize("where", LISTED)
def test_what_an_index_finds_is_counted_without_reading_rows(plans, where):
    catalog, steps = plans
    catalog.count(where)
    assert only(steps, LISTED[where]), steps


@sqlite_only
@pytest.mark.parametrize("where", LISTED)
def test_rows_are_read_only_for_the_samples_of_a_page(plans, where):
    catalog, steps = plans
    catalog.list_samples(where, limit=50)
    assert only(steps, [BY_ID, *LISTED[where]]), steps


@sqlite_only
def test_a_summary_reads_few_rows(plans):
    catalog, steps = plans
    catalog.summary()
    assert only(steps, [BY_SOURCE, BY_LOSS, BY_ID]), steps
    assert sum(step.startswith(BY_LOSS) for step in steps) == 2  # removed samples and the median


@sqlite_only
def test_samples_are_known_by_the_indexes_over_keys(plans):
    catalog, steps = plans
    catalog.known([sample(n) for n in range(1024)])
    assert set(steps) == {BY_KEY, BY_REMOVED_KEY}


@sqlite_only
def test_ids_are_listed_from_an_index_alone(plans):
    catalog, steps = plans
    catalog.live_ids()
    catalog.live_ids(source="a.jsonl")
    catalog.live_ids("loss > 3")
    catalog.removed_ids()
    catalog.count()
    assert all("COVERING" in step for step in steps), steps


@sqlite_only
def test_single_samples_and_segments_are_found_by_index(plans):
    catalog, steps = plans
    catalog.sample("own-1")
    catalog.samples([1, 2])
    catalog.segment_ids(catalog.segments()[0].file.uid)
    assert only(steps, [BY_KEY, BY_ID, BY_SEGMENT]), steps
