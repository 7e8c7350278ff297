"""SmolLM2-135M-Instruct, end to end: the code of the README and of docs/, as printed."""

import doctest
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.csv
import pytest

ROOT = Path(__file__).parents[2]
MODEL = ROOT / ".cache" / "SmolLM2-135M-Instruct"

# A tenth of every class.
SOME = "key LIKE '%5'"

pytestmark = pytest.mark.real_model


def blocks(page):
    """The blocks of code on a page that are run: their languages and texts."""
    return re.findall(
        r"^```(console|python)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE
    )


README = dict(blocks(ROOT / "README.md"))
PAGES = {page.stem: blocks(page) for page in sorted((ROOT / "docs").glob("*.md")) if blocks(page)}


def steps(console):
    """The commands of a terminal session, each with what it shows of their output."""
    steps = []
    for line in console.splitlines(keepends=True):
        if line.startswith("$ "):
            steps.append((line[2:].rstrip(), ""))
        else:
            steps[-1] = (steps[-1][0], steps[-1][1] + line)
    return steps


def session():
    """The commands of the README's terminal session."""
    return [command for command, _ in steps(README["console"])]


def shows(printed, shown):
    """Whether a page shows what is printed; `...` stands for anything."""
    how = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    return not shown or doctest.OutputChecker().check_output(shown, printed, how)


def without_figures(text):
    """Scores differ by rounding, times by the machine, and numbers of samples by both."""
    return re.sub(r"\d(?:[\d,.]*\d)?", "#", text)


def run(command, cwd):
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=cwd,
        shell=isinstance(command, str),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PATH": path},
    )
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def model():
    """Converted once into the checkout's cache, as scripts/demo does."""
    run([sys.executable, str(ROOT / "scripts/convert_gguf.py"), str(MODEL)], ROOT)
    return MODEL


@pytest.fixture(scope="module")
def demo(model, tmp_path_factory):
    """A folder in which the README's session was run, with what each command printed."""
    top = tmp_path_factory.mktemp("checkout")
    (top / ".cache").symlink_to(model.parent)
    folder = top / "demo"
    folder.mkdir()
    return folder, {command: run(command, folder) for command in session()}


def test_the_demo_runs_the_session_of_the_readme():
    script = (ROOT / "scripts/demo").read_text()
    assert re.findall(r"^run '(forvalue .*)'$", script, re.MULTILINE) == session()


def test_the_session_prints_what_the_readme_shows(demo):
    _, printed = demo
    for command, shown in steps(README["console"]):
        here = without_figures(printed[command])
        assert shows(here, without_figures(shown)), (command, shown, printed[command])
    added = [printed[command] for command in printed if " add " in command]
    assert [re.match(r"(\d+) samples added of (\d+)", text).groups() for text in added] == [
        ("300", "300"),
        ("100", "400"),
    ]
    assert "300 were known" in added[1]
    assert "400 values written to values.csv" in "".join(printed.values())


def test_the_right_samples_help_and_others_hurt(demo):
    """The validation set asks for words in reverse order: the class of the most helpful ones."""
    folder, _ = demo
    command = "forvalue query index data/validation.jsonl --per-sample --json"
    result = json.loads(run(command, folder))
    assert result["searched"] == 400
    assert len(result["per_sample"]) == result["validation"]["samples"] == 10
    helpful, harmful = result["helpful"], result["harmful"]
    assert [hit["metadata"]["class"] for hit in helpful].count("reverse-words") >= 7
    assert all(hit["score"] > 3 * hit["stderr"] for hit in helpful)
    scores = [hit["score"] for hit in harmful]
    assert scores == sorted(scores)
    assert scores[0] < -2 * harmful[0]["stderr"]
    right = [h["metadata"].get("class") == "reverse-words" for h in harmful]
    flipped = [h["metadata"].get("flipped", False) for h in harmful]
    assert all(is_flipped for is_flipped, is_right in zip(flipped, right, strict=True) if is_right)

    values = pyarrow.csv.read_csv(folder / "values.csv").to_pylist()
    ranked = sorted(values, key=lambda row: -row["score"])
    assert [row["id"] for row in ranked[:10]] == [hit["id"] for hit in helpful]
    assert [row["id"] for row in ranked[:-11:-1]] == [hit["id"] for hit in harmful]


def test_the_python_of_the_readme_runs(demo):
    folder, _ = demo
    printed = run([sys.executable, "-c", README["python"]], folder)
    assert "reverse-words" in printed


@pytest.mark.parametrize("page", PAGES)
def test_the_code_of_a_page_runs(demo, page, tmp_path):
    """In a copy of the session's folder, one block after the other."""
    session_folder, _ = demo
    folder = tmp_path / "demo"
    shutil.copytree(session_folder, folder)
    (tmp_path / ".cache").symlink_to(MODEL.parent)
    for language, text in PAGES[page]:
        if language == "python":
            run([sys.executable, "-c", text], folder)
            continue
        for command, shown in steps(text):
            printed = run(command, folder)
            assert shows(printed, shown), (command, shown, printed)


def second_lines(folder, names, new):
    """The name of a file of every second line of others."""
    lines = [line for name in names for line in (folder / name).read_text().splitlines()]
    (folder / new).write_text("\n".join(lines[::2]))
    return new


@pytest.fixture(scope="module")
def fidelity(demo, thorough):
    """What `evaluate fidelity` says of an index of the session's data, by method and reference.

    With --thorough for all of them and 200 validation samples of two kinds, else for half of them
    and 50 validation samples.
    """
    folder, _ = demo
    data = "data/start.jsonl data/more.jsonl"
    validation = "data/sentences_validation.jsonl"
    if thorough:
        validation += " data/math_validation.jsonl"
    else:
        data = second_lines(folder, data.split(), "half.jsonl")
        validation = second_lines(folder, [validation], "half_validation.jsonl")
    run(f"forvalue init exact --model ../.cache/{MODEL.name} --geometry raw,fisher", folder)
    run(f"forvalue add exact {data}", folder)
    document = json.loads(run(f"forvalue evaluate fidelity exact {validation} --json", folder))
    return {(m["method"], m["reference"]): m for m in document["methods"]}


def test_sketched_scores_follow_exact_ones(fidelity):
    """The whole path from text to row against the full vocabulary, both ends."""
    raw = fidelity["for-value raw", "for-value raw"]
    assert raw["mean_rank_correlation"] >= 0.995
    assert abs(raw["error_over_stderr"] - 1) <= 0.2
    for name in ("for-value raw", "for-value fisher"):
        mine = fidelity[name, name]
        assert 0.93 <= mine["within_two_stderrs"] <= 0.98
        assert mine["top_reranked"] >= 0.99
        assert mine["bottom_reranked"] >= 0.9
        assert (
            mine["rank_correlation"]["value"] > fidelity["bm25", name]["rank_correlation"]["value"]
        )


def test_exact_scores_of_candidates_are_those_of_all_samples(demo, thorough):
    """`--rerank` finds what running everything through the model again finds."""
    folder, _ = demo
    candidates, where = (100, "") if thorough else (20, f'--where "{SOME}"')
    run(f"forvalue values index data/validation.jsonl -o exact.csv --exact {where}", folder)
    command = f"forvalue query index data/validation.jsonl --rerank {candidates} {where} --json"
    result = json.loads(run(command, folder))
    exact = {r["id"]: r["score"] for r in pyarrow.csv.read_csv(folder / "exact.csv").to_pylist()}
    for hits, sign in ((result["helpful"], 1), (result["harmful"], -1)):
        assert all(hit["exact"] and hit["stderr"] == 0 for hit in hits)
        best = sorted(exact, key=lambda id_: -sign * exact[id_])[:10]
        assert len({hit["id"] for hit in hits} & set(best)) >= 9
        for hit in hits:
            assert hit["score"] == pytest.approx(exact[hit["id"]], rel=1e-3, abs=1e-2)
    first = result["helpful"][0]
    page = folder / "why.html"
    command = f"forvalue explain index {first['key']} data/validation.jsonl -o {page} --json"
    explained = json.loads(run(command, folder))
    assert explained["score"] == pytest.approx(first["score"], rel=1e-4)
    assert sum(t["term"] for t in explained["tokens"]) == pytest.approx(
        explained["score"], rel=1e-5
    )
    assert "<html" in page.read_text()
