"""Fixtures: catalogs of their own for each test, on every database."""

import pytest
from catalogs import UID, commit, sample

from forvalue_index.store.catalog.catalog import Catalog

pytest_plugins = ("databases",)


@pytest.fixture
def catalog(database_url):
    with Catalog.create(database_url, UID, "print") as catalog:
        yield catalog


@pytest.fixture
def full_catalog(catalog):
    """Ids 0 to 2 with ids of their own from a.jsonl, 3 and 4 without from b.jsonl."""
    commit(catalog, [sample(n, own_id=f"own-{n}") for n in range(3)])
    commit(catalog, [sample(n, source="b.jsonl", lang="de") for n in range(3, 5)])
    return catalog
