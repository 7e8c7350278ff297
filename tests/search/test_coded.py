"""`rabitq` and `ivf-rabitq`: what they find beside numpy, both ends."""

import numpy as np
import pytest

from forvalue_index.exceptions import BrokenIndexError, UsageError
from forvalue_index.search import coded, ranking
from forvalue_index.search.coded import CodedIndex
from forvalue_index.search.contract import SearchIndex
from forvalue_index.search.quantizer import CODED_KINDS, Quantizer, lists_for
from forvalue_index.search.rotation import Rotation, hadamard

DIM = 48  # padded to 64 floats


@pytest.fixture(params=CODED_KINDS)
def kind(request):
    return request.param


@pytest.fixture
def scans_little(monkeypatch):
    """So that small indexes search codes, too."""
    monkeypatch.setattr(ranking, "SCANNED", 4)
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 8)


def data(n, dim=DIM, seed=0):
    """Rows as sketches have them: a common part, few directions, norms with a long tail."""
    random = np.random.default_rng(seed)
    few = random.standard_normal((n, 4)) @ random.standard_normal((4, dim))
    rows = few + 0.5 * random.standard_normal((n, dim)) + 2 * random.standard_normal(dim)
    return (rows * np.exp(0.7 * random.standard_normal((n, 1)))).astype(np.float32)


def made(kind, rows, ids=None, **parameters):
    ids = np.arange(len(rows)) * 3 + 5 if ids is None else ids
    quantizer = Quantizer.train(kind, rows, n_lists=4, seed=0)
    known = dict(zip(ids.tolist(), rows, strict=True))

    def fetch(wanted):
        return np.stack([known[i] for i in wanted.tolist()])

    index = CodedIndex(quantizer, rows.shape[1], fetch, **parameters)
    half = len(rows) // 2
    for part in (slice(half), slice(half, None)):
        index.add(ids[part], quantizer.encode(rows[part]))
    assert isinstance(index, SearchIndex)
    assert len(index) == len(rows)
    return index, ids


def numpy_best(ids, rows, query, k, allowed=None):
    scores = rows.astype(np.float64) @ query
    order = np.lexsort((ids, -scores))
    if allowed is not None:
        order = order[np.isin(ids[order], allowed)]
    return ids[order[:k]], scores[order[:k]]


def check(index, ids, rows, queries, k, allowed=None):
    for sign in (1, -1):
        for query, (found, scores) in zip(
            queries, index.search(sign * queries, k, allowed), strict=True
        ):
            expected, true = numpy_best(ids, rows, sign * query, k, allowed)
            assert found.tolist() == expected.tolist()
            np.testing.assert_allclose(scores, true, rtol=1e-4, atol=1e-3)
            assert (found.dtype, scores.dtype) == (np.int64, np.float32)


@pytest.mark.usefixtures("scans_little")
@pytest.mark.parametrize("k", [1, 7, 300, 1000])
def test_with_enough_candidates_both_ends_are_those_of_numpy(kind, k):
    rows = data(300)
    index, ids = made(kind, rows, refine=300)
    check(index, ids, rows, data(5, seed=1), k)


@pytest.mark.usefixtures("scans_little")
def test_codes_find_nearly_all_with_a_few_times_as_many_candidates(kind):
    """At both ends, and no answer has another score than its row."""
    rows, queries = data(4000, dim=256), data(20, dim=256, seed=1)
    index, ids = made(kind, rows, refine=32)
    for sign in (1, -1):
        kept = []
        for query, (found, scores) in zip(queries, index.search(sign * queries, 10), strict=True):
            expected, _ = numpy_best(ids, rows, sign * query, 10)
            kept.append(len(set(found.tolist()) & set(expected.tolist())) / 10)
            places = np.searchsorted(ids, found)
            true = sign * (rows[places].astype(np.float64) @ query)
            np.testing.assert_allclose(scores, true, rtol=1e-4, atol=1e-3)
            assert (np.diff(scores) <= 0).all()
        assert np.mean(kept) > 0.75


class NoRotation(Rotation):
    def __call__(self, rows):
        return rows


def test_a_rotation_is_what_makes_one_bit_do():
    """Rows with few large floats: by their signs alone the harmful end is lost."""
    random = np.random.default_rng(0)
    rows = random.standard_normal((2000, 256)) * np.exp(2 * random.standard_normal(256))
    rows = (rows + 0.3 * random.standard_normal((2000, 256))).astype(np.float32)

    def bottom_kept(turned):
        quantizer = Quantizer("rabitq", NoRotation(np.ones(256, np.int8)), turned.mean(0)[None])
        index = CodedIndex(quantizer, 256, lambda ids: turned[ids], refine=4)
        index.add(np.arange(2000), quantizer.encode(turned))
        queries = turned[:20]
        kept = []
        for query, (found, _) in zip(queries, index.search(-queries, 10), strict=True):
            expected, _ = numpy_best(np.arange(2000), turned, -query, 10)
            kept.append(len(set(found.tolist()) & set(expected.tolist())) / 10)
        return np.mean(kept)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "SCANNED", 4)
        patch.setattr(coded, "LEAST_CANDIDATES", 8)
        assert bottom_kept(Rotation.draw(256, 1)(rows)) > bottom_kept(rows) + 0.1


@pytest.mark.usefixtures("scans_little")
@pytest.mark.parametrize("share", [0.5, 0.02])
def test_only_what_is_allowed_is_found(kind, share):
    rows = data(300)
    index, ids = made(kind, rows, refine=300)
    allowed = ids[np.random.default_rng(1).random(300) < share]
    check(index, ids, rows, data(3, seed=2), 20, np.concatenate([allowed, [-7, 10**9]]))


def test_nothing_is_allowed(kind):
    index, _ = made(kind, data(100))
    for found, scores in index.search(data(2), 5, np.array([-1])):
        assert len(found) == len(scores) == 0


@pytest.mark.usefixtures("scans_little")
def test_few_probes_give_what_they_find_and_never_padding():
    rows = data(300)
    index, ids = made("ivf-rabitq", rows, refine=300, probes=1)
    for found, _ in index.search(data(5, seed=1), 300):
        assert 0 < len(found) <= 300
        assert set(found.tolist()) <= set(ids.tolist())


def test_a_quantizer_is_what_its_tensors_say(kind):
    rows = data(200)
    quantizer = Quantizer.train(kind, rows, n_lists=4, seed=0)
    again = Quantizer.from_tensors(quantizer.tensors())
    assert np.array_equal(again.encode(rows), quantizer.encode(rows))
    assert again.kind == kind
    assert again.code_size == 64 // 8 + 8 + (kind == "ivf-rabitq")


@pytest.mark.parametrize(
    "change",
    [
        {"kind": np.frombuffer(b"pq", np.uint8)},
        {"centres": np.zeros((1, 63), np.float32)},
        {"centres": np.zeros(64, np.float32)},
        {"centres": np.zeros((2, 64), np.float32)},
        {"centres": np.full((1, 64), np.nan, np.float32)},
    ],
)
def test_other_tensors_are_no_quantizer(change):
    named = Quantizer.train("rabitq", data(50), n_lists=1, seed=0).tensors()
    with pytest.raises(ValueError, match="no centres"):
        Quantizer.from_tensors(named | change)


def test_a_code_that_names_no_list_is_refused():
    """FAISS would write into memory that is not its own."""
    rows = data(200)
    quantizer = Quantizer.train("ivf-rabitq", rows, n_lists=4, seed=0)
    codes = quantizer.encode(rows)
    codes[3, 0] = 200
    index = CodedIndex(quantizer, DIM, lambda ids: rows[ids])
    with pytest.raises(BrokenIndexError, match="names a list"):
        index.add(np.arange(200), codes)


def test_bad_input(kind):
    rows = data(60)
    index, ids = made(kind, rows)
    codes = Quantizer.train(kind, rows, n_lists=4, seed=0).encode(rows)
    for more, match in (
        (ids[:1], "ids must go up|1 ids for 60"),
        (ids, "must go up"),
        (np.zeros(60, np.int64) + 10**6, "must go up"),
    ):
        with pytest.raises(UsageError, match=match):
            index.add(more, codes)
    assert len(index) == 60
    with pytest.raises(UsageError, match="k is 0"):
        index.search(rows[:1], 0)
    with pytest.raises(UsageError, match="index of width 48"):
        index.search(rows[:1, 1:], 1)
    with pytest.raises(UsageError, match="NaN or infinity"):
        index.search(rows[:1] * np.nan, 1)


@pytest.mark.parametrize("dim", [1, 2, 3, 64, 100, 4096])
def test_a_rotation_keeps_inner_products(dim):
    random = np.random.default_rng(0)
    rows = random.standard_normal((7, dim)).astype(np.float32)
    turned = Rotation.draw(dim, 3)(rows)
    assert turned.shape == (7, 1 << (dim - 1).bit_length())
    np.testing.assert_allclose(turned @ turned.T, rows @ rows.T, rtol=1e-3, atol=1e-3)


def test_a_rotation_by_hand():
    """H D x for x = (1, 2, 3, 4) and signs + - + +."""
    signs = np.array([1, -1, 1, 1], np.int8)
    turned = Rotation(signs)(np.array([[1, 2, 3, 4]], np.float32))
    np.testing.assert_allclose(turned, [[3, 1, -4, 2]], rtol=1e-6)
    assert hadamard(1).tolist() == pytest.approx(np.array([[1, 1], [1, -1]]) / 2**0.5)


def test_there_are_lists_for_as_many_rows_as_can_teach_them():
    assert [lists_for(n) for n in (1, 100, 10_000, 10**6, 10**8)] == [1, 2, 256, 4000, 4096]


@pytest.mark.parametrize("k", [40, 300])
def test_however_many_are_asked_for_few_rows_are_fetched_at_once(kind, k, monkeypatch):
    monkeypatch.setattr(ranking, "FETCHED", 16)
    rows = data(300)
    index, ids = made(kind, rows, refine=300)
    whole, sizes = index._fetch, []
    index._fetch = lambda wanted: sizes.append(len(wanted)) or whole(wanted)
    check(index, ids, rows, data(3, seed=1), k)
    assert max(sizes) == 16
