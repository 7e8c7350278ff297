"""`info`, `show` and `list`: reading the catalog, without a model."""

from __future__ import annotations

from pathlib import Path

import click

from forvalue_index.cli.options import index_argument, json_option, print_json


@click.command()
@index_argument
@json_option
def info(index: Path, as_json: bool) -> None:
    """Say what INDEX holds and what it was made with."""
    from forvalue_index.reports.documents import info_document
    from forvalue_index.store.samples import open_samples

    with open_samples(index) as opened, opened.snapshot() as snapshot:
        document = info_document(opened.manifest, snapshot.summary(), version=snapshot.version())
    if as_json:
        print_json(document)
    else:
        from forvalue_index.cli.index_display import print_info

        print_info(index, document)


@click.command()
@index_argument
@click.argument("sample")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write an HTML page with its images as well.",
)
@json_option
def show(index: Path, sample: str, output: Path | None, as_json: bool) -> None:
    """Show one sample of INDEX whole. SAMPLE is its key or @NUMBER."""
    from forvalue_index.reports.documents import sample_document
    from forvalue_index.reports.pages import refuse_page, sample_page, write_page
    from forvalue_index.store.samples import open_samples

    if output is not None:
        refuse_page(output)
    with open_samples(index) as opened:
        stored = opened.sample(sample)
        if output is not None:
            write_page(output, sample_page(stored, opened.pixels))
    if as_json:
        print_json(sample_document(stored))
    else:
        from forvalue_index.cli.display import print_sample

        print_sample(stored, output)


@click.command("list")
@index_argument
@click.option("--where", help="Filter, as in: source = 'a.jsonl' AND metadata.topic = 'law'.")
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@click.option("--offset", type=click.IntRange(min=0), default=0, help="How many to leave out.")
@json_option
def list_samples(index: Path, where: str | None, limit: int, offset: int, as_json: bool) -> None:
    """List samples of INDEX in order of their numbers."""
    from forvalue_index.reports.documents import sample_document
    from forvalue_index.store.samples import open_samples

    with open_samples(index) as opened, opened.snapshot() as snapshot:
        samples = snapshot.list_samples(where, limit=limit, offset=offset)
        matching = snapshot.count(where)
    if as_json:
        print_json({"matching": matching, "samples": [sample_document(s) for s in samples]})
    else:
        from forvalue_index.cli.display import print_list

        print_list(samples, matching)
