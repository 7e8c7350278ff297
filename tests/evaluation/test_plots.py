"""Curves as files: what is in them, and what is refused before there is anything to draw."""

import re
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from forvalue_index.evaluation.plots import draw_detection, refuse_undrawable
from forvalue_index.evaluation.results import Detection, Estimate, Evaluated, MislabeledResult
from forvalue_index.exceptions import UsageError
from forvalue_index.valuation.exports import ExportError


@pytest.fixture
def result():
    curve = (0.0, 0.7, 1.0)
    return MislabeledResult(
        evaluated=Evaluated("runs/a", "f", 1, "response", 40, 5, {}, ()),
        flag="$wrong_$",
        label=None,
        flagged=10,
        base_rate=0.25,
        inspected=(0.1,),
        curve_inspected=(0.0, 0.5, 1.0),
        methods=(
            Detection("for-value", "low", Estimate(0.9, 0.8, 0.95), (0.3,), curve),
            Detection("for-value, by class", "low", Estimate(0.7, 0.5, 0.9), (0.3,), curve),
            Detection("training loss", "high", Estimate(0.6, None, None), (0.2,), curve),
        ),
        remark="",
    )


def test_an_svg_says_what_it_shows(result, tmp_path):
    path = tmp_path / "curve.svg"
    draw_detection(result, path)
    texts = {"".join(e.itertext()).strip() for e in ET.parse(path).iter() if e.tag.endswith("text")}
    assert {
        "for-value (AUC 0.900)",
        "for-value, by class (AUC 0.700)",
        "training loss (AUC 0.600)",
        "inspecting at random",
        "inspecting only flagged ones",
        "training samples inspected, the most suspicious first (%)",
        "samples with $wrong_$ found (%)",
        "10 of 40 samples are flagged (25.0%)",
    } <= texts
    assert [p.name for p in tmp_path.iterdir()] == ["curve.svg"]


def test_equal_results_give_equal_files(result, tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        draw_detection(result, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_a_png_is_a_picture(result, tmp_path):
    from matplotlib import image

    path = tmp_path / "curve.PNG"
    draw_detection(result, path)
    pixels = image.imread(path)
    assert pixels.shape == (750, 1500, 4)
    assert len(np.unique(pixels.reshape(-1, 4), axis=0)) > 20


def test_a_line_goes_through_its_points(result, tmp_path):
    """The first method's path: 0 at the left, 1 at the right, and above the diagonal between."""
    path = tmp_path / "curve.svg"
    draw_detection(result, path)
    drawn = re.findall(r'd="(M [^"]*)"[^>]*style="fill: none; stroke: #1f77b4', path.read_text())
    points = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", drawn[0]), dtype=float)
    assert len(points) == 3
    (left, bottom), (middle, high), (right, top) = points
    assert middle == pytest.approx((left + right) / 2)
    assert (bottom - high) / (bottom - top) == pytest.approx(0.7, abs=1e-3)


def test_a_method_has_a_colour_and_its_ways_have_styles(result, tmp_path):
    path = tmp_path / "curve.svg"
    draw_detection(result, path)
    drawn = re.findall(r'style="fill: none; (?:stroke-dasharray: [^;]*; )?[^"]*"', path.read_text())
    blue, orange = ([s for s in drawn if colour in s] for colour in ("#1f77b4", "#ff7f0e"))
    # Each line stands in the axes and in the legend.
    assert (len(blue), len(orange)) == (4, 2)
    assert sum("dasharray" in style for style in blue) == 2
    assert not any("dasharray" in style for style in orange)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("curve.pdf", r"curve\.pdf ends in \.pdf; use one of \.svg, \.png"),
        ("curve", "ends in no suffix; use one of"),
        ("none/curve.svg", "none is not a directory; create it, or write elsewhere"),
    ],
)
def test_bad_paths_are_refused(result, tmp_path, name, message):
    for draw in (refuse_undrawable, lambda path: draw_detection(result, path)):
        with pytest.raises(UsageError, match=message):
            draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_what_lies_in_the_way_is_said(result, tmp_path):
    (tmp_path / "curve.svg").mkdir()
    with pytest.raises(ExportError, match=r"curve\.svg cannot be written \(.*irectory"):
        draw_detection(result, tmp_path / "curve.svg")
    assert [p.name for p in tmp_path.iterdir()] == ["curve.svg"]
