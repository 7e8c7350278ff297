"""What `explain --json` and the terminal say of an explanation, from records made by hand."""

import json

import pytest
from explanations import NASTY, explained, explanation

from forvalue_index.cli.explanation import print_explanation
from forvalue_index.reports.documents import (
    calibration_document,
    explanation_document,
    query_document,
)
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.results import CalibrationSummary
from forvalue_index.valuation.results import QueryResult, ScoredSample, ValidationResult
from forvalue_index.valuation.scoring import Scoring

TOKENS = [("the ", None, None), ("cab", 2.0, 0.5), (" is", -1.0, 1.25)]
KEYS = ["id", "geometry", "normalized", "validation_set", "warnings", "key", "score", "tokens"]


def test_an_explanation_as_a_document():
    document = explanation_document(explanation(TOKENS, key="r1", geometry="kfac"))
    assert list(document) == KEYS
    assert document == {
        "id": 1,
        "geometry": "kfac",
        "normalized": False,
        "validation_set": {"samples": 1234, "label_tokens": 56789},
        "warnings": [],
        "key": "r1",
        "score": 1.0,
        "tokens": [
            {"position": 0, "token": 0, "text": "the ", "term": 0.0, "loss": None},
            {"position": 1, "token": 1, "text": "cab", "term": 2.0, "loss": 0.5},
            {"position": 2, "token": 2, "text": " is", "term": -1.0, "loss": 1.25},
        ],
    }
    assert sum(token["term"] for token in document["tokens"]) == document["score"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_validation_side_is_there_where_asked_for():
    parts = [explained(TOKENS, "v0"), explained(TOKENS[:2], "v1")]
    document = explanation_document(explanation(TOKENS, validation=parts, normalize=True))
    assert list(document) == [*KEYS, "validation"]
    assert document["normalized"] is True
    assert [(one["key"], one["score"]) for one in document["validation"]] == [
        ("v0", 1.0),
        ("v1", 2.0),
    ]
    assert [len(one["tokens"]) for one in document["validation"]] == [3, 2]


def test_a_calibration_as_a_document():
    scale = {"raw": {"noise": 1.0, "relative": 0.0}}
    summary = CalibrationSummary("d", 3, 40, 0.5, 288, 200, scale)
    assert calibration_document(summary) == {
        "digest": "d",
        "samples": 3,
        "label_tokens": 40,
        "damping": 0.5,
        "vocab_size": 288,
        "damped_tokens": 200,
        "error_scale": scale,
    }
    empty = calibration_document(None)
    assert list(empty) == list(calibration_document(summary))
    assert set(empty.values()) == {None}


def hit(rank, score, stderr, exact):
    sample = Sample((Message("text", "t"),), source="s", own_id=f"k{rank}")
    return ScoredSample(rank, rank, score, stderr, exact, sample)


def result(*hits, **fields):
    return QueryResult(
        index="i",
        fingerprint="f",
        index_version=1,
        validation_samples=1,
        validation_label_tokens=2,
        searched=3,
        helpful=hits,
        harmful=(),
        **fields,
    )


def test_hits_are_exact_sketched_or_without_an_error():
    hits = (hit(1, 2.0, 0.0, exact=True), hit(2, 1.0, 0.25, exact=False))
    document = query_document(result(*hits, reranked=7, scoring=Scoring("fisher", normalize=True)))
    assert [(h["stderr"], h["exact"]) for h in document["helpful"]] == [(0.0, True), (0.25, False)]
    assert (document["reranked"], document["geometry"]) == (7, "fisher")
    assert (document["normalized"], document["whitened"]) == (True, False)
    whitened = result(hit(1, 2.0, None, exact=False), scoring=Scoring(whiten=True))
    document = query_document(whitened)
    assert document["helpful"][0]["stderr"] is None
    assert (document["whitened"], document["reranked"]) == (True, 0)


def test_masses_are_told():
    document = query_document(result(label_error_mass=0.25, index_error_mass=None))
    assert document["label_error_mass"] == {"validation": 0.25, "index": None}
    alone = (ValidationResult(0, (hit(1, 1.0, 0.0, exact=True),), ()),)
    document = query_document(result(per_sample=alone))
    assert document["per_sample"][0]["helpful"][0]["exact"] is True


# In the terminal.


def shown(capsys, *arguments):
    print_explanation(*arguments)
    return capsys.readouterr().out


def test_a_person_reads_the_score_the_text_and_the_strongest(capsys, tmp_path):
    page = tmp_path / "x.html"
    said = shown(capsys, explanation(TOKENS, key="r1", geometry="fisher", normalize=True), page)
    assert "r1 (number 1): exact score +1.0 (fisher geometry, cosine) for 1,234 " in said
    assert "the cab is" in said
    assert f"written to {page}" in said
    rows = [line.split() for line in said.splitlines() if "'cab'" in line or "' is'" in line]
    assert rows == [["1", "+2.0", "0.500", "'cab'"], ["2", "-1.0", "1.250", "'", "is'"]]


def test_validation_samples_are_printed_with_their_parts(capsys):
    said = shown(capsys, explanation(TOKENS, validation=[explained(TOKENS[1:], "v0")]))
    assert "validation sample 0, v0: +1.0\ncab is\n" in said
    assert "written" not in said


@pytest.mark.parametrize("text", [NASTY, "[red]x[/] [/nothing]", "\\[x]", ":smile:"])
def test_markup_in_samples_is_shown_as_it_is(capsys, text):
    tokens = [(text, 1.0, 1.0), (text, None, None)]
    said = shown(capsys, explanation(tokens, key=text, validation=[explained(tokens, text)]))
    assert said.count(text) >= 4


def test_commands_to_the_terminal_are_not_passed_on(capsys):
    said = shown(capsys, explanation([("a\x1b[31mb\x9b\x07", 1.0, 1.0)], key="k\x1b]0;x\x07"))
    assert not {"\x1b", "\x07", "\x9b"} & set(said)
    assert "a\ufffd[31mb" in said


def test_colours_follow_the_sign(monkeypatch):
    """Green backgrounds help, red ones hurt, context is dim."""
    from rich.console import Console

    from forvalue_index.cli import explanation as shown_explanation

    console = Console(force_terminal=True, color_system="truecolor", width=200, no_color=False)
    monkeypatch.setattr(shown_explanation, "readable_console", lambda: console)
    with console.capture() as capture:
        print_explanation(explanation([*TOKENS, ("!", 0.0, 1.0)]))
    said = capture.get()
    assert "48;2;35;134;54mcab" in said
    light = ";".join(str(round(235 + (part - 235) / 2)) for part in (190, 40, 40))
    assert f"48;2;{light}m is" in said
    assert "48;2;235;235;235m!" in said
    assert "\x1b[2mthe " in said
