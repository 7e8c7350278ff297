"""`query`, `values` and `explain`."""

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
    scoring_options,
)
from forvalue_index.cli.session import opened_index
from forvalue_index.search.kinds import SEARCH_KINDS


@click.command()
@index_argument
@data_options
@click.option("--top", type=int, default=10, show_default=True, help="How many helpful samples.")
@click.option("--bottom", type=int, help="How many harmful samples.  [default: as --top]")
@click.option("--per-sample", is_flag=True, help="Answer each validation sample alone, too.")
@click.option("--rerank", type=int, help="Score so many candidates from either end exactly.")
@scoring_options
@click.option("--whiten", is_flag=True, help="Let directions count less that all rows share.")
@click.option("--where", help="Only samples that meet this, as in: source = 'a.jsonl'.")
@click.option(
    "--search", type=click.Choice(SEARCH_KINDS), help="What finds candidates.  [default: by size]"
)
@model_option
@json_option
def query(
    index: Path,
    data: tuple[str, ...],
    reading: dict[str, Any],
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
    top: int,
    bottom: int | None,
    per_sample: bool,
    rerank: int | None,
    **options: Any,
) -> None:
    """Show the samples of INDEX that helped the validation set DATA most, and hurt it most."""
    from forvalue_index.reports.documents import query_document

    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        result = opened.query(
            list(data),
            top=top,
            bottom=bottom,
            per_sample=per_sample,
            rerank=rerank,
            **reading,
            **options,
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
@click.option("--exact", is_flag=True, help="Run all samples through the model again: no sketch.")
@scoring_options
@click.option("--whiten", is_flag=True, help="Let directions count less that all rows share.")
@click.option("--where", help="Only samples that meet this, as for query.")
@model_option
@json_option
def values(
    index: Path,
    data: tuple[str, ...],
    reading: dict[str, Any],
    output: Path,
    exact: bool,
    where: str | None,
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **scoring: Any,
) -> None:
    """Write the score of every sample of INDEX for the validation set DATA to a file."""
    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        scored = opened.values(
            list(data),
            output=output,
            exact=exact,
            where=where,
            **reading,
            **scoring,
        )
    if as_json:
        print_json({"output": str(output), "samples": len(scored.ids)})
    else:
        click.echo(f"{len(scored.ids):,} values written to {output}")


@click.command()
@index_argument
@click.argument("sample")
@data_options
@click.option("--validation-tokens", is_flag=True, help="Split the score over DATA's tokens, too.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page as well.",
)
@scoring_options
@model_option
@json_option
def explain(
    index: Path,
    sample: str,
    data: tuple[str, ...],
    reading: dict[str, Any],
    validation_tokens: bool,
    output: Path | None,
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
    **scoring: Any,
) -> None:
    """Show which tokens of SAMPLE, by key or @NUMBER, carry its exact score for DATA."""
    from forvalue_index.reports.documents import explanation_document
    from forvalue_index.reports.pages import explanation_page, refuse_page, write_page

    if output is not None:
        refuse_page(output)
    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        explanation = opened.explain(
            sample,
            list(data),
            validation_tokens=validation_tokens,
            **reading,
            **scoring,
        )
        if output is not None:
            write_page(output, explanation_page(explanation, opened.storage.media.open))
    if as_json:
        print_json(explanation_document(explanation))
    else:
        from forvalue_index.cli.explanation import print_explanation

        print_explanation(explanation, output)
