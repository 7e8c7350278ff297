"""Evaluations as a person wants to read them: rich tables on stdout."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forvalue_index.cli.display import readable_console, shown
from forvalue_index.evaluation.results import (
    Estimate,
    Evaluated,
    FidelityResult,
    LdsResult,
    MislabeledResult,
    RetrievalResult,
    TailPatchResult,
)

INTERVALS = "In brackets: 95 % bootstrap intervals"


def print_retrieval(result: RetrievalResult) -> None:
    """A line for each method, and how much the benchmark is worth."""
    console = readable_console()
    _print_evaluated(console, result.evaluated)
    table = Table(
        title=f"Retrieval of {result.classes:,} classes by {shown(result.label)}",
        title_justify="left",
        title_style="bold",
        box=None,
    )
    table.add_column("method", style="cyan")
    for column in ("AUC", "std", "recall", "std"):
        table.add_column(column, justify="right")
    table.add_row("[dim]guessing[/]", "0.500", "", f"{result.chance:.3f}", "")
    for one in result.methods:
        table.add_row(
            escape(one.method),
            interval(one.auc),
            f"{one.auc_std:.3f}",
            interval(one.recall),
            f"{one.recall_std:.3f}",
        )
    console.print(table)
    console.print(f"[dim]{INTERVALS} over validation samples.[/]")
    console.print(f"[yellow]{escape(result.remark)}[/]", soft_wrap=True)


def print_mislabeled(result: MislabeledResult) -> None:
    """A line for each method: what share of the flagged samples inspecting a share of all finds."""
    console = readable_console()
    _print_evaluated(console, result.evaluated)
    table = Table(
        title=f"Detection of {result.flagged:,} samples with {shown(result.flag)}, "
        f"{result.base_rate:.1%} of all",
        title_justify="left",
        title_style="bold",
        box=None,
    )
    table.add_column("method", style="cyan")
    table.add_column("AUC", justify="right")
    for share in result.inspected:
        table.add_column(f"{share:.0%}", justify="right")
    table.add_row("[dim]guessing[/]", "0.500", *(f"{share:.1%}" for share in result.inspected))
    for one in result.methods:
        table.add_row(
            escape(one.method),
            interval(one.auc),
            *(f"{share:.1%}" for share in one.found),
        )
    console.print(table)
    # One line for each rule: the first method that goes by it stands for all.
    for one in reversed({one.rule: one for one in reversed(result.methods)}.values()):
        rule = f"Suspicious to {one.method}: {one.rule}."
        console.print(f"[dim]{escape(rule)}[/]", soft_wrap=True)
    console.print(
        "[dim]Under 5 % to 50 %: the share of flagged samples found once so much is inspected. "
        f"{INTERVALS} over training samples.[/]"
    )
    console.print(f"[yellow]{escape(result.remark)}[/]", soft_wrap=True)
    if result.output is not None:
        console.print(f"Curves drawn to {shown(result.output)}", soft_wrap=True)


def print_fidelity(result: FidelityResult) -> None:
    """For each kind of scores a line, and below it one for each baseline."""
    console = readable_console()
    _print_evaluated(console, result.evaluated)
    table = _table("Agreement with exact scores", "method")
    table.columns[0].no_wrap = False  # 80 columns do not hold all
    k, n = result.k, result.candidates
    single, kept = "single samples", (f"top {k}", f"bottom {k}")
    reranked = tuple(f"{column} in {n}" for column in kept)
    for column in ("whole set", single, *kept, *reranked, "error", "within"):
        # No word is cut, and no bound of an interval.
        narrowest = len("[0.999,") if column == single else max(map(len, column.split()))
        table.add_column(column, justify="right", min_width=narrowest)
    for row in result.rows:
        ratio, within = row.error_over_stderr, row.within_two_stderrs
        table.add_row(
            escape(row.method)
            if row.method == row.reference
            else f"[dim]  {escape(row.method)}[/]",
            f"{row.mean_rank_correlation:.3f}",
            interval(row.rank_correlation),
            f"{row.top_kept:.2f}",
            f"{row.bottom_kept:.2f}",
            f"{row.top_reranked:.3f}",
            f"{row.bottom_reranked:.3f}",
            "" if ratio is None else f"{ratio:.2f}",
            "" if within is None else f"{within:.2f}",
        )
    console.print(table)
    console.print(
        "[dim]Each kind of scores, and below it the baselines, beside exact scores of that kind. "
        "Rank correlations, for the whole validation set and for single samples of it. Then, for "
        f"single samples, the share of the exact {k} that is among the {k} of a method, and among "
        f"the {n} candidates of --rerank {n}. The error is in units of the standard "
        "errors that are promised: 1.00 is as promised, and a share of .95 would be within two of "
        f"them. {INTERVALS} over validation samples.[/]",
        soft_wrap=True,
    )


def print_tail_patch(result: TailPatchResult) -> None:
    """A line for each method."""
    console = readable_console()
    _print_evaluated(console, result.evaluated)
    title = f"One step on each of {result.k} samples, learning rate {result.learning_rate:g}"
    table = _table(title, "method")
    for column in ("top", "bottom", "top - random", "random - bottom"):
        table.add_column(column, justify="right")
    table.add_row("[dim]random[/]", _gain(result.random), "", "", "")
    for one in result.methods:
        gains = (one.top, one.bottom, one.top_over_random, one.random_over_bottom)
        table.add_row(escape(one.method), *map(_gain, gains))
    console.print(table)
    console.print(
        "[dim]Mean change of the validation set's log-likelihood in thousandths of a nat a label "
        f"token. {INTERVALS} over training samples.[/]",
        soft_wrap=True,
    )


def print_lds(result: LdsResult) -> None:
    """A line for each method."""
    console = readable_console()
    _print_evaluated(console, result.evaluated)
    table = _table(f"Linear datamodelling score over {result.subsets} halves", "method", "scores")
    table.add_column("LDS", justify="right")
    for one in result.methods:
        table.add_row(escape(one.method), one.kind, interval(one.score))
    console.print(table)
    console.print(
        f"[dim]{INTERVALS} over validation samples. Training on another half changes the loss of a "
        f"validation sample by {result.spread:.3f} nats (standard deviation).[/]",
        soft_wrap=True,
    )


def interval(estimate: Estimate) -> str:
    """A number from 0 to 1 and its bounds."""
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:.3f}"
    return escape(f"{estimate.value:.3f} [{estimate.low:.3f}, {estimate.high:.3f}]")


def _print_evaluated(console: Console, evaluated: Evaluated) -> None:
    console.print(
        f"{evaluated.training_samples:,} indexed samples (labels {evaluated.labels}) against "
        f"{evaluated.validation_samples:,} validation samples."
    )
    for warning in evaluated.warnings:
        console.print(f"[yellow]{shown(warning)}[/]", soft_wrap=True)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False)
    for column in columns:
        # In a narrow terminal numbers take two lines, rather than names.
        table.add_column(column, style="cyan", no_wrap=True)
    return table


def _gain(estimate: Estimate) -> str:
    value, low, high = (
        None if number is None else f"{1000 * number:+.2f}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}" if low is None else escape(f"{value} [{low}, {high}]")
