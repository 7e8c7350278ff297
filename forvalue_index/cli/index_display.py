"""What the terminal shows of an index: made, added to, checked, tuned."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from forvalue_index.cli.display import LEAST_SHOWN, readable_console, shown
from forvalue_index.cli.terminal import counted
from forvalue_index.ingest.tally import AddReport
from forvalue_index.search.contract import TuneReport
from forvalue_index.store.results import CalibrationSummary, CheckReport

TEMPLATE_SHOWN = 60
# Kinds of reasons for which rows were rejected.
MOST_REASONS = 10
# Characters of metadata beside a row that repeats another.
MOST_SHOWN = 100


def print_created(index: Path, document: Mapping[str, Any]) -> None:
    """What `init` made."""
    readable_console().print(
        f"[bold]{shown(str(index))}[/] is ready: {shown(document['model'])}, "
        f"{document['dim']:,} floats a row ({document['row_dtype']}), template "
        f"{document['template']}, labels {document['labels']}, at most "
        f"{document['max_length']:,} tokens a sample. Fingerprint {document['fingerprint']}.",
        soft_wrap=True,
    )


def print_added(report: AddReport) -> None:
    """What `add` did, and what deserves attention."""
    console = readable_console()
    rate = f" at {report.tokens / report.seconds['forward']:,.0f} tokens/s" if report.tokens else ""
    console.print(
        f"[bold]{counted(report.added, 'sample')} added[/] of {report.read:,} read in "
        f"{report.seconds['total']:.1f} s{rate}; {report.known:,} were known; "
        f"{report.label_tokens:,} label tokens."
    )
    if report.restored or report.updated:
        console.print(
            f"{counted(report.restored, 'removed sample')} back; {report.updated:,} known ones "
            "have new metadata or places of images."
        )
    if report.relabelled:
        console.print(
            f"{report.relabelled:,} of the samples added take the place of ones that were read or "
            "labelled otherwise."
        )
    _print_duplicates(console, report)
    if report.truncated:
        console.print(
            f"[yellow]{counted(report.truncated, 'sample')} cut, at the tokens of --max-length.[/]"
        )
    _print_unread(console, report)
    if report.rejected_file:
        console.print(
            f"[yellow]{counted(report.rejected, 'rejected row')}:[/] {shown(report.rejected_file)}"
        )
        for reason, count in Counter(report.reasons).most_common(MOST_REASONS):
            console.print(f"    {counted(count, 'time')}: {shown(reason)}", soft_wrap=True)


def _print_unread(console: Console, report: AddReport) -> None:
    """What rows have that the model does not read."""
    told = {
        "columns that are not read, and are metadata": report.unread,
        "fields of turns that the chat template leaves out": report.unrendered,
    }
    for what, counts in told.items():
        if counts:
            listed = ", ".join(
                f"{name} ({counted(count, 'row')})" for name, count in Counter(counts).most_common()
            )
            console.print(f"[yellow]{what}:[/] {shown(listed)}", soft_wrap=True)
    if report.cut:
        console.print(
            f"{counted(report.cut, 'conversation')} cut behind the assistant's last turn, as "
            "somebody else speaks after it.",
            soft_wrap=True,
        )


def _print_duplicates(console: Console, report: AddReport) -> None:
    """How many rows repeat others of the same `add`, and the first with other metadata."""
    if report.duplicates:
        same = report.duplicates - report.differing
        console.print(
            f"{counted(report.duplicates, 'repeat')} of an earlier row of this add: {same:,} with "
            f"the same metadata, {report.differing:,} with other"
            + (", of which the last counts:" if report.differing else "."),
            soft_wrap=True,
        )
    for repeat in report.examples:
        metadata = ", ".join(f"{name} {value!r}" for name, value in repeat.metadata.items())
        told = textwrap.shorten(metadata, MOST_SHOWN, placeholder=" …")
        console.print(
            f"    [yellow]{shown(repeat.row)}[/] repeats {shown(repeat.repeats)}: {shown(told)}",
            soft_wrap=True,
        )
    if report.differing > len(report.examples):
        console.print(f"    and {report.differing - len(report.examples):,} more", soft_wrap=True)


def print_info(index: Path, document: Mapping[str, Any]) -> None:
    """What an index holds, a line a fact."""
    table = Table(box=None, show_header=False, title=shown(str(index)), title_justify="left")
    table.add_column(style="cyan")
    table.add_column(overflow="fold")
    lists = {
        "sources": "\n".join(f"{s['samples']:,}  {s['source']}" for s in document["sources"])
        or "none yet",
        "warnings": "\n".join(document["warnings"]),
        "stopped": "\n".join(", ".join(names) for names in document["stopped"]),
        "chat_template": _first_line(document["chat_template"]),
    }
    names = {"stopped": "stopped, add again"}
    for name, value in {**document, **lists}.items():
        if value is not None and value != "":
            table.add_row(names.get(name, name.replace("_", " ")), shown(_fact(value)))
    readable_console().print(table)


def _first_line(text: str | None) -> str | None:
    """How a chat template begins; all of it is in `--json`."""
    line = " ".join((text or "").split())
    return line[:TEMPLATE_SHOWN] + "…" if len(line) > TEMPLATE_SHOWN else line


def print_calibration(index: Path, summary: CalibrationSummary | None) -> None:
    """What an index is calibrated with."""
    console = readable_console()
    if summary is None:
        console.print(f"{shown(str(index))} is not calibrated yet; the first add does it.")
        return
    console.print(
        f"Calibrated on {summary.samples:,} samples with {summary.label_tokens:,} label tokens "
        f"({summary.digest}), damping {summary.damping:g}.",
        soft_wrap=True,
    )
    console.print(
        f"{summary.damped_tokens:,} of {summary.vocab_size:,} tokens of the vocabulary were seen "
        "so little that the damping outweighs them; fisher and kfac scale these nearly alike.",
        soft_wrap=True,
    )
    for name, scale in summary.error_scale.items():
        noise, relative = scale["noise"], scale["relative"]
        also = f", and {relative:.0%} of the score" if relative >= LEAST_SHOWN else ""
        console.print(f"{name}: standard errors are {noise:.2f} of the sketch's formula{also}")


def print_tuned(index: Path, report: TuneReport) -> None:
    """A line for each trial, and what queries use from now on."""
    console = readable_console()
    rows = f"{report.rows:,} {report.geometry} rows{', normalised' if report.normalized else ''}"
    table = Table(
        title=f"{report.search} over {rows}, {report.answers} answers to {report.queries} queries",
        title_justify="left",
        box=None,
    )
    for column in ("candidates an answer", "lists", "recall, top", "bottom", "ms a query"):
        table.add_column(column, justify="right")
    for trial in report.trials:
        table.add_row(
            f"{trial.refine}",
            "" if trial.probes is None else f"{trial.probes:,}",
            f"{trial.top:.4f}",
            f"{trial.bottom:.4f}",
            f"{1000 * trial.seconds:.1f}",
            style="bold green" if trial == report.chosen else "",
        )
    console.print(table)
    if report.chosen is None:
        console.print(
            f"[red]No choice reaches a recall of {report.recall:g} at both ends; query with "
            f"--search flat, which misses nothing, or ask for less.[/]",
            soft_wrap=True,
        )
    else:
        console.print(f"Queries of {shown(str(index))} use the green line from now on.")


def print_check(index: Path, report: CheckReport) -> None:
    """What was looked at, and each finding with its cure."""
    console = readable_console()
    for finding in report.findings:
        style, state = ("green", "repaired") if finding.repaired else ("red", "found")
        console.print(f"[{style}]{state}[/] {finding.kind}: {shown(finding.what)}", soft_wrap=True)
        if not finding.repaired:
            console.print(f"    cure: {shown(finding.cure)}", soft_wrap=True)
    segments, samples = counted(report.segments, "segment"), counted(report.samples, "sample")
    looked = f"{segments} and {samples} of {shown(str(index))}"
    verdict = "[green]sound[/]" if report.sound else "[red]not sound[/]"
    console.print(f"{looked}: {verdict}.", soft_wrap=True)


def _fact(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
