"""How many candidates a search over codes needs: measured on rows of the index itself.

Some live rows are taken as queries, each searched among all others, for what helps it most and what
hurts it most. Every row is scored once to know the right answers.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from forvalue_index.exceptions import UsageError
from forvalue_index.progress import OnProgress, Progress, ignore_progress
from forvalue_index.search import ranking
from forvalue_index.search.building import RowKind, coded_index
from forvalue_index.search.code_files import CodeFiles, Tuned
from forvalue_index.search.coded import CodedIndex
from forvalue_index.search.contract import Ids, TuneReport, TuneTrial
from forvalue_index.search.kinds import FLAT, IVF_RABITQ
from forvalue_index.store.view import View

QUERIES, ANSWERS = 50, 100
REFINES = (10, 20, 40, 80, 160, 320, 640)
PROBED_SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)


class _Task(NamedTuple):
    """Queries [query, dim], which are rows of these ids, and their right answers at each end."""

    ids: Ids
    queries: NDArray[np.float32]
    best: list[Ids]
    worst: list[Ids]


def tune(
    view: View,
    rows: RowKind,
    kind: str,
    *,
    recall: float,
    on_progress: OnProgress = ignore_progress,
) -> TuneReport:
    """Find and keep the cheapest parameters that reach a recall at both ends.

    Raises:
        UsageError: `flat` has nothing to tune, the recall is no share, or there are too few rows.
    """
    if kind == FLAT:
        raise UsageError(
            f"{FLAT} scores every row and misses none; tune another kind with --search"
        )
    if not 0 < recall <= 1:
        raise UsageError(f"--recall is {recall}; use more than 0 and at most 1")
    total = view.catalog.count()
    least = max(2 * ANSWERS, ranking.SCANNED + 1)
    if total < least:
        raise UsageError(
            f"the index has {total:,} samples, and so few are all scored; tune it when it has "
            f"{least:,}"
        )
    task = _task(view, rows, on_progress)
    index = coded_index(view, rows, kind, on_progress=on_progress)
    trials = tuple(_trials(index, kind, task, recall, on_progress))
    reached = [trial for trial in trials if min(trial.top, trial.bottom) >= recall]
    chosen = min(reached, key=lambda trial: trial.seconds) if reached else None
    if chosen is not None:
        tuned = Tuned(chosen.refine, chosen.probes, min(chosen.top, chosen.bottom), total)
        CodeFiles(view.search_path, rows.name, kind).keep_tuned(tuned)
    return TuneReport(
        kind, rows.geometry, rows.normalize, total, len(task.ids), ANSWERS, recall, trials, chosen
    )


def _trials(
    index: CodedIndex, kind: str, task: _Task, recall: float, on_progress: OnProgress
) -> Iterator[TuneTrial]:
    """From cheap to dear, until more candidates bring nothing."""
    n_lists = index.n_lists
    probed = sorted({max(1, round(s * n_lists)) for s in PROBED_SHARES})
    choices = probed if kind == IVF_RABITQ else [None]
    for step, probes in enumerate(choices):
        for refine in REFINES:
            index.refine, index.probes = refine, probes
            trial = _trial(index, task)
            yield trial
            if min(trial.top, trial.bottom) >= recall or refine * ANSWERS >= len(index):
                break
        on_progress(Progress("measuring", step + 1, len(choices)))


def _trial(index: CodedIndex, task: _Task) -> TuneTrial:
    started = time.perf_counter()
    ends = [index.search(sign * task.queries, ANSWERS + 1) for sign in (1, -1)]
    seconds = (time.perf_counter() - started) / (2 * len(task.ids))
    top, bottom = (
        _recall([ids for ids, _ in answers], right, task.ids)
        for answers, right in zip(ends, (task.best, task.worst), strict=True)
    )
    return TuneTrial(index.refine, index.probes, top, bottom, seconds)


def _recall(answers: list[Ids], right: list[Ids], own: Ids) -> float:
    """The share of right answers that were found, the query's own row left out."""
    shares = [
        np.isin(expected, ids[ids != query][:ANSWERS]).mean()
        for ids, expected, query in zip(answers, right, own, strict=True)
    ]
    return float(np.mean(shares))


def _task(view: View, rows: RowKind, on_progress: OnProgress) -> _Task:
    live = view.catalog.live_ids()
    ids = np.sort(np.random.default_rng(0).choice(live, min(QUERIES, len(live)), replace=False))
    queries = view.rows(rows.geometry, ids, normalize=rows.normalize)
    asked = torch.from_numpy(queries)
    ends = {1: _nothing(len(ids)), -1: _nothing(len(ids))}
    done = 0
    for block in view.blocks(rows.geometry, normalize=rows.normalize):
        scores = asked @ block.rows.T
        scores[torch.from_numpy(ids[:, None] == block.ids[None])] = torch.nan
        for sign, (best, kept) in ends.items():
            both = torch.cat([best, torch.nan_to_num(sign * scores, nan=-torch.inf)], dim=1)
            known = torch.cat([kept, torch.from_numpy(block.ids).expand(len(ids), -1)], dim=1)
            top = both.topk(min(ANSWERS, both.shape[1]), dim=1)
            ends[sign] = (top.values, known.gather(1, top.indices))
        done += len(block.ids)
        on_progress(Progress("scoring", done, len(live)))
    right = [list(kept.numpy()) for _, kept in ends.values()]
    return _Task(ids, queries, *right)


def _nothing(n_queries: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty(n_queries, 0), torch.empty(n_queries, 0, dtype=torch.int64)
