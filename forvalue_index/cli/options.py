"""Arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import wraps
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_type_hints

import click

from forvalue_index.cli.terminal import json_text
from forvalue_index.settings import GEOMETRIES, ON_BAD, Settings

Command = Callable[..., Any]
# Under this name a command's context says that it goes on where it was stopped.
RESUMES = "forvalue_index.resumes"
SETTING_TYPES = get_type_hints(Settings)

index_argument = click.argument("index", type=click.Path(path_type=Path))
json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
wait_option = click.option(
    "--wait", is_flag=True, help="Where another process writes to INDEX, wait for it to finish."
)


def settings_options(first: str, last: str | None = None) -> Callable[[Command], Command]:
    """The options of the fields of Settings from one to another, or to the end, in their order."""
    names = [field.name for field in fields(Settings)]
    end = len(names) if last is None else names.index(last) + 1
    chosen = fields(Settings)[names.index(first) : end]

    def decorated(command: Command) -> Command:
        for field in reversed(chosen):
            command = _setting_option(field)(command)
        return command

    return decorated


def _setting_option(field: Field[Any]) -> Callable[[Command], Command]:
    """A field without a default is required; None is a default that is not shown."""
    name, words = "--" + field.name.replace("_", "-"), field.metadata["help"]
    if field.default is MISSING:
        return click.option(name, required=True, help=words)
    if field.default is False:
        return click.option(name, is_flag=True, help=words)
    choices = field.metadata.get("choices")
    kind = click.Choice(choices) if choices else _type_of(field)
    return click.option(name, type=kind, default=field.default, show_default=True, help=words)


def _type_of(field: Field[Any]) -> Any:
    """The type of a field, without None."""
    hint = SETTING_TYPES[field.name]
    return next(kind for kind in get_args(hint) or (hint,) if kind is not NoneType)


trust_option = settings_options("trust_remote_code", "trust_remote_code")


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
    """How rows are read, which a command takes as the options `reading` of what reads."""

    @wraps(command)
    def read(*arguments: Any, columns: str | None, ignore: str | None, **options: Any) -> Any:
        from forvalue_index.sources.columns import parse_columns

        mapping = None if columns is None else parse_columns(columns)
        said = {"columns": mapping, "ignore": ignore or ()}
        chosen = {name: options.pop(name) for name in ("media_root", "split", "config")}
        reading = options.pop("reading", {}) | said | chosen
        return command(*arguments, reading=reading, **options)

    for decorate in (
        click.option("--config", help="Which configuration of a data set of the Hugging Face hub."),
        click.option("--split", help="Which split, where DATA has several, as in train."),
        click.option(
            "--media-root",
            type=click.Path(path_type=Path),
            help="Where paths of images count from, and stay in.  [default: beside the data]",
        ),
        click.option(
            "--ignore",
            help="Columns that are metadata alone, and fields of turns to leave out: tools,name.",
        ),
        click.option(
            "--columns",
            help="Which columns to read, as in prompt=Q,response=A, or id= for no id; else "
            "recognised.",
        ),
    ):
        read = decorate(read)
    return read


def data_options(command: Command) -> Command:
    """DATA..., --on-bad and those of `reading_options`, as the options `reading`."""
    reads = reading_options(command)

    @wraps(command)
    def read(*arguments: Any, on_bad: str, **options: Any) -> Any:
        return reads(*arguments, reading={"on_bad": on_bad}, **options)

    for decorate in (
        click.option(
            "--on-bad",
            type=click.Choice(ON_BAD),
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
    click.echo(json_text(document))
