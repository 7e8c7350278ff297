"""`evaluate` and its sub-commands."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from forvalue_index.cli.options import (
    RESUMES,
    Command,
    data_options,
    index_argument,
    json_option,
    model_option,
    print_json,
)
from forvalue_index.cli.session import opened_index

if TYPE_CHECKING:
    from forvalue_index.evaluation.evidence import EvaluationData
    from forvalue_index.index import ValuationIndex


@click.group()
def evaluate() -> None:
    """Measure what the values of an index are worth, beside simple baselines."""


def _evaluation(limit_default: str = "all") -> Callable[[Command], Command]:
    """What the evaluations share: INDEX, DATA and its options, --limit, --model and --json."""
    limit = click.option(
        "--limit",
        type=int,
        help=f"How many training samples, drawn at random.  [default: {limit_default}]",
    )
    seed = click.option("--seed", type=int, default=0, show_default=True, help="Of what is drawn.")

    def decorated(command: Command) -> Command:
        for decorate in (json_option, model_option, seed, limit, data_options, index_argument):
            command = decorate(command)
        return command

    return decorated


exact_option = click.option(
    "--exact", is_flag=True, help="Exact scores as well, from the model and the texts."
)


@contextmanager
def _opened(
    index: Path,
    *,
    data: tuple[str, ...],
    reading: dict[str, Any],
    model: str | None,
    trust_remote_code: bool,
    **evaluation_options: Any,
) -> Iterator[tuple[ValuationIndex, EvaluationData]]:
    """The index, and what it is to be evaluated with."""
    with opened_index(index, model, trust_remote_code=trust_remote_code) as opened:
        from forvalue_index.evaluation.evidence import EvaluationData
        from forvalue_index.sources.data import Data

        yield opened, EvaluationData(Data(list(data), **reading), **evaluation_options)


@evaluate.command()
@_evaluation()
@exact_option
@click.option("--label", required=True, help="Field that names a sample's class.")
def retrieval(index: Path, as_json: bool, label: str, **options: Any) -> None:
    """Do values find the samples of INDEX of the same class as those of DATA?"""
    with _opened(index, **options) as (opened, wanted):
        from forvalue_index.evaluation.retrieval import evaluate_retrieval

        result = evaluate_retrieval(opened, wanted, label=label)
    from forvalue_index.cli.evaluation_display import print_retrieval
    from forvalue_index.reports.evaluation_documents import retrieval_document

    print_json(retrieval_document(result)) if as_json else print_retrieval(result)


@evaluate.command()
@_evaluation()
@exact_option
@click.option("--flag", required=True, help="Field that is true for the wrong samples of INDEX.")
@click.option("--label", help="Field that names a sample's class, to judge it by its own class.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to draw the detection curves to: .svg or .png.",
)
def mislabeled(
    index: Path, as_json: bool, flag: str, label: str | None, output: Path | None, **options: Any
) -> None:
    """Do low values find the samples of INDEX that are flagged as wrong? DATA is to be right."""
    with _opened(index, **options) as (opened, wanted):
        from forvalue_index.evaluation.mislabeled import evaluate_mislabeled

        result = evaluate_mislabeled(opened, wanted, flag=flag, label=label, output=output)
    from forvalue_index.cli.evaluation_display import print_mislabeled
    from forvalue_index.reports.evaluation_documents import mislabeled_document

    print_json(mislabeled_document(result)) if as_json else print_mislabeled(result)


@evaluate.command()
@_evaluation("400")
def fidelity(index: Path, as_json: bool, **options: Any) -> None:
    """How near are sketched scores of INDEX to exact ones?"""
    with _opened(index, **options) as (opened, wanted):
        from forvalue_index.evaluation.fidelity import evaluate_fidelity

        result = evaluate_fidelity(opened, wanted)
    from forvalue_index.cli.evaluation_display import print_fidelity
    from forvalue_index.reports.evaluation_documents import fidelity_document

    print_json(fidelity_document(result)) if as_json else print_fidelity(result)


@evaluate.command("tail-patch")
@_evaluation()
@exact_option
@click.option(
    "--top", type=int, default=10, show_default=True, help="How many samples of each kind."
)
@click.option(
    "--learning-rate", type=float, default=1e-5, show_default=True, help="Of AdamW's one step."
)
def tail_patch(index: Path, as_json: bool, top: int, learning_rate: float, **options: Any) -> None:
    """Does one training step on what is said to help make DATA likelier? The model is restored."""
    with _opened(index, **options) as (opened, wanted):
        from forvalue_index.evaluation.tail_patch import evaluate_tail_patch

        result = evaluate_tail_patch(opened, wanted, k=top, learning_rate=learning_rate)
    from forvalue_index.cli.evaluation_display import print_tail_patch
    from forvalue_index.reports.evaluation_documents import tail_patch_document

    print_json(tail_patch_document(result)) if as_json else print_tail_patch(result)


@evaluate.command()
@_evaluation()
@click.option("--subsets", type=int, default=32, show_default=True, help="How many halves.")
@click.option(
    "--epochs", type=int, default=4, show_default=True, help="Times that each sample is seen."
)
@click.option("--learning-rate", type=float, default=1e-4, show_default=True, help="Of AdamW.")
@click.option("--batch-samples", type=int, default=16, show_default=True, help="Samples a step.")
@click.option("--lora-rank", type=int, help="Train a LoRA of this rank.  [default: all weights]")
@click.option(
    "--runs",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where losses are kept, so that a stopped run goes on.  [default: INDEX/lds]",
)
def lds(index: Path, as_json: bool, subsets: int, runs: Path | None, **options: Any) -> None:
    """Does training on random halves of INDEX do what values foresee? Fine-tunes many times.

    Sums of values of each half are compared with the losses of DATA after training on it. Stop at
    any time: the same command goes on with the next half.
    """
    click.get_current_context().meta[RESUMES] = True
    names = ("epochs", "learning_rate", "batch_samples", "lora_rank")
    recipe_options = {name: options.pop(name) for name in names}
    with _opened(index, **options) as (opened, wanted):
        from forvalue_index.evaluation.retraining import evaluate_lds
        from forvalue_index.evaluation.training import Recipe

        recipe = Recipe(**recipe_options)
        result = evaluate_lds(opened, wanted, subsets=subsets, recipe=recipe, directory=runs)
    from forvalue_index.cli.evaluation_display import print_lds
    from forvalue_index.reports.evaluation_documents import lds_document

    print_json(lds_document(result)) if as_json else print_lds(result)
