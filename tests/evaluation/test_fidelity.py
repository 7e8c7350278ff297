"""Agreement of sketched scores with exact ones, against numbers computed apart."""

import numpy as np
import oracle
import pytest
from rows import rows
from scipy.stats import spearmanr

from forvalue_index import ValuationIndex
from forvalue_index.evaluation import fidelity as fidelity_module
from forvalue_index.evaluation.evidence import EvaluationData
from forvalue_index.evaluation.fidelity import evaluate_fidelity, fidelity
from forvalue_index.exceptions import UsageError
from forvalue_index.sources.source import open_sources

pytest_plugins = ("tiny",)

VALIDATION = rows(5, seed=2, prefix="v")
BASELINES = ["bm25", "bm25, responses alone", "hidden state"]
ALL_KEPT = "100 candidates are all of the"


def made(path, model, *, dim, geometry="raw"):
    settings = {"dim": dim, "geometry": geometry, "row_dtype": "float32"}
    index = ValuationIndex.create(path, str(model), **settings)
    index.add(rows(16))
    index.add(rows(8, seed=1, prefix="s"))
    return index


def seen(index, data):
    (source,) = open_sources(data, None)
    encoded = [index.model.reader.prepare(sample).encoded for sample in source.samples()]
    model = index.model.backbone.model
    return [oracle.seen(model, one.token_ids, one.label_mask) for one in encoded]


def test_exact_rows_agree_in_full(tmp_path, model_dir):
    """288 x 32 gradient entries fit in a row: no sketch, and no error to promise."""
    with made(tmp_path / "i", model_dir, dim=9_216, geometry="raw,fisher") as index:
        result = evaluate_fidelity(index, EvaluationData(VALIDATION))
    names = [f"for-value {g}{c}" for g in ("raw", "fisher") for c in ("", ", cosine")]
    assert [(one.reference, one.method) for one in result.rows] == [
        (name, method) for name in names for method in (name, *BASELINES)
    ]
    for row in result.rows:
        assert row.error_over_stderr is None
        if row.method == row.reference:
            kept = (row.top_kept, row.bottom_kept, row.top_reranked, row.bottom_reranked)
            assert kept == (1, 1, 1, 1)
            assert row.mean_rank_correlation == pytest.approx(1)
            assert row.rank_correlation.low == pytest.approx(1)
        else:
            assert row.rank_correlation.value < 0.9
    assert (result.k, result.candidates) == (10, 100)
    (warning,) = result.evaluated.warnings
    assert warning.startswith(f"{ALL_KEPT} 24 training samples")


@pytest.mark.parametrize("normalize", [False, True])
def test_a_sketch_against_autograd(tmp_path, model_dir, normalize):
    with made(tmp_path / "i", model_dir, dim=64) as index:
        result = evaluate_fidelity(index, EvaluationData(VALIDATION))
        training = seen(index, rows(16) + rows(8, seed=1, prefix="s"))
        exact = oracle.value_matrix(seen(index, VALIDATION), training, normalize=normalize)
        found = index.query(VALIDATION, top=24, per_sample=True, normalize=normalize)
    hits = [sorted(one.helpful, key=lambda hit: hit.id) for one in found.per_sample]
    scores = np.array([[hit.score for hit in one] for one in hits])
    stderrs = np.array([[hit.stderr for hit in one] for one in hits])
    row = result.rows[4 * normalize]
    assert row.method == row.reference == "for-value raw" + ", cosine" * normalize

    ranks = [spearmanr(e, s).statistic for e, s in zip(exact, scores, strict=True)]
    assert row.rank_correlation.value == pytest.approx(np.mean(ranks), abs=1e-6)
    assert row.rank_correlation.low < row.rank_correlation.value < row.rank_correlation.high
    assert row.mean_rank_correlation == pytest.approx(
        spearmanr(exact.mean(0), scores.mean(0)).statistic, abs=1e-6
    )

    def kept(part):
        pairs = zip(exact.argsort(1), scores.argsort(1), strict=True)
        return np.mean([len({*e[part].tolist()} & {*s[part].tolist()}) / 10 for e, s in pairs])

    assert row.top_kept == pytest.approx(kept(slice(-10, None)))
    assert row.bottom_kept == pytest.approx(kept(slice(10)))
    assert row.top_kept < 1
    ratio = np.sqrt(np.mean((scores - exact) ** 2) / np.mean(stderrs**2))
    assert row.error_over_stderr == pytest.approx(ratio, rel=1e-3)
    within = np.mean(abs(scores - exact) <= 2 * stderrs)
    assert row.within_two_stderrs == pytest.approx(within, abs=2 / scores.size)
    assert 0.5 < row.error_over_stderr < 2


def ranked(order):
    """Scores of 150 samples, the first in `order` the best."""
    scores = np.empty(150, dtype=np.float32)
    scores[order] = np.arange(150, 0, -1)
    return scores[None]


@pytest.mark.parametrize(
    ("moved_to", "expected"),
    [
        # To the middle: the 100 candidates of the harmful end still hold them.
        (75, (1, 0.5, 1, 1)),
        # To the very top, where they push out 5 of 10.
        (0, (0.5, 0.5, 1, 0.5)),
    ],
)
def test_both_ends_by_hand(moved_to, expected):
    """Of the 10 worst samples, 5 are thought better than they are."""
    plain = list(range(150))
    order = plain[:-5]
    order[moved_to:moved_to] = plain[-5:]
    row = fidelity("m", "r", ranked(plain), ranked(order))
    found = (row.top_kept, row.bottom_kept, row.top_reranked, row.bottom_reranked)
    assert found == pytest.approx(expected)
    mirrored = fidelity("m", "r", -ranked(plain), -ranked(order))
    assert (mirrored.bottom_kept, mirrored.top_kept) == (row.top_kept, row.bottom_kept)
    assert (mirrored.bottom_reranked, mirrored.top_reranked) == (
        row.top_reranked,
        row.bottom_reranked,
    )
    assert mirrored.mean_rank_correlation == pytest.approx(row.mean_rank_correlation)


def test_errors_are_in_units_of_what_is_promised():
    exact = np.array([[1, 2, 3, 4], [4, 3, 2, 1]], dtype=np.float32)
    signs = np.array([[1, -1, 1, -1], [1, 1, -1, -1]], dtype=np.float32)
    scores = exact + 0.3 * signs
    tenth = np.full_like(exact, 0.1)
    assert fidelity("m", "m", exact, scores, tenth).error_over_stderr == pytest.approx(3)
    # Root mean squares: of 0.1 four times and 0.7 four times it is half.
    mixed = np.array([[0.1] * 4, [0.7] * 4], dtype=np.float32)
    assert fidelity("m", "m", exact, scores, mixed).error_over_stderr == pytest.approx(0.6)
    assert fidelity("m", "m", exact, scores, tenth).within_two_stderrs == 0
    assert fidelity("m", "m", exact, scores, mixed).within_two_stderrs == 0.5
    assert fidelity("m", "m", exact, scores, 0 * tenth).error_over_stderr is None
    assert fidelity("m", "m", exact, scores).error_over_stderr is None
    assert fidelity("m", "m", exact, scores).within_two_stderrs is None


def test_fewer_samples_than_are_kept():
    exact = np.array([[1, 2, 3]], dtype=np.float32)
    row = fidelity("m", "r", exact, -exact)
    assert (row.top_kept, row.bottom_kept, row.mean_rank_correlation) == (1, 1, -1)
    assert (row.rank_correlation.low, row.rank_correlation.high) == (None, None)


def test_scores_that_are_all_equal_order_nothing(index):
    """As BM25 where no word is shared: 0, which a JSON document can hold, and not NaN."""
    index.add(rows(4))
    result = evaluate_fidelity(index, EvaluationData([{"prompt": "zebra", "response": "zoo"}]))
    bm25 = result.rows[1]
    assert (bm25.method, bm25.mean_rank_correlation, bm25.rank_correlation.value) == ("bm25", 0, 0)


def test_by_default_a_sample_is_drawn(filled, monkeypatch):
    """Exact scores of all pairs take their time."""
    monkeypatch.setattr(fidelity_module, "SAMPLES", 12)
    assert evaluate_fidelity(filled, EvaluationData(VALIDATION)).evaluated.training_samples == 12
    wanted = EvaluationData(VALIDATION, limit=20)
    assert evaluate_fidelity(filled, wanted).evaluated.training_samples == 20


def test_where_candidates_are_few_nothing_is_said_of_it(index):
    index.add(rows(101, words=2))
    assert not evaluate_fidelity(index, EvaluationData(VALIDATION[:2])).evaluated.warnings


def test_an_empty_index_is_refused(index):
    with pytest.raises(UsageError, match="there are 0 training samples"):
        evaluate_fidelity(index, EvaluationData(VALIDATION))
