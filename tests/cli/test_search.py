"""`query --where --search`, `values --where` and `tune` through the command line."""

import csv
import json

import pytest
from commands import document, refused, run
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.search import coded, ranking, tuning

pytest_plugins = ("tiny",)

N = 60


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir):
    """An index of two sources, of which one sample is removed, and a validation set."""
    folder = tmp_path_factory.mktemp("search")
    document("init", folder / "index", "--model", model_dir, "--dim", 256)
    first = write_jsonl(folder / "a.jsonl", rows(N // 2))
    second = write_jsonl(folder / "b.jsonl", rows(N // 2, seed=1, prefix="s"))
    document("add", folder / "index", first, second)
    document("remove", folder / "index", "r3", "--yes")
    write_jsonl(folder / "v.jsonl", rows(3, seed=2, prefix="v"))
    return folder


@pytest.fixture(autouse=True)
def scans_little(monkeypatch):
    monkeypatch.setattr(ranking, "SCANNED", 4)
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 30)


def asked(place, *options, top=5):
    return document("query", place / "index", place / "v.jsonl", "--top", top, *options)


def keys(hits):
    return [(hit["key"], pytest.approx(hit["score"], rel=1e-5)) for hit in hits]


def test_kinds_agree(place):
    flat = asked(place)
    assert (flat["search"], flat["where"], flat["searched"]) == ("flat", None, N - 1)
    coded_too = asked(place, "--search", "rabitq")
    assert coded_too["search"] == "rabitq"
    assert keys(coded_too["helpful"]) == keys(flat["helpful"])
    assert keys(coded_too["harmful"]) == keys(flat["harmful"])
    assert [hit["stderr"] for hit in coded_too["helpful"]] == pytest.approx(
        [hit["stderr"] for hit in flat["helpful"]], rel=1e-5
    )


@pytest.mark.parametrize("kind", ["flat", "rabitq"])
def test_only_samples_that_meet_a_condition_are_searched(place, kind):
    source = str(place / "b.jsonl")
    where = f"source = '{source}'"
    found = asked(place, "--where", where, "--search", kind, top=N)
    assert (found["where"], found["searched"]) == (where, N // 2)
    everything = asked(place, top=N)
    for end in ("helpful", "harmful"):
        expected = [hit for hit in everything[end] if hit["source"] == source]
        assert keys(found[end]) == keys(expected)
    reranked = asked(place, "--where", where, "--search", kind, "--rerank", 40)
    assert {hit["source"] for hit in reranked["helpful"] + reranked["harmful"]} == {source}
    assert f"--rerank 40: --where leaves {N // 2} samples, so all were taken" in str(
        reranked["warnings"]
    )


def test_no_sample_meets_the_condition(place):
    found = asked(place, "--where", "source = 'x'")
    assert (found["helpful"], found["harmful"], found["searched"]) == ([], [], 0)
    assert found["warnings"] == ["no sample meets --where \"source = 'x'\""]


def test_values_of_samples_that_meet_a_condition(place, tmp_path):
    source = str(place / "a.jsonl")
    found = {}
    for name, options in {
        "all": (),
        "some": ("--where", f"source = '{source}'"),
        "exact": ("--exact", "--where", f"source = '{source}'"),
    }.items():
        out = tmp_path / f"{name}.csv"
        document("values", place / "index", place / "v.jsonl", "-o", out, *options)
        with out.open() as file:
            found[name] = list(csv.DictReader(file))
    assert found["some"] == [row for row in found["all"] if row["source"] == source]
    assert [r["id"] for r in found["exact"]] == [r["id"] for r in found["some"]]


@pytest.mark.parametrize("where", ["nonsense", "source =", "no_column = 3"])
def test_a_bad_condition(place, where):
    message = refused("query", place / "index", place / "v.jsonl", "--where", where, code=2)
    assert where.split()[0] in message


def test_tuning(place, monkeypatch):
    message = refused("tune", place / "index", code=2)
    assert message == "flat scores every row and misses none; tune another kind with --search"
    message = refused("tune", place / "index", "--search", "rabitq", code=2)
    assert message == (
        f"the index has {N - 1} samples, and so few are all scored; tune it when it has 200"
    )
    monkeypatch.setattr(tuning, "ANSWERS", 10)
    found = document("tune", place / "index", "--search", "rabitq", "--recall", 0.9)
    assert list(found) == [
        *("search", "geometry", "normalized", "rows", "queries", "answers", "recall"),
        *("trials", "chosen"),
    ]
    assert list(found["chosen"]) == ["refine", "probes", "top", "bottom", "seconds"]
    kept = json.loads((place / "index/search/raw/rabitq/tuned.json").read_text())
    assert kept["refine"] == found["chosen"]["refine"]
    shown = run("tune", place / "index", "--search", "rabitq", "--recall", 0.9).stdout
    assert f"rabitq over {N - 1} raw rows, 10 answers to 50 queries" in shown
    assert "use the green line from now on" in shown


def test_a_recall_that_no_choice_reaches(place, monkeypatch):
    monkeypatch.setattr(tuning, "ANSWERS", 10)
    monkeypatch.setattr(tuning, "REFINES", (1,))
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 1)
    done = run("tune", place / "index", "--search", "rabitq", "--recall", 1)
    assert done.exit_code == 1
    assert "No choice reaches a recall of 1 at both ends" in done.stdout


def test_info_says_what_an_index_of_its_size_is_searched_with(place, monkeypatch):
    assert document("info", place / "index")["search"] == "flat"
    monkeypatch.setattr("forvalue_index.search.kinds.RABITQ_FROM", 50)
    monkeypatch.setattr("forvalue_index.search.gpu.gpu_room", dict)
    assert document("info", place / "index")["search"] == "rabitq"
    assert asked(place)["search"] == "rabitq"


def test_an_open_index_searches_as_it_was_tuned(place, monkeypatch):
    monkeypatch.setattr(tuning, "ANSWERS", 10)
    with ValuationIndex.open(place / "index") as index:
        before = index.query(rows(2, seed=2), search="rabitq", top=5)
        report = index.tune(search="rabitq", recall=0.9)
        assert index.query(rows(2, seed=2), search="rabitq", top=5).helpful == before.helpful
        (valuer,) = index._search._held.values()
        assert valuer.search.refine == report.chosen.refine == 10
