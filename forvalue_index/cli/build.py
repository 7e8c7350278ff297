"""`init`, `calibrate` and `add`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from forvalue_index.cli.options import (
    data_options,
    index_argument,
    json_option,
    model_option,
    print_json,
    reading_options,
    settings_options,
    wait_option,
)
from forvalue_index.cli.session import opened_index
from forvalue_index.settings import DEFAULT_CATALOG


@click.command()
@index_argument
@settings_options("model", "dtype")
@click.option(
    "--catalog",
    default=DEFAULT_CATALOG,
    show_default=True,
    help="sqlite, or postgresql+psycopg://USER@HOST/NAME.",
)
@settings_options("trust_remote_code", "damping")
@click.option(
    "--calibration",
    help="Data to calibrate on, or an index whose calibration to take.  [default: the first add]",
)
@settings_options("max_label_tokens")
@json_option
def init(index: Path, as_json: bool, calibration: str | None, **settings: Any) -> None:
    """Create an empty index in directory INDEX. All settings are frozen."""
    from forvalue_index.cli.progress import drawn_progress
    from forvalue_index.index import ValuationIndex
    from forvalue_index.reports.documents import info_document

    with (
        drawn_progress() as on_progress,
        ValuationIndex.create(index, on_progress=on_progress, **settings) as created,
    ):
        if calibration is not None:
            if created.calibration() is None:
                created.calibrate(calibration)
            else:
                click.echo(f"{index} is calibrated already: --calibration is not used", err=True)
        document = info_document(created.manifest, created.info(), version=created.version)
    if as_json:
        print_json(document)
    else:
        from forvalue_index.cli.index_display import print_created

        print_created(index, document)


@click.command()
@index_argument
@click.argument("data", nargs=-1)
@reading_options
@model_option
@wait_option
@json_option
def calibrate(
    index: Path,
    data: tuple[str, ...],
    reading: dict[str, Any],
    model: str | None,
    trust_remote_code: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Show what INDEX is calibrated with; with DATA, calibrate an INDEX that is still empty.

    DATA are files as for `add`, or the directory of an index made with the same options, whose
    calibration is taken over.
    """
    from forvalue_index.reports.documents import calibration_document

    trusted = trust_remote_code if data else None
    with opened_index(index, model, trust_remote_code=trusted) as opened:
        chosen = data[0] if len(data) == 1 else list(data)
        summary = opened.calibrate(chosen, wait=wait, **reading) if data else opened.calibration()
    if as_json:
        print_json(calibration_document(summary))
    else:
        from forvalue_index.cli.index_display import print_calibration

        print_calibration(index, summary)


@click.command()
@index_argument
@data_options
@click.option(
    "--relabel",
    is_flag=True,
    help="Embed samples anew that are read or labelled otherwise now, see check --labels.",
)
@model_option
@wait_option
@json_option
def add(
    index: Path,
    data: tuple[str, ...],
    reading: dict[str, Any],
    relabel: bool,
    model: str | None,
    trust_remote_code: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Embed the samples of DATA that INDEX does not hold yet.

    DATA are files of JSONL, JSON, CSV, TSV, Parquet, Arrow, Feather or WebDataset (.tar), folders
    and globs of them, folders saved by the datasets library, addresses (https://, s3://, hf://),
    OWNER/NAME for a data set of the Hugging Face hub, or - for JSONL on standard input. Stop at any
    time: the same command goes on where it stopped. Samples that were removed come back; known ones
    get the metadata of their rows.
    """
    from forvalue_index.reports.documents import add_document

    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        report = opened.add(list(data), wait=wait, relabel=relabel, **reading)
    if as_json:
        print_json(add_document(report))
    else:
        from forvalue_index.cli.index_display import print_added

        print_added(report)
