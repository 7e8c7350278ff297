"""Results as a person wants to read them: rich tables on stdout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from forvalue_index.records import AddReport, QueryResult, ScoredSample, StoredSample

PIPED_WIDTH = 140
# A content hash, which is the key of a sample without an id, takes two lines.
KEY_WIDTH = 24


def print_created(index: Path, document: Mapping[str, Any]) -> None:
    """What `init` made."""
    _console().print(
        f"[bold]{escape(str(index))}[/] is ready: {escape(document['model'])}, "
        f"{document['dim']:,} floats a row ({document['row_dtype']}), template "
        f"{document['template']}, labels {document['labels']}, at most "
        f"{document['max_length']:,} tokens a sample. Fingerprint {document['fingerprint']}."
    )


def print_added(report: AddReport) -> None:
    """What `add` did, and what deserves attention."""
    console = _console()
    rate = f" at {report.tokens / report.seconds['forward']:,.0f} tokens/s" if report.tokens else ""
    console.print(
        f"[bold]{report.added:,} samples added[/] of {report.read:,} read in "
        f"{report.seconds['total']:.1f} s{rate}; {report.known:,} were known; "
        f"{report.label_tokens:,} label tokens."
    )
    if report.truncated:
        console.print(
            f"[yellow]{report.truncated:,} samples are longer than --max-length and were cut.[/]"
        )
    if report.rejected_file:
        console.print(
            f"[yellow]{report.rejected:,} rows were rejected:[/] {escape(report.rejected_file)}"
        )


def print_query(result: QueryResult) -> None:
    """Two tables for the set, then two for each validation sample where asked for."""
    console = _console()
    console.print(
        f"{result.validation_samples:,} validation samples ({result.validation_label_tokens:,} "
        f"label tokens) against {result.searched:,} indexed samples, {result.geometry} geometry."
    )
    for warning in result.warnings:
        console.print(f"[yellow]{escape(warning)}[/]")
    _print_both(console, "the validation set", result.helpful, result.harmful)
    for one in result.per_sample:
        name = f"validation sample {one.validation}"
        _print_both(console, name, one.helpful, one.harmful)
    seconds = ", ".join(f"{name} {value:.2f} s" for name, value in result.seconds.items())
    console.print(f"[dim]{seconds}[/]")


def print_sample(stored: StoredSample) -> None:
    """One sample whole."""
    console = _console()
    sample, statistics = stored.sample, stored.statistics
    console.print(
        f"[bold]{escape(sample.key)}[/] (number {stored.id}) from {escape(sample.source)}, "
        f"row {sample.position}"
    )
    console.print(
        f"{statistics.n_tokens:,} tokens, {statistics.n_label_tokens:,} of them labels; loss "
        f"{statistics.loss:.3f} nats a label token; row norm {statistics.norm:.4g}"
        + ("; [yellow]cut to --max-length[/]" if statistics.truncated else "")
    )
    for name, value in sample.metadata.items():
        console.print(f"[dim]{escape(str(name))}[/] {escape(str(value))}")
    for message in sample.messages:
        console.print(f"[cyan]{escape(message.role)}[/] {escape(message.content)}")


def print_list(found: Sequence[StoredSample], matching: int) -> None:
    """A table of samples, and how many there are in all."""
    table = Table(box=None, expand=True)
    table.add_column("number", justify="right")
    for column in ("key", "source"):
        table.add_column(column, overflow="fold", max_width=KEY_WIDTH)
    for column in ("tokens", "labels", "loss"):
        table.add_column(column, justify="right")
    table.add_column("preview", overflow="ellipsis", no_wrap=True, min_width=30, ratio=1)
    for stored in found:
        statistics = stored.statistics
        table.add_row(
            str(stored.id),
            escape(stored.sample.key),
            escape(stored.sample.source),
            f"{statistics.n_tokens:,}",
            f"{statistics.n_label_tokens:,}",
            f"{statistics.loss:.2f}",
            escape(stored.sample.preview),
        )
    console = _console()
    console.print(table)
    console.print(f"{len(found):,} of {matching:,} samples")


def print_info(index: Path, document: Mapping[str, Any]) -> None:
    """What an index holds, a line a fact."""
    table = Table(box=None, show_header=False, title=escape(str(index)), title_justify="left")
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    for name, value in document.items():
        if name == "sources":
            value = "\n".join(f"{s['samples']:,}  {s['source']}" for s in value) or "none yet"
        elif isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif value is None:
            continue
        table.add_row(name.replace("_", " "), escape(str(value)))
    _console().print(table)


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
            "exact" if hit.exact else readable_number(hit.stderr),
            escape(hit.sample.key),
            escape(hit.sample.source),
            escape(hit.sample.preview),
        )
    return table


def readable_number(value: float, *, sign: str = "-") -> str:
    """About four digits, and no exponent where a person can do without."""
    if abs(value) >= 100:
        return f"{value:{sign},.0f}"
    return f"{value:{sign}.1f}" if abs(value) >= 1 else f"{value:{sign}.3g}"


def _console() -> Console:
    """Tables keep a readable width where the output is a pipe or a file."""
    console = Console()
    return console if console.is_terminal else Console(width=PIPED_WIDTH)
