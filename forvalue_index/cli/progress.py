"""Progress on stderr: bars where a person looks, else a line a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import click
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

from forvalue_index.progress import OnProgress, Progress

LABELS = {
    "checking": "Checking rows",
    "loading": "Loading the model",
    "embedding": "Embedding",
    "opening": "Opening the search index",
    "coding": "Encoding rows for search",
    "calibrating": "Calibrating",
    "scoring": "Scoring",
    "re-scoring": "Scoring exactly",
    "retraining": "Training on halves",
    "training": "Training",
    "patching": "Training single steps",
    "comparing": "Baselines",
    "waiting": "Waiting for another process to finish",
    "compacting": "Compacting",
    "restoring": "Restoring",
    "repairing": "Repairing",
}
UNITS = {
    "checking": "rows",
    "embedding": "samples",
    "calibrating": "samples",
    "scoring": "samples",
    "re-scoring": "samples",
    "patching": "samples",
    "comparing": "samples",
}
LOG_INTERVAL_S = 60.0


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


@dataclass
class _LoggedStage:
    """A stage since its first step, and when its next line is due."""

    first: Progress
    last: Progress
    started: float
    due: float
    logged: bool = False

    @property
    def finished(self) -> bool:
        """Whether all that was to do is done."""
        return self.last.total is not None and self.last.done >= self.last.total

    def line(self, elapsed_s: float, ending: str = "") -> str:
        """As in `Embedding: 12,345 of 100,000 samples, 801 tokens/s, 1 h 12 min left`."""
        parts = [f"{self.last.done:,}"]
        if self.last.total is not None:
            parts[0] += f" of {self.last.total:,}"
        if unit := UNITS.get(self.last.stage):
            parts[0] += f" {unit}"
        done, tokens = self.last.done - self.first.done, self.last.tokens - self.first.tokens
        if tokens and elapsed_s > 0:
            parts.append(f"{tokens / elapsed_s:,.0f} tokens/s")
        if ending:
            parts.append(f"{ending} {readable_duration(elapsed_s)}")
        elif self.last.total is not None and done > 0:
            left_s = elapsed_s * (self.last.total - self.last.done) / done
            parts.append(f"{readable_duration(left_s)} left")
        return f"{LABELS[self.last.stage]}: {', '.join(parts)}"


class ProgressLog:
    """Writes a line about a stage each `interval_s`, and one when it ends if there was one before.

    Short stages leave no line. Lines come with the steps of a task: one that does not step is
    silent.
    """

    def __init__(
        self, *, clock: Callable[[], float] = time.monotonic, interval_s: float = LOG_INTERVAL_S
    ) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self._stages: dict[str, _LoggedStage] = {}

    def __call__(self, progress: Progress) -> None:
        """Take note of one step."""
        now = self._clock()
        due = now + self._interval_s
        stage = self._stages.setdefault(
            progress.stage, _LoggedStage(progress, progress, started=now, due=due)
        )
        stage.last = progress
        if stage.finished:
            self._end(progress.stage, "done in")
        elif now >= stage.due:
            click.echo(stage.line(now - stage.started), err=True)
            stage.due, stage.logged = due, True

    def close(self) -> None:
        """The last lines of stages that were not finished."""
        for name in list(self._stages):
            self._end(name, "ended after")

    def _end(self, name: str, ending: str) -> None:
        stage = self._stages.pop(name)
        if stage.logged:
            click.echo(stage.line(self._clock() - stage.started, ending), err=True)


def readable_duration(seconds: float) -> str:
    """`40 s`, `12 min` or `1 h 12 min`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


@contextmanager
def drawn_progress(
    *, clock: Callable[[], float] = time.monotonic, interval_s: float = LOG_INTERVAL_S
) -> Iterator[OnProgress]:
    """A callback that draws one bar a stage, with rates and the time left.

    Where stderr is no terminal, it writes a line each `interval_s` seconds instead.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        log = ProgressLog(clock=clock, interval_s=interval_s)
        try:
            yield log
        finally:
            log.close()
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
