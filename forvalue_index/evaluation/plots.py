"""Drawings of results, as SVG or PNG by suffix. The home of Matplotlib."""

from __future__ import annotations

import os
from pathlib import Path

from forvalue_index.evaluation.results import MislabeledResult
from forvalue_index.exceptions import UsageError, evaluation_extra
from forvalue_index.store.durable import replacing
from forvalue_index.valuation.exports import unwritable

SUFFIXES = (".svg", ".png")
SIZE_INCHES = (10.0, 5.0)
STYLES = ("-", "--", "-.")
DOTS_PER_INCH = 150


def refuse_undrawable(path: Path) -> None:
    """Raise what drawing to a path would, as far as it shows before there is anything to draw.

    Raises:
        UsageError: the suffix is unknown, or the directory does not exist.
        ExportError: the directory cannot be written to.
        MissingDependencyError: Matplotlib is not installed.
    """
    if path.suffix.lower() not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise UsageError(f"{path} ends in {path.suffix or 'no suffix'}; use one of {known}")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory; create it, or write elsewhere")
    if not os.access(path.parent, os.W_OK):
        raise unwritable(path, "the directory is read-only")
    with evaluation_extra():
        import matplotlib  # noqa: F401


def draw_detection(result: MislabeledResult, path: Path) -> None:
    """Draw share of flagged samples found against share inspected, a line for each method.

    The file appears under its name when it is whole. Raises as `refuse_undrawable` does.
    """
    refuse_undrawable(path)
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.plot([0, 100], [0, 100], color="grey", linestyle=":", label="inspecting at random")
    axes.plot(
        [0, 100 * result.base_rate, 100],
        [0, 100, 100],
        color="grey",
        linestyle=(0, (1, 4)),
        label="inspecting only flagged ones",
    )
    # What a method is called before ", by ..." has a colour, and the way it is read a style.
    names = [method.method.partition(", by ")[::2] for method in result.methods]
    colours, ways = (list(dict.fromkeys(part)) for part in zip(*names, strict=True))
    for method, (name, way) in zip(result.methods, names, strict=True):
        axes.plot(
            [100 * share for share in result.curve_inspected],
            [100 * share for share in method.curve],
            color=f"C{colours.index(name)}",
            linestyle=STYLES[ways.index(way) % len(STYLES)],
            label=f"{method.method} (AUC {method.auc.value:.3f})",
        )
    axes.set(xlim=(0, 100), ylim=(0, 102))
    axes.set_xlabel("training samples inspected, the most suspicious first (%)")
    # Dollar signs in a field's name are no formula.
    axes.set_ylabel(f"samples with {result.flag} found (%)", parse_math=False)
    axes.set_title(
        f"{result.flagged:,} of {result.evaluated.training_samples:,} samples are flagged "
        f"({result.base_rate:.1%})"
    )
    axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    # A salt and no date: equal results give equal files.
    reproducibly = matplotlib.rc_context({"svg.hashsalt": "forvalue", "svg.fonttype": "none"})
    try:
        with reproducibly, replacing(path) as partial:
            figure.savefig(
                partial,
                format=path.suffix.lower()[1:],
                dpi=DOTS_PER_INCH,
                metadata={"Date": None} if path.suffix.lower() == ".svg" else None,
            )
    except OSError as error:
        raise unwritable(path, error.strerror or str(error)) from error
