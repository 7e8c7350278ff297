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
    trust_option,
    wait_option,
)
from forvalue_index.cli.session import opened_index
from forvalue_index.settings import (
    DEFAULT_CATALOG,
    DEFAULT_DAMPING,
    DEFAULT_DIM,
    DEFAULT_GEOMETRY,
    DTYPES,
    LABELS,
    MEDIA,
    PAYLOADS,
    ROW_DTYPES,
    TEMPLATES,
)


@click.command()
@index_argument
@click.option("--model", required=True, help="Hub id, local directory or GGUF file.")
@click.option("--adapter", help="PEFT adapter to merge into the model.")
@click.option("--revision", help="Revision of a model on the hub.")
@click.option(
    "--dim", type=int, default=DEFAULT_DIM, show_default=True, help="Floats a row: more is exacter."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sketch.")
@click.option(
    "--labels",
    type=click.Choice(LABELS),
    default="response",
    show_default=True,
    help="Which tokens are scored.",
)
@click.option(
    "--template",
    type=click.Choice(TEMPLATES),
    default="auto",
    show_default=True,
    help="Chat template, or plain prompt + response; auto: the template where there is one.",
)
@click.option("--max-length", type=int, help="Tokens a sample, at most.  [default: the context]")
@click.option(
    "--row-dtype",
    type=click.Choice(ROW_DTYPES),
    default="bfloat16",
    show_default=True,
    help="Precision of stored rows; int8 has one scale a row, and half the bytes.",
)
@click.option(
    "--dtype",
    type=click.Choice(DTYPES),
    default="auto",
    show_default=True,
    help="Precision of the model; auto: bfloat16 on a GPU, float32 on a CPU.",
)
@click.option(
    "--catalog",
    default=DEFAULT_CATALOG,
    show_default=True,
    help="sqlite, or postgresql+psycopg://USER@HOST/NAME.",
)
@trust_option
@click.option(
    "--payload",
    type=click.Choice(PAYLOADS),
    default="catalog",
    show_default=True,
    help="Keep the texts, or refer to them: files and offsets, below the directory of INDEX.",
)
@click.option(
    "--media",
    type=click.Choice(MEDIA),
    default="reference",
    show_default=True,
    help="Refer to the files of images, or keep copies in INDEX.",
)
@click.option(
    "--geometry",
    default=DEFAULT_GEOMETRY,
    show_default=True,
    help="What rows are made of, one or several: raw, centered, fisher, kfac, with commas between.",
)
@click.option(
    "--damping",
    type=float,
    default=DEFAULT_DAMPING,
    show_default=True,
    help="Of fisher and kfac, in units of the mean of what it is added to.",
)
@click.option(
    "--calibration",
    help="Data to calibrate on, or an index whose calibration to take.  [default: the first add]",
)
@click.option("--max-label-tokens", type=int, help="Score the first labels of a sample alone.")
@click.option("--hardest", type=float, help="Score this share of labels alone: of highest loss.")
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
        found = opened.calibrate(chosen, wait=wait, **reading) if data else opened.calibration()
    if as_json:
        print_json(calibration_document(found))
    else:
        from forvalue_index.cli.index_display import print_calibration

        print_calibration(index, found)


@click.command()
@index_argument
@data_options
@model_option
@wait_option
@json_option
def add(
    index: Path,
    data: tuple[str, ...],
    reading: dict[str, Any],
    model: str | None,
    trust_remote_code: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Embed the samples of DATA that INDEX does not hold yet.

    DATA are JSONL, JSON, CSV or Parquet files, saved datasets, globs, or - for JSONL on standard
    input. Stop at any time: the same command goes on where it stopped. Samples that were removed
    come back; known ones get the metadata of their rows.
    """
    from forvalue_index.reports.documents import add_document

    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        report = opened.add(list(data), wait=wait, **reading)
    if as_json:
        print_json(add_document(report))
    else:
        from forvalue_index.cli.index_display import print_added

        print_added(report)
