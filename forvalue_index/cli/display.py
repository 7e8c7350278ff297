"""Results as a person wants to read them: rich tables on stdout."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forvalue_index.cli.terminal import without_control
from forvalue_index.store.records import StoredSample
from forvalue_index.valuation.results import QueryResult, ScoredSample

PIPED_WIDTH = 140
# A content hash, which is the key of a sample without an id, takes two lines.
KEY_WIDTH = 24
LEAST_SHOWN = 0.005


def print_query(result: QueryResult) -> None:
    """Two tables for the set, then two for each validation sample where asked for."""
    console = readable_console()
    console.print(
        f"{result.validation_samples:,} validation samples ({result.validation_label_tokens:,} "
        f"label tokens) against {result.searched:,} indexed samples, {_scores(result)}."
    )
    masses = {"validation": result.label_error_mass, "index": result.index_error_mass}
    known = ", ".join(f"{m:.2f} ({name})" for name, m in masses.items() if m is not None)
    if known:
        console.print(f"[dim]Median label error mass, of 1 - p(label): {known}[/]")
    for warning in result.warnings:
        console.print(f"[yellow]{shown(warning)}[/]")
    _print_both(console, "the validation set", result.helpful, result.harmful)
    for one in result.per_sample:
        name = f"validation sample {one.validation}"
        _print_both(console, name, one.helpful, one.harmful)
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result.seconds.items())
    console.print(f"[dim]{seconds}[/]")


def print_sample(stored: StoredSample, page: Path | None = None) -> None:
    """One sample whole, and where a page of it was written."""
    console = readable_console()
    sample, statistics = stored.sample, stored.statistics
    console.print(
        f"[bold]{shown(sample.key)}[/] (number {stored.id}) from {shown(sample.source)}, "
        f"row {sample.position}"
    )
    console.print(
        f"{statistics.n_tokens:,} tokens, {statistics.n_label_tokens:,} of them labels; loss "
        f"{statistics.loss:.3f} nats a label token; row norm {statistics.norm:.4g}"
        + ("; [yellow]cut to --max-length[/]" if statistics.truncated else "")
        + ("; [red]removed[/]" if stored.removed else "")
    )
    for name, value in sample.metadata.items():
        console.print(f"[dim]{shown(str(name))}[/] {shown(str(value))}")
    if sample.tools:
        console.print(f"[cyan]tools[/] {shown(json.dumps(sample.tools, ensure_ascii=False))}")
    for message in sample.messages:
        text = message.text(lambda image: f"[{image}] ")
        console.print(f"[cyan]{shown(message.role)}[/] {shown(text)}", soft_wrap=True)
    if page is not None:
        console.print(f"written to {shown(str(page))}", soft_wrap=True)


def print_list(samples: Sequence[StoredSample], matching: int) -> None:
    """A table of samples, and how many there are in all."""
    table = Table(box=None, expand=True)
    table.add_column("number", justify="right")
    for column in ("key", "source"):
        table.add_column(column, overflow="fold", max_width=KEY_WIDTH)
    for column in ("tokens", "labels", "loss"):
        table.add_column(column, justify="right")
    table.add_column("preview", overflow="ellipsis", no_wrap=True, min_width=30, ratio=1)
    for stored in samples:
        statistics = stored.statistics
        table.add_row(
            f"@{stored.id}",
            shown(stored.sample.key),
            shown(stored.sample.source),
            f"{statistics.n_tokens:,}",
            f"{statistics.n_label_tokens:,}",
            f"{statistics.loss:.2f}",
            shown(stored.sample.preview),
        )
    console = readable_console()
    console.print(table)
    console.print(f"{len(samples):,} of {matching:,} samples")


def _print_both(
    console: Console,
    whom: str,
    helpful: Sequence[ScoredSample],
    harmful: Sequence[ScoredSample],
) -> None:
    console.print(_hits_table(f"Most helpful to {whom}", "green", helpful))
    console.print(_hits_table(f"Most harmful to {whom}", "red", harmful))


def _hits_table(title: str, style: str, hits: Sequence[ScoredSample]) -> Table:
    table = Table(
        title=title, title_style=f"bold {style}", title_justify="left", box=None, expand=True
    )
    table.add_column("rank", justify="right")
    table.add_column("score", justify="right", style=style)
    table.add_column("± stderr", justify="right", style="dim")
    table.add_column("id", overflow="fold", max_width=KEY_WIDTH)
    table.add_column("source", overflow="fold", max_width=KEY_WIDTH)
    table.add_column("preview", overflow="ellipsis", no_wrap=True, min_width=30, ratio=1)
    for hit in hits:
        table.add_row(
            str(hit.rank),
            readable_number(hit.score, sign="+"),
            _uncertainty(hit),
            shown(hit.sample.key),
            shown(hit.sample.source),
            shown(hit.sample.preview),
        )
    return table


def _scores(result: QueryResult) -> str:
    scoring = result.scoring
    parts = [f"{scoring.geometry} geometry"]
    if scoring.normalize:
        parts.append("cosines")
    if scoring.whiten:
        parts.append("whitened query")
    if result.reranked:
        parts.append(f"{result.reranked:,} candidates scored exactly")
    return ", ".join(parts)


def _uncertainty(hit: ScoredSample) -> str:
    if hit.exact:
        return "exact"
    return "unknown" if hit.stderr is None else readable_number(hit.stderr)


def readable_number(value: float, *, sign: str = "-") -> str:
    """About four digits, and no exponent where a person can do without."""
    if abs(value) >= 100:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.1f}" if abs(value) >= 1 else f"{value:{sign}.3g}"


def readable_console() -> Console:
    """Tables keep a readable width where the output is a pipe or a file."""
    console = Console(emoji=False, highlight=False)
    if console.is_terminal:
        return console
    return Console(emoji=False, highlight=False, width=PIPED_WIDTH)


def shown(text: str) -> str:
    """Text of a data set, which may hold neither markup nor commands to the terminal."""
    return escape(without_control(text))
