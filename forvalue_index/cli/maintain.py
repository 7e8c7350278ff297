"""`remove`, `compact`, `check`, `tune` and `migrate`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from forvalue_index.cli.options import (
    index_argument,
    json_option,
    model_option,
    print_json,
    wait_option,
)
from forvalue_index.cli.session import opened_index
from forvalue_index.cli.terminal import counted
from forvalue_index.exceptions import UsageError
from forvalue_index.search.kinds import SEARCH_KINDS
from forvalue_index.settings import GEOMETRIES


@click.command()
@index_argument
@click.argument("samples", nargs=-1)
@click.option("--source", help="All samples of this source, as info names it.")
@click.option("--where", help="All samples that meet a condition, as for list.")
@click.option("--dry-run", is_flag=True, help="Say how many samples it would be, and stop.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@wait_option
@json_option
def remove(
    index: Path,
    samples: tuple[str, ...],
    source: str | None,
    where: str | None,
    dry_run: bool,
    yes: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Remove SAMPLES from INDEX, by key or @NUMBER, or all of a source or a condition.

    They no longer count. Added again they come back without a forward pass, until compact forgets
    them.
    """
    from forvalue_index.store.samples import open_samples

    with open_samples(index) as opened:
        matching = opened.count_chosen(samples, source=source, where=where)
        for name in opened.removed_already(samples) if matching < len(samples) else ():
            click.echo(f"{name}: the sample of this name is removed already.", err=True)
        if matching and not dry_run and not yes:
            _ask(f"Remove {matching:,} of {len(opened):,} samples from {index}?")
        removed = 0
        if matching and not dry_run:
            removed = opened.remove(
                samples,
                source=source,
                where=where,
                wait=wait,
                expected=None if yes else matching,
            )
    if as_json:
        print_json({"matching": matching, "removed": removed, "dry_run": dry_run})
    elif dry_run:
        click.echo(f"{counted(matching, 'sample')} would be removed.")
    else:
        click.echo(f"{counted(removed, 'sample')} removed.")


@click.command()
@index_argument
@wait_option
@json_option
def compact(index: Path, wait: bool, as_json: bool) -> None:
    """Merge small segments of INDEX, and forget removed samples. Readers are not disturbed."""
    from forvalue_index.reports.documents import compact_document

    with opened_index(index) as opened:
        report = opened.compact(wait=wait)
    if as_json:
        print_json(compact_document(report))
    else:
        click.echo(
            f"{counted(report.segments_before, 'segment')} became {report.segments_after:,}; "
            f"{report.dropped:,} removed samples were forgotten; "
            f"{report.bytes_before:,} bytes became {report.bytes_after:,}."
        )


@click.command()
@index_argument
@click.option(
    "--repair",
    is_flag=True,
    help="Embed lost rows again from the catalog's texts, delete files that it does not know.",
)
@click.option(
    "--labels",
    is_flag=True,
    help="Also name samples that earlier versions read or labelled otherwise. Loads the model.",
)
@model_option
@wait_option
@json_option
def check(
    index: Path,
    repair: bool,
    labels: bool,
    model: str | None,
    trust_remote_code: bool,
    wait: bool,
    as_json: bool,
) -> None:
    """Compare the catalog of INDEX, its segments and their checksums. Exit code 1: it is not sound.

    Every finding is named with its cure. Without --repair nothing is changed.
    """
    from forvalue_index.reports.documents import check_document

    trusted = trust_remote_code if repair or labels else None
    with opened_index(index, model, trust_remote_code=trusted) as opened:
        report = opened.check(repair=repair, labels=labels, wait=wait)
    if as_json:
        print_json(check_document(report))
    else:
        from forvalue_index.cli.index_display import print_check

        print_check(index, report)
    if not report.sound:
        sys.exit(1)


@click.command()
@index_argument
@wait_option
@json_option
def migrate(index: Path, wait: bool, as_json: bool) -> None:
    """Bring the catalog of INDEX, made by an older version, to this version's schema.

    Other indexes in the same PostgreSQL database come with it.
    """
    from forvalue_index.store.manifest import migrate_catalog

    before, after = migrate_catalog(index, wait=wait)
    if as_json:
        print_json({"before": before, "after": after})
    elif before == after:
        click.echo(f"{index} has schema {after} already.")
    else:
        click.echo(f"{index} had schema {before}, and has {after} now.")


@click.command()
@index_argument
@click.option(
    "--recall",
    type=float,
    default=0.999,
    show_default=True,
    help="The share of right answers to find, at the helpful and at the harmful end.",
)
@click.option("--geometry", type=click.Choice(GEOMETRIES), help="Which rows.  [default: the first]")
@click.option("--normalize", is_flag=True, help="Rows divided by their norms, as for cosines.")
@click.option(
    "--search", type=click.Choice(SEARCH_KINDS), help="What to tune.  [default: by the size]"
)
@json_option
def tune(index: Path, as_json: bool, **chosen: Any) -> None:
    """Measure how many candidates a search of INDEX needs; queries use as many from then on."""
    from forvalue_index.reports.documents import tune_document

    with opened_index(index) as opened:
        report = opened.tune(**chosen)
    if as_json:
        print_json(tune_document(report))
    else:
        from forvalue_index.cli.index_display import print_tuned

        print_tuned(index, report)
    if report.chosen is None:
        sys.exit(1)


def _somebody_is_there() -> bool:
    return sys.stdin.isatty()


def _ask(question: str) -> None:
    if not _somebody_is_there():
        raise UsageError("nobody is there to be asked; give --yes, or see with --dry-run")
    click.confirm(question, abort=True, err=True)
