import sys
from importlib import metadata

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from search_oracle import check, expected, random_rows

from forvalue_index.exceptions import MissingDependencyError, UsageError
from forvalue_index.search import flat, ranking
from forvalue_index.search.contract import SearchIndex
from forvalue_index.search.faiss_library import faiss_library
from forvalue_index.search.flat import FlatIndex

DIM = 16
# Every kind of index, and the precision in which it keeps rows.
KINDS = {
    "flat float32": (FlatIndex, "float32"),
    "flat bfloat16": (FlatIndex, "bfloat16"),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


def make(kind, dim=DIM):
    index_class, row_dtype = KINDS[kind]
    index = index_class(dim, row_dtype=row_dtype)
    assert isinstance(index, SearchIndex)
    return index


@pytest.mark.parametrize("k", [1, 7, 199, 200, 201, 5000])
def test_ids_and_signed_scores_are_those_of_numpy(kind, k):
    rows, queries = random_rows(200), random_rows(3, seed=1)
    ids = np.random.default_rng(2).permutation(10**6)[:200]
    index = make(kind)
    index.add(ids[:120], rows[:120])
    index.add(ids[120:], rows[120:])
    assert len(index) == 200
    check(index, ids, rows, queries, k)
    (_, scores), *_ = index.search(queries, 200)
    assert scores.min() < -1 < 1 < scores.max()  # harmful samples keep their sign


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(sorted(KINDS)),
    st.integers(1, 40),
    st.integers(1, 20),
    st.integers(1, 3),
    st.integers(1, 50),
    st.integers(0, 10**6),
)
def test_any_shape_with_many_ties(kind, n, dim, n_queries, k, seed):
    rows = random_rows(n, dim, seed=seed, steps=2)
    queries = random_rows(n_queries, dim, seed=seed + 1, steps=2)
    ids = np.random.default_rng(seed).permutation(1000)[:n]
    index = make(kind, dim)
    index.add(ids, rows)
    check(index, ids, rows, queries, k, tolerance=0)


@pytest.mark.parametrize("k", [1, 2, 9, 50, 99])
def test_ties_at_the_border_go_by_id(kind, k):
    """FAISS gives equal scores in any order and cuts them anywhere: of 100 equal rows, and one
    better, the answer must be the same however they were added.
    """
    rows = np.repeat(random_rows(1), 101, axis=0)
    rows[40] *= 2
    query = rows[:1]
    ids = np.random.default_rng(0).permutation(101)
    index = make(kind)
    index.add(ids, rows)
    check(index, ids, rows, query, k)


@pytest.mark.parametrize("n_queries", [1, 64])
def test_equal_rows_tie_however_many_queries_are_asked(kind, n_queries):
    """For 20 queries and more FAISS multiplies matrices, and at 4,096 dimensions gave equal rows
    scores that differ in the last bit: their order, and who was cut off at k, was then random.
    """
    dim = 4096
    rows = np.repeat(random_rows(1, dim), 301, axis=0)
    rows[::3] = random_rows(101, dim, seed=1)
    ids = np.random.default_rng(0).permutation(301)
    queries = random_rows(n_queries, dim, seed=2) + rows[1] / 2
    index = make(kind, dim)
    index.add(ids, rows)
    for k in (50, 250):
        check(index, ids, rows, queries, k, tolerance=1e-3)


@pytest.mark.parametrize("k", [1, 7, 60, 500])
@pytest.mark.parametrize("steps", [None, 2])
@pytest.mark.parametrize("share", [None, 2, 3])
def test_many_queries_are_answered_as_single_ones(kind, k, steps, share, monkeypatch):
    """By products of matrices, some queries and rows at a time, with ties and among allowed ids."""
    monkeypatch.setattr(flat, "SCORES", 5 * 300)
    monkeypatch.setattr(flat, "BLOCK_ROWS", 70)
    monkeypatch.setattr(ranking, "SCANNED", 4)
    rows, queries = random_rows(300, steps=steps), random_rows(flat.MANY + 1, seed=1, steps=steps)
    ids = np.random.default_rng(0).permutation(900)[:300]
    index = make(kind)
    index.add(ids, rows)
    allowed = None if share is None else np.arange(0, 900, share)
    mine = np.full(300, True) if share is None else np.isin(ids, allowed)
    for sign in (1, -1):
        answers = index.search(sign * queries, k, allowed)
        for query, (found, scores) in zip(queries, answers, strict=True):
            true_ids, true_scores = expected(ids[mine], rows[mine], sign * query, k)
            assert found.tolist() == true_ids.tolist()
            np.testing.assert_allclose(scores, true_scores, rtol=1e-5, atol=1e-5)


def test_an_empty_index_answers_every_query_with_nothing(kind):
    index = make(kind)
    assert len(index) == 0
    answers = index.search(random_rows(2), 5)
    assert [(len(ids), len(scores)) for ids, scores in answers] == [(0, 0), (0, 0)]
    assert answers[0][0].dtype == np.int64
    assert answers[0][1].dtype == np.float32


def test_no_query_and_no_row_are_fine(kind):
    index = make(kind)
    index.add(np.empty(0, np.int64), random_rows(0))
    assert len(index) == 0
    index.add(np.array([4]), random_rows(1))
    assert index.search(random_rows(0), 3) == []


def test_zero_rows_and_negative_ids_are_rows_like_others(kind):
    rows = random_rows(3)
    rows[1] = 0
    ids = np.array([-1, 2**40, 0])
    index = make(kind)
    index.add(ids, rows)
    check(index, ids, rows, random_rows(1, seed=5), 3)


def test_rows_that_lie_apart_in_memory_are_read_right(kind):
    rows = random_rows(40)[::2]
    wide = np.asfortranarray(random_rows(20, seed=3))
    index = make(kind)
    index.add(np.arange(20), rows)
    index.add(np.arange(20, 40), wide)
    check(index, np.arange(40), np.concatenate([rows, wide]), random_rows(1, seed=4), 10)


def without_side_effects(kind, ids, rows, match):
    """The rows are refused, and the index is as it was."""
    index = make(kind)
    known = random_rows(5, seed=9)
    index.add(np.arange(5), known)
    with pytest.raises(UsageError, match=match):
        index.add(ids, rows)
    assert len(index) == 5
    check(index, np.arange(5), known, random_rows(1, seed=8), 5)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_undefined_rows_are_refused(kind, bad):
    """FAISS takes a row with NaN without a word and never finds it again."""
    rows = random_rows(3)
    rows[1, 4] = bad
    without_side_effects(kind, np.arange(10, 13), rows, "NaN or infinity")
    index = make(kind)
    index.add(np.arange(3), random_rows(3))
    with pytest.raises(UsageError, match="NaN or infinity"):
        index.search(rows, 1)


@pytest.mark.parametrize("dim", [DIM - 1, DIM + 1])
def test_rows_of_another_width_are_refused(kind, dim):
    without_side_effects(kind, np.arange(10, 12), random_rows(2, dim), f"index of width {DIM}")
    with pytest.raises(UsageError, match=f"index of width {DIM}"):
        make(kind).search(random_rows(1, dim), 1)


def test_known_ids_are_refused(kind):
    without_side_effects(kind, np.array([7, 3]), random_rows(2), "id 3 is in the index already")


def test_an_id_given_twice_is_refused(kind):
    without_side_effects(kind, np.array([7, 7]), random_rows(2), "1 of 2 ids repeat")


def test_ids_and_rows_must_be_as_many(kind):
    without_side_effects(kind, np.array([7]), random_rows(2), "1 ids for 2 rows")


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_row_cannot_be_asked_for(kind, k):
    with pytest.raises(UsageError, match=f"k is {k}"):
        make(kind).search(random_rows(1), k)


# Which FAISS is installed.


@pytest.fixture
def fresh_library():
    faiss_library.cache_clear()
    yield
    faiss_library.cache_clear()


@pytest.mark.usefixtures("fresh_library")
def test_a_missing_faiss_is_said_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(MissingDependencyError) as error:
        FlatIndex(DIM)
    assert "pip install 'forvalue-index[cpu]'" in str(error.value)


@pytest.mark.usefixtures("fresh_library")
def test_two_faiss_distributions_are_refused(monkeypatch, tmp_path):
    """They install the same files, so whichever came last is what runs, and uninstalling one
    breaks the other.
    """
    for name in ("faiss_cpu", "faiss_gpu"):
        info = tmp_path / f"{name}-1.15.1.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.15.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert metadata.version("faiss-gpu") == "1.15.1"
    with pytest.raises(MissingDependencyError) as error:
        faiss_library()
    assert "faiss-cpu and faiss-gpu are installed" in str(error.value)
    assert "pip uninstall faiss-cpu faiss-gpu" in str(error.value)
