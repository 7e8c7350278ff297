"""`evaluate` and its sub-commands."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli.options import (
    Command,
    columns_of,
    data_options,
    index_argument,
    json_option,
    model_option,
    print_json,
)
from forvalue_index.cli.session import opened_index

limit_option = click.option(
    "--limit", type=int, help="How many training samples, drawn at random.  [default: all]"
)


@click.group()
def evaluate() -> None:
    """Measure what the values of an index are worth, beside simple baselines."""


def _evaluation(command: Command) -> Command:
    """What the evaluations share: INDEX, DATA and its options, --limit, --model and --json."""
    for decorate in (json_option, model_option, limit_option, data_options, index_argument):
        command = decorate(command)
    return command


@evaluate.command()
@_evaluation
@click.option("--label", required=True, help="Field that names a sample's class.")
def retrieval(
    index: Path,
    data: tuple[str, ...],
    columns: str | None,
    on_bad: str,
    limit: int | None,
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
    label: str,
) -> None:
    """Do values find the samples of INDEX of the same class as those of DATA?"""
    mapping = columns_of(columns)
    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        from forvalue_index.evaluation.evidence import EvaluationData
        from forvalue_index.evaluation.retrieval import evaluate_retrieval

        wanted = EvaluationData(list(data), mapping, on_bad, limit)
        result = evaluate_retrieval(opened, wanted, label=label)
    if as_json:
        from forvalue_index.evaluation_reports import retrieval_document

        print_json(retrieval_document(result))
    else:
        from forvalue_index.cli.evaluation_display import print_retrieval

        print_retrieval(result)


@evaluate.command()
@_evaluation
@click.option("--flag", required=True, help="Field that is true for the wrong samples of INDEX.")
@click.option("--label", help="Field that names a sample's class, to judge it by its own class.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to draw the detection curves to: .svg or .png.",
)
def mislabeled(
    index: Path,
    data: tuple[str, ...],
    columns: str | None,
    on_bad: str,
    limit: int | None,
    model: str | None,
    trust_remote_code: bool,
    as_json: bool,
    flag: str,
    label: str | None,
    output: Path | None,
) -> None:
    """Do low values find the samples of INDEX that are flagged as wrong? DATA is to be right."""
    mapping = columns_of(columns)
    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        from forvalue_index.evaluation.evidence import EvaluationData
        from forvalue_index.evaluation.mislabeled import evaluate_mislabeled

        wanted = EvaluationData(list(data), mapping, on_bad, limit)
        result = evaluate_mislabeled(opened, wanted, flag=flag, label=label, output=output)
    if as_json:
        from forvalue_index.evaluation_reports import mislabeled_document

        print_json(mislabeled_document(result))
    else:
        from forvalue_index.cli.evaluation_display import print_mislabeled

        print_mislabeled(result)
