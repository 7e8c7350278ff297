import io

import pytest
from rich.console import Console

from forvalue_index.cli import progress
from forvalue_index.cli.progress import (
    LABELS,
    LOG_INTERVAL_S,
    ProgressLog,
    drawn_progress,
    readable_duration,
)
from forvalue_index.progress import Progress


class Clock:
    """Time that passes when it is told to."""

    now = 1_000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def lines(capsys):
    said = capsys.readouterr()
    assert said.out == ""
    assert "\x1b" not in said.err
    return said.err.splitlines()


def embed(log, clock, *, until, step=100, total=100_000, tokens_a_sample=20):
    """Steps of 10 s, until so many samples are done."""
    for done in range(step, until + 1, step):
        log(Progress("embedding", done, total, done * tokens_a_sample))
        clock.now += 10


def test_a_line_a_minute(clock, capsys):
    embed(ProgressLog(clock=clock), clock, until=600)
    assert lines(capsys) == []
    embed(ProgressLog(clock=clock), clock, until=100 * 61)
    said = lines(capsys)
    assert len(said) == 10
    assert said[0] == "Embedding: 700 of 100,000 samples, 200 tokens/s, 2 h 46 min left"
    assert said[-1] == "Embedding: 6,100 of 100,000 samples, 200 tokens/s, 2 h 36 min left"


def test_a_stage_that_logged_says_when_it_is_done(clock, capsys):
    with drawn_progress(clock=clock) as on_progress:
        embed(on_progress, clock, until=1000, total=1000)
    said = lines(capsys)
    assert said == [
        "Embedding: 700 of 1,000 samples, 200 tokens/s, 30 s left",
        "Embedding: 1,000 of 1,000 samples, 200 tokens/s, done in 2 min",
    ]


def test_a_stage_that_is_broken_off_says_how_far_it_came(clock, capsys):
    def interrupted():
        with drawn_progress(clock=clock) as on_progress:
            embed(on_progress, clock, until=700)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert lines(capsys)[1:] == [
        "Embedding: 700 of 100,000 samples, 171 tokens/s, ended after 1 min"
    ]


def test_short_stages_are_silent(clock, capsys):
    """Each has a minute of its own, however long they take together."""
    with drawn_progress(clock=clock) as on_progress:
        for stage in LABELS:
            on_progress(Progress(stage, 0, 2))
            clock.now += 59
            on_progress(Progress(stage, 1, 2))
            clock.now += 59
            on_progress(Progress(stage, 2, 2))
    assert lines(capsys) == []


def test_a_total_that_is_not_known(clock, capsys):
    log = ProgressLog(clock=clock)
    log(Progress("checking", 5_000))
    clock.now += 60
    log(Progress("checking", 10_000))
    clock.now += 30
    log(Progress("checking", 12_345, 12_345))
    assert lines(capsys) == [
        "Checking rows: 10,000 rows",
        "Checking rows: 12,345 of 12,345 rows, done in 2 min",
    ]


def test_what_does_not_move_has_no_time_left(clock, capsys):
    log = ProgressLog(clock=clock, interval_s=5.0)
    for _ in range(2):
        log(Progress("waiting", 0))
        log(Progress("compacting", 0, 40))
        clock.now += 5
    assert lines(capsys) == ["Waiting for another process to finish: 0", "Compacting: 0 of 40"]


def test_a_stage_may_come_twice(clock, capsys):
    log = ProgressLog(clock=clock)
    for _ in range(2):
        embed(log, clock, until=800, total=800)
        said = lines(capsys)
        assert len(said) == 2
        assert said[1].endswith("done in 1 min")


def test_a_terminal_gets_bars(clock, monkeypatch, capsys):
    screen = io.StringIO()
    monkeypatch.setattr(
        progress, "Console", lambda **_: Console(file=screen, force_terminal=True, width=120)
    )
    with drawn_progress(clock=clock) as on_progress:
        embed(on_progress, clock, until=1000, total=1000)
    assert "Embedding" in screen.getvalue()
    assert "1000/1000" in screen.getvalue()
    assert lines(capsys) == []


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.0, "0 s"),
        (59.4, "59 s"),
        (60.0, "1 min"),
        (3_599.0, "1 h 0 min"),
        (4_320.0, "1 h 12 min"),
        (90_000.0, "25 h 0 min"),
    ],
)
def test_durations_are_readable(seconds, shown):
    assert readable_duration(seconds) == shown


def test_the_interval_is_a_minute():
    assert LOG_INTERVAL_S == 60
