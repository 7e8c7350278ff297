"""What an index holds after an ingestion, and how it is made to read in small parts."""

import torch

from forvalue_index.store.store import Storage

# Rounding differs with the shapes of a batch: matrix products of other sizes sum in another order.
SAME_TO_ROUNDING = 1e-5


def small_batches(index, token_budget=128):
    index.model.reader.token_budget = token_budget


def windows_of(monkeypatch, index, rows_each):
    """Read this many rows at a time."""
    share = (rows_each + 0.5) / index.model.reader.token_budget
    monkeypatch.setattr("forvalue_index.ingest.planning.WINDOW_ROWS", share)


def keys(index):
    return [stored.sample.key for stored in index.list_samples(limit=10_000)]


def stored_rows(path):
    """Key -> its row in each geometry, in turn, as a reader of the directory finds them."""
    storage = Storage.open(path)
    found = {}
    with storage.view() as view:
        by_id = {id_: key for id_, key, _ in view.catalog.identities()}
        for geometry in storage.manifest.settings.geometries:
            for block in view.blocks(geometry):
                for id_, row in zip(block.ids.tolist(), block.rows, strict=True):
                    before = found.get(by_id[id_], row.new_empty(0))
                    found[by_id[id_]] = torch.cat([before, row])
    storage.close()
    return found


def assert_same_rows(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        gap = torch.linalg.vector_norm(found[key] - row) / torch.linalg.vector_norm(row)
        assert gap < SAME_TO_ROUNDING, key


def assert_identical_rows(found, expected):
    assert found.keys() == expected.keys()
    for key, row in expected.items():
        assert found[key].equal(row), key
