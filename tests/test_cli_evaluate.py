"""`forvalue evaluate`: documents, tables, and one clear line for what is wrong."""

import json

import pytest
from click.testing import CliRunner
from rows import rows, write_jsonl

from forvalue_index.cli import main

pytest_plugins = ("tiny",)

COMMON_KEYS = [
    *("index", "fingerprint", "index_version", "labels", "training_samples"),
    *("validation_samples", "seconds", "warnings"),
]
METHODS = ["for-value", "bm25", "bm25, responses alone", "hidden state"]


def evaluate(*arguments):
    return CliRunner().invoke(
        main, ["evaluate", *map(str, arguments)], catch_exceptions=False, prog_name="forvalue"
    )


def document(*arguments):
    done = evaluate(*arguments, "--json")
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture
def validation(tmp_path):
    return write_jsonl(tmp_path / "validation.jsonl", rows(6, seed=2, prefix="v"))


@pytest.fixture
def flagged(index):
    index.add([{**row, "bad[x]": i % 4 == 0} for i, row in enumerate(rows(12))])
    return index.path


def test_retrieval(built_index, validation):
    found = document("retrieval", built_index, validation, "--label", "topic")
    assert list(found) == [*COMMON_KEYS, "label", "classes", "chance_recall", "methods", "remark"]
    assert [one["method"] for one in found["methods"]] == METHODS
    assert (found["training_samples"], found["validation_samples"]) == (30, 6)
    shown = evaluate("retrieval", built_index, validation, "--label", "topic").stdout
    assert "Retrieval of 3 classes by topic" in shown
    assert "30 indexed samples (labels response) against 6 validation samples." in shown
    for one in found["methods"]:
        auc, recall = one["auc"], one["recall"]
        assert one["method"] in shown
        assert f"{auc['value']:.3f} [{auc['low']:.3f}, {auc['high']:.3f}]" in shown
        assert f"{recall['value']:.3f} [{recall['low']:.3f}, {recall['high']:.3f}]" in shown
    assert found["remark"] in shown


def test_mislabeled(flagged, validation, tmp_path):
    path = tmp_path / "curve.svg"
    arguments = ("mislabeled", flagged, validation, "--flag", "bad[x]")
    found = document(*arguments, "-o", path)
    keys = ["flag", "label", "flagged", "base_rate", "methods", "remark", "output"]
    assert list(found) == [*COMMON_KEYS, *keys]
    assert [one["method"] for one in found["methods"]] == [
        *(f"{name}{end}" for name in METHODS for end in ("", ", by prompt")),
        "training loss",
    ]
    assert (found["flagged"], found["base_rate"], found["output"]) == (3, 0.25, str(path))
    assert path.read_text("utf-8").startswith("<?xml")
    shown = evaluate(*arguments, "-o", tmp_path / "curve.png").stdout
    assert "Detection of 3 samples with bad[x], 25.0% of all" in shown
    assert f"Curves drawn to {tmp_path / 'curve.png'}" in shown
    for one in found["methods"]:
        assert one["method"] in shown
        assert f"{one['auc']['value']:.3f} [{one['auc']['low']:.3f}" in shown
        assert f"{one['detected'][2]['found']:.1%}" in shown
    assert shown.count("Suspicious to ") == 3
    assert "Suspicious to training loss: high mean loss" in shown


def test_mislabeled_by_class(flagged, validation):
    options = ("--flag", "bad[x]", "--label", "topic")
    found = document("mislabeled", flagged, validation, *options)
    by_class = [f"{name}{end}" for name in METHODS for end in ("", ", by prompt", ", by class")]
    assert [one["method"] for one in found["methods"]] == [*by_class, "training loss"]
    shown = evaluate("mislabeled", flagged, validation, *options).stdout
    assert "for-value, by class" in shown
    assert found["remark"] in shown


def test_a_limit_warns_on_both_ways(built_index, validation):
    arguments = ("retrieval", built_index, validation, "--label", "topic", "--limit", 99)
    found = document(*arguments)
    assert found["warnings"] == ["--limit is 99 and the index holds 30 samples; all are used"]
    assert found["warnings"][0] in evaluate(*arguments).stdout
    assert document(*arguments[:-1], 12)["training_samples"] == 12


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("retrieval", "--label", "kind"), 2, "has no field 'kind'; it has topic"),
        (("mislabeled", "--flag", "topic"), 2, "has 'law' for 'topic', which is neither"),
        (("mislabeled", "--flag", "wrong"), 2, "has no field 'wrong'"),
        (("mislabeled", "--flag", "topic", "-o", "x.pdf"), 2, "x.pdf ends in .pdf; use one of"),
        (("retrieval", "--label", "topic", "--limit", "1"), 2, "--limit is 1; use at least 2"),
        (
            ("retrieval", "--label", "topic", "--columns", "prompt"),
            2,
            "'prompt' is malformed",
        ),
    ],
)
def test_what_is_wrong_is_one_line(built_index, validation, arguments, code, message):
    command, *options = arguments
    done = evaluate(command, built_index, validation, *options)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_empty_index_is_one_line(index, validation):
    done = evaluate("retrieval", index.path, validation, "--label", "topic")
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: there are 0 training samples with texts in the index")


def test_a_missing_option_is_wrong_usage(built_index, validation):
    done = evaluate("mislabeled", built_index, validation)
    assert done.exit_code == 2
    assert "Missing option '--flag'" in done.stderr
