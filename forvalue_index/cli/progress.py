"""Progress on stderr, drawn only where a person looks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress
from rich.text import Text

from forvalue_index.contracts import OnProgress, ignore_progress
from forvalue_index.records import Progress

LABELS = {
    "checking": "Checking rows",
    "loading": "Loading the model",
    "embedding": "Embedding",
    "opening": "Opening the search index",
    "scoring": "Scoring",
}


class RateColumn(TextColumn):
    """Samples and tokens a second since the stage began."""

    def __init__(self) -> None:
        super().__init__("")

    def render(self, task: Task) -> Text:
        """`12.3 samples/s, 812 tokens/s`, or nothing yet."""
        elapsed = task.finished_time or task.elapsed or 0.0
        tokens = task.fields.get("tokens", 0)
        if not tokens or elapsed <= 0:
            return Text("")
        samples_per_s, tokens_per_s = task.completed / elapsed, tokens / elapsed
        return Text(f"{samples_per_s:,.1f} samples/s, {tokens_per_s:,.0f} tokens/s", style="cyan")


@contextmanager
def drawn_progress() -> Iterator[OnProgress]:
    """A callback that draws one bar a stage, with rates and the time left."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield ignore_progress
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def draw(progress: Progress) -> None:
            label = LABELS[progress.stage]
            if label not in tasks:
                tasks[label] = bars.add_task(label, total=progress.total, tokens=0)
            bars.update(
                tasks[label],
                completed=progress.done,
                total=progress.total,
                tokens=progress.tokens,
            )

        yield draw
