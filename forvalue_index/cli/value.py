"""`query` and `values`."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli.options import (
    columns_of,
    data_options,
    index_argument,
    json_option,
    model_option,
    print_json,
)
from forvalue_index.cli.session import opened_index


@click.command()
@index_argument
@data_options
@click.option("--top", type=int, default=10, show_default=True, help="How many helpful samples.")
@click.option("--bottom", type=int, help="How many harmful samples.  [default: as --top]")
@click.option("--per-sample", is_flag=True, help="Answer each validation sample alone, too.")
@model_option
@json_option
def query(
    index: Path,
    data: tuple[str, ...],
    columns: str | None,
    on_bad: str,
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
    top: int,
    bottom: int | None,
    per_sample: bool,
) -> None:
    """Show the samples of INDEX that helped the validation set DATA most, and hurt it most."""
    mapping = columns_of(columns)
    from forvalue_index.reports import query_document

    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        result = opened.query(
            list(data),
            top=top,
            bottom=bottom,
            per_sample=per_sample,
            columns=mapping,
            on_bad=on_bad,
        )
    if as_json:
        print_json(query_document(result))
    else:
        from forvalue_index.cli.display import print_query

        print_query(result)


@click.command()
@index_argument
@data_options
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    help="File to write: .parquet, .csv or .jsonl.",
)
@model_option
@json_option
def values(
    index: Path,
    data: tuple[str, ...],
    columns: str | None,
    on_bad: str,
    output: Path,
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
) -> None:
    """Write the score of every sample of INDEX for the validation set DATA to a file."""
    mapping = columns_of(columns)
    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        scored = opened.values(list(data), output=output, columns=mapping, on_bad=on_bad)
    if as_json:
        print_json({"output": str(output), "samples": len(scored.ids)})
    else:
        click.echo(f"{len(scored.ids):,} values written to {output}")
