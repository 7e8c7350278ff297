"""How near sketched scores are to exact ones, on a sample of an index."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from forvalue_index.evaluation.evidence import EvaluationData, gather, warned
from forvalue_index.evaluation.metrics import mean_interval, share_kept, spearman
from forvalue_index.evaluation.results import Fidelity, FidelityResult
from forvalue_index.evaluation.scores import Matrix
from forvalue_index.index import ValuationIndex

# By default: exact scores of all pairs take their time.
SAMPLES = 400
KEPT = 10
CANDIDATES = 100


def evaluate_fidelity(index: ValuationIndex, wanted: EvaluationData) -> FidelityResult:
    """Compare scores of rows with exact ones, for the mean of a validation set and its samples.

    Against as many training samples as `wanted.limit` says, or 400. In every geometry that the
    index has rows of, as inner products and as cosines; the baselines beside them say what agreeing
    by accident looks like.

    Raises:
        UsageError: there are fewer than two training samples with texts.
        BadSampleError, SourceError: the validation set cannot be used, as in `query`.
    """
    if wanted.limit is None and len(index) > SAMPLES:
        wanted = replace(wanted, limit=SAMPLES)
    evidence = gather(index, replace(wanted, exact=True))
    rows = []
    for name, exact in evidence.exact.items():
        sketched = evidence.scores[name]
        rows.append(fidelity(name, name, exact, sketched, evidence.stderrs[name]))
        rows += [
            fidelity(baseline, name, exact, scores)
            for baseline, scores in evidence.baselines.items()
        ]
    evaluated = warned(evidence.evaluated, _trivial(len(evidence.training)))
    return FidelityResult(evaluated, KEPT, CANDIDATES, tuple(rows))


def fidelity(
    method: str, reference: str, exact: Matrix, scores: Matrix, stderrs: Matrix | None = None
) -> Fidelity:
    """Agreement of scores with exact ones; all are [validation, training]."""
    k = min(KEPT, exact.shape[1])
    mean_exact, mean_scores = exact.mean(axis=0), scores.mean(axis=0)
    per_sample = list(zip(exact, scores, strict=True))

    def over_samples(measure: Callable[[Matrix, Matrix], float]) -> float:
        return float(np.mean([measure(e, s) for e, s in per_sample]))

    correlations = np.array([_rank_correlation(e, s) for e, s in per_sample])
    errors = within = None
    if stderrs is not None and stderrs.any():
        errors = _rms(scores - exact) / _rms(stderrs)
        within = float(np.mean(np.abs(scores - exact) <= 2 * stderrs))
    return Fidelity(
        method=method,
        reference=reference,
        mean_rank_correlation=_rank_correlation(mean_exact, mean_scores),
        rank_correlation=mean_interval(correlations),
        top_kept=over_samples(lambda e, s: share_kept(e, s, k)),
        bottom_kept=over_samples(lambda e, s: share_kept(-e, -s, k)),
        top_reranked=over_samples(lambda e, s: share_kept(e, s, k, candidates=CANDIDATES)),
        bottom_reranked=over_samples(lambda e, s: share_kept(-e, -s, k, candidates=CANDIDATES)),
        error_over_stderr=errors,
        within_two_stderrs=within,
    )


def _trivial(size: int) -> tuple[str, ...]:
    if size > CANDIDATES:
        return ()
    return (
        f"{CANDIDATES} candidates are all of the {size:,} training samples, so nothing can be lost "
        "among them; evaluate more samples",
    )


def _rank_correlation(exact: Matrix, scores: Matrix) -> float:
    # Scores that are all equal, as BM25's where no word is shared, order nothing.
    return float(np.nan_to_num(spearman(exact, scores)))


def _rms(values: Matrix) -> float:
    return float(np.sqrt(np.mean(np.square(values, dtype=np.float64))))
