import numpy as np
import pytest
import torch
from test_storage import create, fill, samples, statistics

from forvalue_index.exceptions import UsageError
from forvalue_index.search import coded, ranking, tuning
from forvalue_index.search.building import RowKind, coded_index
from forvalue_index.search.code_files import CodeFiles, Tuned
from forvalue_index.search.tuning import tune

DIM, N = 64, 3000
RAW = RowKind("raw")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(ranking, "SCANNED", 4)
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 8)
    monkeypatch.setattr(tuning, "ANSWERS", 10)
    monkeypatch.setattr(tuning, "REFINES", (1, 4, 16, 64, 256))


def rows_of(n, seed=0):
    random = torch.Generator().manual_seed(seed)
    norms = torch.exp(0.5 * torch.randn(n, 1, generator=random))
    return (torch.randn(n, DIM, generator=random) + 1) * norms


@pytest.fixture
def storage(tmp_path):
    made = create(tmp_path / "ix", dim=DIM)
    for number in range(3):
        made.append(made.quantized({"raw": rows_of(N // 3, number)}), samples(N // 3, f"{number}-"),
                    statistics(N // 3))  # fmt: skip
    made.catalog.remove([1, 700])
    yield made
    made.close()


def tuned(storage, kind="rabitq", recall=0.95, rows=RAW):
    with storage.view() as view:
        return tune(view, rows, kind, recall=recall)


def kept_of(storage, rows="raw", kind="rabitq"):
    return CodeFiles(storage.path / "search", rows, kind).tuned(N)


def recall_of(storage, report, trial):
    """The recall of one trial at both ends, from numpy, over the same queries."""
    with storage.view() as view:
        live = view.catalog.live_ids()
        ids = np.sort(np.random.default_rng(0).choice(live, report.queries, replace=False))
        every = view.rows("raw", live)
        queries = view.rows("raw", ids)
        index = coded_index(view, RAW, report.search)
        index.refine, index.probes = trial.refine, trial.probes
        shares = []
        for sign in (1, -1):
            kept = []
            for id_, query, (found, _) in zip(
                ids, queries, index.search(sign * queries, 11), strict=True
            ):
                others = live != id_
                scores = sign * (every[others].astype(np.float64) @ query)
                right = live[others][np.argsort(-scores)[:10]]
                kept.append(len(set(right) & set(found[found != id_][:10])) / 10)
            shares.append(np.mean(kept))
    return shares


@pytest.mark.parametrize("kind", ["rabitq", "ivf-rabitq"])
def test_the_cheapest_choice_that_reaches_the_recall_is_kept(storage, kind):
    report = tuned(storage, kind)
    assert (report.rows, report.queries, report.answers) == (N - 2, 50, 10)
    assert (report.search, report.geometry, report.normalized) == (kind, "raw", False)
    reached = [t for t in report.trials if min(t.top, t.bottom) >= 0.95]
    assert report.chosen == min(reached, key=lambda trial: trial.seconds)
    assert len(report.trials) > 1
    assert report.trials[0] not in reached, "else nothing was there to find"
    kept = kept_of(storage, kind=kind)
    assert (kept.refine, kept.probes) == (report.chosen.refine, report.chosen.probes)
    assert kept.recall >= 0.95
    with storage.view() as view:
        index = coded_index(view, RAW, kind)
        assert index.refine == kept.refine
        assert kept.probes in (None, index.probes)
    for trial in (report.trials[0], report.chosen):
        assert recall_of(storage, report, trial) == pytest.approx([trial.top, trial.bottom])


def test_cosines_are_tuned_apart(storage):
    report = tuned(storage, rows=RowKind("raw", normalize=True))
    assert report.normalized
    assert kept_of(storage, "raw.cosine").recall is not None
    assert kept_of(storage) == Tuned()


def test_nothing_is_kept_where_nothing_reaches_it(storage, monkeypatch):
    monkeypatch.setattr(tuning, "REFINES", (1, 2))
    report = tuned(storage, recall=1.0)
    assert report.chosen is None
    assert len(report.trials) == 2
    assert kept_of(storage) == Tuned()


@pytest.mark.parametrize(
    ("kind", "recall", "match"),
    [
        ("flat", 0.9, "flat scores every row and misses none"),
        ("rabitq", 0.0, "--recall is 0.0; use more than 0"),
        ("rabitq", 1.01, "--recall is 1.01; use"),
    ],
)
def test_bad_input(storage, kind, recall, match):
    with pytest.raises(UsageError, match=match):
        tuned(storage, kind, recall)


def test_too_few_samples(tmp_path):
    made = create(tmp_path / "ix")
    fill(made, 19)
    with pytest.raises(
        UsageError, match=r"has 19 samples, and so few are all scored; tune it when it has 20"
    ):
        tuned(made)
    made.close()


def test_an_index_that_is_scored_whole(storage, monkeypatch):
    monkeypatch.setattr(ranking, "SCANNED", 4096)
    with pytest.raises(UsageError, match=r"has 2,998 samples.* tune it when it has 4,097"):
        tuned(storage)
