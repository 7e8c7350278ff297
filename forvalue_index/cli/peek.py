"""`peek`: how rows are read, before anything is embedded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from forvalue_index.cli.options import (
    json_option,
    print_json,
    reading_options,
    settings_options,
    trust_option,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from forvalue_index.ingest.peek import PeekedRow, PeekedSource, TextRun

# Characters of a value of metadata.
MOST_SHOWN = 100
INDENT = "    "


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option("--model", help="Hub id, local directory or GGUF file; its weights are not needed.")
@click.option(
    "--index",
    type=click.Path(path_type=Path),
    help="An index that is there: its model and settings, in place of --model.",
)
@click.option(
    "-n", "--count", type=int, default=3, show_default=True, help="Rows of each source to show."
)
@reading_options
@settings_options("adapter", "revision")
@settings_options("labels", "max_length")
@settings_options("media", "media")
@trust_option
@json_option
@click.pass_context
def peek(
    context: click.Context,
    /,
    data: tuple[str, ...],
    reading: dict[str, Any],
    as_json: bool,
    **options: Any,
) -> None:
    """Show how the first rows of DATA are read for a model, before anything is embedded.

    Of each row: the text that the model reads, with what are labels; metadata; what is not read;
    or why the row is no usable sample. DATA are files as for `add`; give --model or --index. Of an
    --adapter the chat template counts alone.
    """
    from forvalue_index.ingest.peek import peek as peeked

    given = {
        name: value
        for name, value in options.items()
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT
    }
    sources = peeked(list(data), **given, **reading)
    if as_json:
        from forvalue_index.reports.peek_documents import peek_document

        print_json(peek_document(sources))
    else:
        print_peeked(sources)


def print_peeked(peeked: Sequence[PeekedSource]) -> None:
    """Each row, then a line for each source."""
    from forvalue_index.cli.display import readable_console, shown

    console = readable_console()
    for one in peeked:
        for row in one.rows:
            _print_row(console, row)
    for one in peeked:
        problem = "" if one.problem is None else f" [red]{shown(one.problem)}[/]"
        console.print(
            f"[bold]{shown(one.source)}[/]: {one.usable:,} of {len(one.rows):,} rows looked at "
            f"are usable.{problem}",
            soft_wrap=True,
        )


def _print_row(console: Console, row: PeekedRow) -> None:
    from forvalue_index.cli.display import shown

    key = f", key {shown(row.sample.key)}" if row.sample else ""
    state = (
        f"{row.n_tokens:,} tokens, {row.n_label_tokens:,} of them labels"
        if row.reason is None
        else f"[red]not usable:[/] {shown(row.reason)}"
    )
    console.print(
        f"[bold]{shown(row.source)}:{row.position}[/]{key}: {state}"
        + ("; [yellow]cut to --max-length[/]" if row.truncated else ""),
        soft_wrap=True,
    )
    if row.runs:
        console.print(_text(row.runs, coloured=_has_colours(console)), soft_wrap=True)
    for name, value in _facts(row):
        console.print(f"  [cyan]{name}[/] {shown(value)}", soft_wrap=True)


def _has_colours(console: Console) -> bool:
    return console.color_system is not None and not console.no_color


def _text(runs: Sequence[TextRun], *, coloured: bool) -> Text:
    """What the model reads, indented; labels are green, or in double brackets."""
    from rich.text import Text

    from forvalue_index.cli.terminal import without_control

    text = Text()
    for run in runs:
        words = without_control(run.text)
        if not run.is_label:
            text.append(words, style="dim")
        elif coloured:
            text.append(words, style="black on green")
        else:
            text.append(f"[[{words}]]")
    return Text(INDENT) + Text(f"\n{INDENT}").join(text.split("\n"))


def _facts(row: PeekedRow) -> Iterator[tuple[str, str]]:
    """What is said of a row beside its text, by name."""
    sample = row.sample
    if sample is None:
        return
    yield "turns", ", ".join(message.role for message in sample.messages)
    if sample.tools:
        yield "tools", f"{len(sample.tools):,}"
    for name, value in sample.metadata.items():
        yield "metadata", f"{name}: {_cut(str(value))}"
    if sample.unread:
        yield "columns that are not read", ", ".join(sample.unread)
    if row.unrendered:
        yield "fields of turns that the chat template leaves out", ", ".join(row.unrendered)
    if sample.cut_turns:
        yield "turns left out after the assistant's last", f"{sample.cut_turns:,}"


def _cut(text: str) -> str:
    """One line of at most MOST_SHOWN characters."""
    line = " ".join(text.split())
    return line if len(line) <= MOST_SHOWN else line[: MOST_SHOWN - 1] + "…"
