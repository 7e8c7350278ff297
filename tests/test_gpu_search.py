"""Rows in the memory of GPUs: the contract of a search index, on the CPU and on the GPUs there are.

The code is the same on either, but for the product of rows of bfloat16.
"""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_search import check, random_rows

from forvalue_index.devices import gpus
from forvalue_index.exceptions import UsageError
from forvalue_index.search import gpu as gpu_search
from forvalue_index.search import ranking
from forvalue_index.search.contract import SearchIndex
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.store.rows import quantized

DIM = 16
CPU = torch.device("cpu")
DEVICES = [
    pytest.param("cpu", id="cpu"),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")],
        id="cuda",
    ),
]
ROW_DTYPES = ["float32", "bfloat16", "int8"]


@pytest.fixture(params=DEVICES)
def device(request):
    return torch.device(request.param)


@pytest.fixture(params=ROW_DTYPES)
def row_dtype(request):
    return request.param


@pytest.fixture(autouse=True)
def scans_little(monkeypatch):
    monkeypatch.setattr(ranking, "SCANNED", 4)


def make(ids, rows, device, row_dtype="bfloat16", *, normalize=False):
    """The index, and its rows as they are stored."""
    ids = np.sort(ids)
    index = GpuIndex(ids, rows.shape[1], {device: len(ids)}, exact=row_dtype == "float32")
    stored = quantized(torch.from_numpy(rows), row_dtype)
    half = len(ids) // 2
    for part in (slice(0, half), slice(half, None)):
        index.put(ids[part], stored[part], normalize=normalize)
    assert isinstance(index, SearchIndex)
    assert index.kind == "flat"
    return index, ids, stored.floats().numpy()


@pytest.mark.parametrize("k", [1, 7, 199, 200, 201, 5000])
def test_ids_and_signed_scores_are_those_of_numpy(device, row_dtype, k):
    ids = np.random.default_rng(2).permutation(10**6)[:200]
    index, ids, rows = make(ids, random_rows(200), device, row_dtype)
    assert len(index) == 200
    check(index, ids, rows, random_rows(3, seed=1), k)
    (_, scores), *_ = index.search(random_rows(3, seed=1), 200)
    assert scores.min() < -1 < 1 < scores.max()  # harmful samples keep their sign
    some = np.random.default_rng(0).choice(ids, 9)
    np.testing.assert_array_equal(index.rows(some), rows[np.searchsorted(ids, some)])


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(ROW_DTYPES),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 50),
    st.integers(0, 10**6),
)
def test_any_shape_with_many_ties(row_dtype, n, dim, n_queries, k, seed):
    ids = np.random.default_rng(seed).permutation(1000)[:n]
    found = make(ids, random_rows(n, dim, seed=seed, steps=2), CPU, row_dtype)
    check(*found, random_rows(n_queries, dim, seed=seed + 1, steps=2), k, tolerance=1e-5)


@pytest.mark.parametrize("k", [1, 2, 9, 50, 99])
def test_ties_at_the_border_go_by_id(device, row_dtype, k):
    rows = np.repeat(random_rows(1), 101, axis=0)
    rows[40] *= 2
    check(*make(np.arange(101), rows, device, row_dtype), rows[:1], k)


@pytest.mark.parametrize("n_queries", [1, 64])
def test_equal_rows_tie_however_many_queries_are_asked(device, n_queries):
    dim = 4096
    rows = np.repeat(random_rows(1, dim), 301, axis=0)
    rows[::3] = random_rows(101, dim, seed=1)
    queries = random_rows(n_queries, dim, seed=2) + rows[1] / 2
    index, ids, rows = make(np.arange(301), rows, device)
    for k in (50, 250):
        check(index, ids, rows, queries, k, tolerance=1e-3)


def test_rows_whose_scores_differ_by_less_than_a_query_is_rounded_are_in_order(device):
    """A query of bfloat16 alone would not tell these rows apart."""
    dim = 64
    query = random_rows(1, dim).astype(np.float32) + 1e-3 * random_rows(1, dim, seed=1)
    rows = np.repeat(random_rows(1, dim, seed=2), 64, axis=0)
    rows[np.arange(64), np.arange(64)] *= 1 + 2**-7
    check(*make(np.arange(64), rows, device), query, 10)


def test_allowed_rows_alone_are_found_at_both_ends(device, row_dtype):
    index, ids, rows = make(np.arange(0, 900, 3), random_rows(300), device, row_dtype)
    query = random_rows(2, seed=5)
    for allowed in (ids[:3], ids[::2], np.array([1, 6, 9, 10**6]), ids, np.array([1])):
        inside = np.intersect1d(ids, allowed)
        mine = rows[np.searchsorted(ids, inside)]
        for sign in (1, -1):
            for asked, (found, scores) in zip(
                sign * query, index.search(sign * query, 20, allowed), strict=True
            ):
                true = mine @ asked
                order = np.lexsort((inside, -true))[:20]
                assert found.tolist() == inside[order].tolist()
                np.testing.assert_allclose(scores, true[order], rtol=1e-5, atol=1e-5)


def test_shares_of_several_devices_answer_as_one(row_dtype, monkeypatch):
    """Two shares on one device are what two devices have."""
    monkeypatch.setattr(gpu_search, "SCORES", 400)  # 2 queries at once
    monkeypatch.setattr(gpu_search, "BLOCK_FLOATS", 100 * DIM)
    rows, queries = random_rows(300), random_rows(5, seed=1)
    ids = np.arange(0, 600, 2)
    shares = {CPU: 190, torch.device("cpu", 0): 110}
    index = GpuIndex(ids, DIM, shares, exact=row_dtype == "float32")
    stored = quantized(torch.from_numpy(rows), row_dtype)
    for start in range(0, 300, 70):
        index.put(ids[start : start + 70], stored[start : start + 70])
    true = stored.floats().numpy()
    check(index, ids, true, queries, 150)
    np.testing.assert_array_equal(index.rows(ids[::-7]), true[::-7])
    blocks = list(index.blocks())
    assert [len(mine) for mine, _ in blocks] == [100, 90, 100, 10]
    np.testing.assert_array_equal(np.concatenate([mine for mine, _ in blocks]), ids)
    np.testing.assert_array_equal(torch.cat([r for _, r in blocks]).numpy(), true)


def test_reading_blocks_changes_nothing(device, row_dtype):
    index, *_ = make(np.arange(30), random_rows(30), device, row_dtype, normalize=True)
    queries = random_rows(2, seed=1)
    before = index.search(queries, 5)
    for _ in range(2):
        rows = torch.cat([rows for _, rows in index.blocks()]).cpu()
        torch.testing.assert_close(torch.linalg.vector_norm(rows, dim=1), torch.ones(30))
    for (mine, scores), (theirs, others) in zip(index.search(queries, 5), before, strict=True):
        assert mine.tolist() == theirs.tolist()
        assert scores.tolist() == others.tolist()


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_products_that_a_program_allows_to_be_coarse_are_not(device, precision):
    """Such as TF32, in which candidates would be missed."""
    index, ids, rows = make(np.arange(2000), random_rows(2000, 256), device, "float32")
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        check(index, ids, rows, random_rows(4, 256, seed=1), 50, tolerance=1e-3)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision(before)


def test_normalised_rows_have_norm_1_but_for_those_of_zeros(device, row_dtype):
    rows = random_rows(50)
    rows[7] = 0
    index, ids, stored = make(np.arange(50), rows, device, row_dtype, normalize=True)
    norms = np.linalg.norm(stored, axis=1, keepdims=True)
    unit = stored / np.where(norms == 0, 1, norms)
    check(index, ids, unit, random_rows(1, seed=3), 50)
    np.testing.assert_allclose(index.rows(ids), unit, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_undefined_rows_and_queries_are_refused(device, bad):
    rows = random_rows(3)
    rows[1, 4] = bad
    with pytest.raises(UsageError, match="NaN or infinity"):
        make(np.arange(3), rows, device)
    index, *_ = make(np.arange(3), random_rows(3), device)
    with pytest.raises(UsageError, match="NaN or infinity"):
        index.search(rows, 1)
    with pytest.raises(UsageError, match="index of width 16"):
        index.search(random_rows(1, 15), 1)
    with pytest.raises(UsageError, match="k is 0"):
        index.search(random_rows(1), 0)


def test_shares_must_be_of_as_many_rows_as_there_are():
    with pytest.raises(UsageError, match="3 ids for shares of 2 rows"):
        GpuIndex(np.arange(3), DIM, {CPU: 2}, exact=False)
