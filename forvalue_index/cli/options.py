"""Arguments and options that several commands share."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import click

from forvalue_index.settings import GEOMETRIES

Command = Callable[..., Any]
# Under this name a command's context says that it goes on where it was stopped.
RESUMES = "forvalue_index.resumes"

index_argument = click.argument("index", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
trust_option = click.option(
    "--trust-remote-code", is_flag=True, help="Let the model run code that comes with it."
)
wait_option = click.option(
    "--wait", is_flag=True, help="Where another process writes to INDEX, wait for it to finish."
)


def model_option(command: Command) -> Command:
    """--model and --trust-remote-code, for commands that load the model of an index."""
    moved = click.option(
        "--model", help="Where the model lies now, if it has moved; it must be the same model."
    )
    return moved(trust_option(command))


def scoring_options(command: Command) -> Command:
    """--geometry and --normalize."""
    for decorate in (
        click.option("--normalize", is_flag=True, help="Cosines: divide by the norms of both."),
        click.option(
            "--geometry",
            type=click.Choice(GEOMETRIES),
            help="What inner products are taken in.  [default: the first of INDEX]",
        ),
    ):
        command = decorate(command)
    return command


def reading_options(command: Command) -> Command:
    """--columns and --media-root, which a command takes as the options `reading` of what reads."""

    @wraps(command)
    def read(*arguments: Any, columns: str | None, media_root: Path | None, **options: Any) -> Any:
        from forvalue_index.sources.columns import parse_columns

        mapping = None if columns is None else parse_columns(columns)
        reading = options.pop("reading", {}) | {"columns": mapping, "media_root": media_root}
        return command(*arguments, reading=reading, **options)

    for decorate in (
        click.option(
            "--media-root",
            type=click.Path(path_type=Path),
            help="Where paths of images count from, and stay in.  [default: beside the data]",
        ),
        click.option(
            "--columns", help="Which columns to read, as in prompt=Q,response=A; else recognised."
        ),
    ):
        read = decorate(read)
    return read


def data_options(command: Command) -> Command:
    """DATA..., and --columns, --media-root and --on-bad as the options `reading`."""
    reads = reading_options(command)

    @wraps(command)
    def read(*arguments: Any, on_bad: str, **options: Any) -> Any:
        return reads(*arguments, reading={"on_bad": on_bad}, **options)

    for decorate in (
        click.option(
            "--on-bad",
            type=click.Choice(["fail", "skip"]),
            default="fail",
            show_default=True,
            help="What to do about a row of DATA that is no usable sample.",
        ),
        click.argument("data", nargs=-1, required=True),
    ):
        read = decorate(read)
    return read


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False))
