"""An explanation in the terminal: a coloured line of tokens, and the strongest of them."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from forvalue_index.cli.display import readable_console, readable_number, shown
from forvalue_index.cli.terminal import without_control
from forvalue_index.valuation.results import ExplainedSample, Explanation

STRONGEST = 10
GREEN, RED, PALE = (35, 134, 54), (190, 40, 40), 235
# Stronger than this, a background needs white letters.
DARK = 0.6


def print_explanation(explanation: Explanation, page: Path | None = None) -> None:
    """The training sample, then each validation sample where asked for."""
    out, scoring = readable_console(), explanation.scoring
    kind = f"{scoring.geometry} geometry" + (", cosine" if scoring.normalize else "")
    out.print(
        f"[bold]{shown(explanation.training.sample.key)}[/] (number {explanation.id}): exact score "
        f"[bold]{readable_number(explanation.score, sign='+')}[/] ({kind}) for "
        f"{explanation.validation_samples:,} validation samples, "
        f"{explanation.validation_label_tokens:,} label tokens.",
        soft_wrap=True,
    )
    for warning in explanation.warnings:
        out.print(f"[yellow]{shown(warning)}[/]", soft_wrap=True)
    _print_tokens(out, explanation.training)
    out.print(_table(explanation.training))
    for number, one in enumerate(explanation.validation):
        score = readable_number(one.score, sign="+")
        out.print(f"validation sample {number}, {shown(one.sample.key)}: {score}")
        _print_tokens(out, one)
    if page is not None:
        out.print(f"written to {shown(str(page))}")


def _print_tokens(out: Console, explained: ExplainedSample) -> None:
    line = Text()
    for token in explained.tokens:
        text = without_control(token.text)
        if token.loss is None:
            line.append(text, style="dim")
            continue
        strength = abs(token.term) / explained.largest if explained.largest else 0.0
        full = GREEN if token.term > 0 else RED
        colour = ",".join(str(round(PALE + (part - PALE) * strength)) for part in full)
        ink = "black" if strength < DARK else "white"
        line.append(text, style=f"{ink} on rgb({colour})")
    out.print(line, soft_wrap=True)


def _table(explained: ExplainedSample) -> Table:
    table = Table(title="Strongest tokens", title_justify="left", box=None)
    for column in ("position", "term", "loss"):
        table.add_column(column, justify="right")
    table.add_column("token")
    for token in explained.strongest(STRONGEST):
        style = "green" if token.term > 0 else "red"
        table.add_row(
            str(token.position),
            Text(readable_number(token.term, sign="+"), style=style),
            f"{token.loss or 0.0:.3f}",
            Text(repr(token.text)),
        )
    return table
