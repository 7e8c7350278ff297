"""`make-demo-data`."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, file_okay=False))
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
def make_demo_data(directory: Path, seed: int) -> None:
    """Write small data sets with known answers to DIRECTORY, to try the other commands on.

    Sentence transformations and arithmetic, ten classes each, after the influential-data benchmark
    of DataInf (arXiv 2310.00902); some of the responses are swapped on purpose.
    """
    from forvalue_index.evaluation.demo_data import write_demo_data

    for path in write_demo_data(directory, seed):
        click.echo(path)
