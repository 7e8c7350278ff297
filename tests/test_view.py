import numpy as np
import pytest
import torch
from test_storage import DIM, create, fill, random_rows, samples, statistics

from forvalue_index.search.building import RowKind, search_index
from forvalue_index.store.rows import unit_rows


@pytest.fixture
def storage(tmp_path):
    """Of 12 samples in two segments, of which 3 are removed, and one has no gradient."""
    made = create(tmp_path / "ix", row_dtype="bfloat16")
    fill(made, 7)
    rows, *rest = zeroed(5)
    made.append(made.quantized(rows), *rest)
    made.catalog.remove([0, 5, 9])
    yield made
    made.close()


def zeroed(count):
    rows = random_rows(count, seed=1)
    rows[1] = 0
    return {"raw": rows}, samples(count, "z"), statistics(count)


LIVE = [1, 2, 3, 4, 6, 7, 8, 10, 11]
ROWS = torch.cat([random_rows(7), zeroed(5)[0]["raw"]]).bfloat16().float()


def test_blocks_have_live_rows_in_order(storage):
    with storage.view() as view:
        blocks = [*view.blocks("raw")]
    assert np.concatenate([block.ids for block in blocks]).tolist() == LIVE
    assert torch.cat([block.rows for block in blocks]).equal(ROWS[LIVE])


def test_normalised_rows_have_length_1_but_for_those_without_a_gradient(storage):
    with storage.view() as view:
        rows = torch.cat([block.rows for block in view.blocks("raw", normalize=True)])
        index = search_index(view, RowKind("raw", normalize=True))
    lengths = torch.ones(len(LIVE))
    lengths[LIVE.index(8)] = 0
    torch.testing.assert_close(rows.norm(dim=1), lengths)
    expected = ROWS[LIVE] / ROWS[LIVE].norm(dim=1, keepdim=True).clamp(min=1e-9)
    torch.testing.assert_close(rows, expected)
    # In float32, though rows are stored in bfloat16: cosines of a row with itself are 1.
    stored = index.rows(np.array(LIVE))
    np.testing.assert_array_equal(stored, rows.numpy())
    ids, scores = index.search(stored[:1], 1)[0]
    assert (ids.tolist(), scores.tolist()) == ([1], pytest.approx([1.0], rel=1e-6))


def test_rows_are_normalised_whatever_their_size_is():
    rows = torch.tensor([[3e30, 4e30], [3e-30, 4e-30], [0.0, 0.0]])
    found = unit_rows(rows)
    torch.testing.assert_close(found, torch.tensor([[0.6, 0.8], [0.6, 0.8], [0.0, 0.0]]))


def test_some_rows_are_a_seeded_choice_of_live_ones_in_order(storage):
    with storage.view() as view:
        whole = view.some_rows("raw", len(LIVE))
        assert whole.equal(view.some_rows("raw", 100))
        assert whole.equal(ROWS[LIVE])
        some = view.some_rows("raw", 4)
        assert some.equal(view.some_rows("raw", 4))
        norms = view.some_rows("raw", 4, normalize=True).norm(dim=1)
    assert some.shape == (4, DIM)
    places = [int((ROWS[LIVE] == row).all(1).nonzero()) for row in some]
    assert places == sorted(set(places))
    assert ((norms - 1).abs() < 1e-6).sum() >= 3


def test_there_are_no_rows(tmp_path):
    made = create(tmp_path / "empty")
    with made.view() as view:
        assert view.some_rows("raw", 5).shape == (0, DIM)
        assert [*view.blocks("raw", normalize=True)] == []
    made.close()


def test_each_geometry_has_its_rows(tmp_path):
    made = create(tmp_path / "ix", geometry="fisher,raw")
    rows = {"fisher": random_rows(5), "raw": random_rows(5, seed=1)}
    made.append(made.quantized(rows), samples(5), statistics(5))
    made.catalog.remove([2])
    with made.view() as view:
        for name, expected in rows.items():
            found = torch.cat([block.rows for block in view.blocks(name)])
            assert found.equal(expected[[0, 1, 3, 4]])
            stored = search_index(view, RowKind(name)).rows(np.array([0, 4]))
            np.testing.assert_array_equal(stored, expected[[0, 4]].numpy())
    made.close()


@pytest.mark.parametrize("normalize", [False, True])
def test_a_scan_gives_results_of_live_rows_in_order(storage, normalize, monkeypatch):
    monkeypatch.setattr("forvalue_index.store.segments.BLOCK_ROWS", 2)
    monkeypatch.setattr("forvalue_index.store.view.PART_ROWS", 4)
    steps = []
    with storage.view() as view:
        found = [
            *view.scan(
                "raw",
                lambda block: (block.ids.copy(), block.rows.clone()),
                normalize=normalize,
                on_progress=steps.append,
            )
        ]
        expected = torch.cat([b.rows for b in view.blocks("raw", normalize=normalize)])
    assert np.concatenate([ids for ids, _ in found]).tolist() == LIVE
    assert torch.cat([rows for _, rows in found]).equal(expected)
    assert all(len(ids) <= 2 for ids, _ in found)
    assert [(step.done, step.total) for step in steps] == [(4, 12), (7, 12), (11, 12), (12, 12)]


def test_a_scan_that_fails_ends(storage, monkeypatch):
    """Whatever fails, no core waits for it, and torch has its threads back."""
    monkeypatch.setattr("forvalue_index.store.segments.BLOCK_ROWS", 1)
    monkeypatch.setattr("forvalue_index.store.view.PART_ROWS", 1)
    n_threads = torch.get_num_threads()

    def fail(block):
        raise ZeroDivisionError

    with storage.view() as view:
        with pytest.raises(ZeroDivisionError):
            list(view.scan("raw", fail))
        assert len(list(view.scan("raw", lambda block: 1))) == len(LIVE)
        first = next(view.scan("raw", lambda block: 1))
    assert first == 1
    assert torch.get_num_threads() == n_threads


def test_scanned_rows_that_are_kept_are_written_over(storage):
    """So nobody may keep them; what is stored is not touched."""
    with storage.view() as view:
        list(view.scan("raw", lambda block: block.rows.zero_()))
        assert torch.cat([block.rows for block in view.blocks("raw")]).equal(ROWS[LIVE])
