"""`forvalue evaluate`: documents, tables, and one clear line for what is wrong."""

import json
import re

import pytest
from click.testing import CliRunner
from rows import rows, write_jsonl

from forvalue_index.cli import display, main
from forvalue_index.evaluation import lds

pytest_plugins = ("tiny",)

COMMON_KEYS = [
    *("index", "fingerprint", "index_version", "labels", "training_samples"),
    *("validation_samples", "seconds", "warnings"),
]
OURS = ["for-value raw", "for-value raw, cosine"]
BASELINES = ["bm25", "bm25, responses alone", "hidden state"]
# What a training sample says of itself.
OWN = ["self-influence raw", "training loss"]
METHODS = [*OURS, *BASELINES]
EXACT = [*OURS, *(f"{name}, exact" for name in OURS), *BASELINES]
ESTIMATE = ["value", "low", "high"]
BOTH = pytest.mark.parametrize("width", [80, 140])


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
def small(index):
    """A directory of an index of 12 samples."""
    index.add(rows(12))
    return index.path


def table_rows(shown, first, last):
    """The lines of a table from its header to what is below it."""
    lines = shown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(first))
    end = next(i for i, line in enumerate(lines) if line.startswith(last))
    return [re.split(r"\s{2,}", line.strip()) for line in lines[start + 1 : end]]


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
        assert list(one) == ["method", "auc", "recall"]
        assert list(one["auc"]) == list(one["recall"]) == [*ESTIMATE, "std"]
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
        *OWN,
    ]
    for one in found["methods"]:
        assert list(one) == ["method", "rule", "auc", "detected", "curve"]
        assert (list(one["auc"]), list(one["curve"])) == (ESTIMATE, ["inspected", "found"])
    assert (found["flagged"], found["base_rate"], found["output"]) == (3, 0.25, str(path))
    assert path.read_text("utf-8").startswith("<?xml")
    shown = evaluate(*arguments, "-o", tmp_path / "curve.png").stdout
    assert "Detection of 3 samples with bad[x], 25.0% of all" in shown
    assert f"Curves drawn to {tmp_path / 'curve.png'}" in shown
    for one in found["methods"]:
        assert one["method"] in shown
        assert f"{one['auc']['value']:.3f} [{one['auc']['low']:.3f}" in shown
        assert f"{one['detected'][2]['found']:.1%}" in shown
    assert shown.count("Suspicious to ") == 4
    assert "Suspicious to training loss: high mean loss" in shown


def test_mislabeled_by_class(flagged, validation):
    options = ("--flag", "bad[x]", "--label", "topic")
    found = document("mislabeled", flagged, validation, *options)
    by_class = [f"{name}{end}" for name in METHODS for end in ("", ", by prompt", ", by class")]
    assert [one["method"] for one in found["methods"]] == [*by_class, *OWN]
    shown = evaluate("mislabeled", flagged, validation, *options).stdout
    assert "for-value raw, cosine, by class" in shown
    assert found["remark"] in shown


def test_exact_scores_are_asked_for(flagged, validation):
    for command, *options in (("retrieval", "--label", "topic"), ("tail-patch", "--top", 2)):
        found = document(command, flagged, validation, *options, "--exact")
        assert [one["method"] for one in found["methods"]] == EXACT
    found = document("mislabeled", flagged, validation, "--flag", "bad[x]", "--exact")
    by_prompt = [f"{name}{way}" for name in EXACT for way in ("", ", by prompt")]
    assert [one["method"] for one in found["methods"]] == [*by_prompt, *OWN]


def test_fidelity(small, validation):
    found = document("fidelity", small, validation)
    assert list(found) == [*COMMON_KEYS, "k", "candidates", "methods"]
    assert (found["k"], found["candidates"], found["training_samples"]) == (10, 100, 12)
    kept = ["top_kept", "bottom_kept", "top_reranked", "bottom_reranked"]
    for one in found["methods"]:
        assert list(one) == [
            *("method", "reference", "mean_rank_correlation", "rank_correlation"),
            *(*kept, "error_over_stderr", "within_two_stderrs"),
        ]
        assert list(one["rank_correlation"]) == ESTIMATE
    assert [(one["reference"], one["method"]) for one in found["methods"]] == [
        (name, method) for name in OURS for method in (name, *BASELINES)
    ]
    shown = evaluate("fidelity", small, validation).stdout
    assert "Agreement with exact scores" in shown
    assert "100 candidates are all of the 12 training samples" in shown
    drawn = table_rows(shown, "method", "Each kind of scores")
    for cells, one in zip(drawn, found["methods"], strict=True):
        correlation, error = one["rank_correlation"], one["error_over_stderr"]
        within = one["within_two_stderrs"]
        assert cells == [
            one["method"],
            f"{one['mean_rank_correlation']:.3f}",
            f"{correlation['value']:.3f} [{correlation['low']:.3f}, {correlation['high']:.3f}]",
            f"{one['top_kept']:.2f}",
            f"{one['bottom_kept']:.2f}",
            f"{one['top_reranked']:.3f}",
            f"{one['bottom_reranked']:.3f}",
            *([] if error is None else [f"{error:.2f}", f"{within:.2f}"]),
        ]
        assert (error is None) == (one["method"] in BASELINES)


def gain(estimate):
    return "{:+.2f} [{:+.2f}, {:+.2f}]".format(*(1000 * estimate[name] for name in ESTIMATE))


def test_tail_patch(small, validation):
    arguments = ("tail-patch", small, validation, "--top", 3, "--learning-rate", 1e-3)
    found = document(*arguments)
    assert list(found) == [*COMMON_KEYS, "k", "learning_rate", "random", "methods"]
    assert (found["k"], found["learning_rate"], list(found["random"])) == (3, 1e-3, ESTIMATE)
    measures = ["top", "bottom", "top_over_random", "random_over_bottom"]
    for one in found["methods"]:
        assert list(one) == ["method", *measures]
        assert [list(one[measure]) for measure in measures] == [ESTIMATE] * 4
    assert [one["method"] for one in found["methods"]] == METHODS
    shown = evaluate(*arguments).stdout
    assert "One step on each of 3 samples, learning rate 0.001" in shown
    assert "thousandths of a nat a label token" in shown
    random, *drawn = table_rows(shown, "method", "Mean change")
    assert random == ["random", gain(found["random"])]
    for cells, one in zip(drawn, found["methods"], strict=True):
        assert cells == [one["method"], *(gain(one[measure]) for measure in measures)]


def test_lds(small, validation, tmp_path):
    options = ("--subsets", 3, "--epochs", 1, "--batch-samples", 3, "--learning-rate", 3e-3)
    arguments = ("lds", small, validation, *options, "--runs", tmp_path / "runs")
    found = document(*arguments)
    assert list(found) == [*COMMON_KEYS, "subsets", "recipe", "spread", "methods"]
    assert found["recipe"] == {
        "epochs": 1,
        "learning_rate": 3e-3,
        "batch_samples": 3,
        "lora_rank": None,
        "weight_decay": 0.0,
        "warmup_steps": 0,
        "bfloat16": False,
    }
    kinds = [(name, kind) for kind in ("sketched", "exact") for name in OURS]
    kinds += [(name, "") for name in BASELINES]
    assert [(one["method"], one["kind"]) for one in found["methods"]] == kinds
    for one in found["methods"]:
        assert (list(one), list(one["score"])) == (["method", "kind", "score"], ESTIMATE)
    shown = evaluate(*arguments).stdout
    assert "Linear datamodelling score over 3 halves" in shown
    assert f"by {found['spread']:.3f} nats (standard deviation)" in shown
    for cells, one in zip(
        table_rows(shown, "method", "In brackets"), found["methods"], strict=True
    ):
        score = "{:.3f} [{:.3f}, {:.3f}]".format(*(one["score"][name] for name in ESTIMATE))
        assert cells == [cell for cell in (one["method"], one["kind"], score) if cell]
    assert sorted(p.name for p in (tmp_path / "runs").iterdir())[0] == "run.json"
    other = evaluate(*arguments[:-1], tmp_path / "runs", "--epochs", 2)
    assert (other.exit_code, other.stdout) == (1, "")
    assert "holds losses of a run with epochs 1, and this one has 2" in other.stderr


def test_lds_of_a_lora_in_the_index(small, validation):
    options = ("--subsets", 2, "--epochs", 1, "--lora-rank", 2)
    assert document("lds", small, validation, *options)["recipe"]["lora_rank"] == 2
    assert len(list((small / "lds").iterdir())) == 3


def test_ctrl_c_in_lds_says_that_it_goes_on(small, validation, monkeypatch):
    """Stopped as it begins to train the second half."""
    fine_tune, calls = lds.fine_tune, []

    def interrupted(*arguments, **options):
        calls.append(options["seed"])
        if options["seed"] == 1 and calls.count(1) == 1:
            raise KeyboardInterrupt
        return fine_tune(*arguments, **options)

    monkeypatch.setattr(lds, "fine_tune", interrupted)
    arguments = ("lds", small, validation, "--subsets", 3, "--epochs", 1)
    done = evaluate(*arguments)
    assert (done.exit_code, done.stdout) == (130, "")
    assert done.stderr.endswith("is stored; the same command goes on from there.\n")
    assert evaluate(*arguments).exit_code == 0
    assert calls == [0, 1, 1, 2]


@BOTH
@pytest.mark.parametrize(
    "command",
    [
        ("retrieval", "--label", "topic", "--exact"),
        ("mislabeled", "--flag", "bad[x]"),
        ("fidelity",),
        ("tail-patch", "--top", 2, "--exact"),
        ("lds", "--subsets", 2, "--epochs", 1),
    ],
    ids=lambda command: command[0],
)
def test_no_word_and_no_number_is_cut(flagged, validation, monkeypatch, command, width):
    """Where there is little room, cells take several lines."""
    monkeypatch.setattr(display, "PIPED_WIDTH", width)
    name, *options = command
    done = evaluate(name, flagged, validation, *options)
    assert done.exit_code == 0, done.stderr
    assert "\N{HORIZONTAL ELLIPSIS}" not in done.stdout
    assert "nan" not in done.stdout


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
        (("fidelity", "--limit", "1"), 2, "--limit is 1; use at least 2"),
        (("tail-patch", "--limit", "1"), 2, "--limit is 1; use at least 2"),
        (("tail-patch", "--top", "1"), 2, "--top is 1; use at least 2"),
        (("tail-patch", "--top", "16"), 2, "30 training samples have no 16 best"),
        (("tail-patch", "--learning-rate", "0"), 2, "learning_rate is 0.0; use a number above 0"),
        (("tail-patch", "--learning-rate", "1e38", "--top", "2"), 1, "infinite or undefined"),
        (("lds", "--subsets", "1", "--runs", "R"), 2, "--subsets is 1; use at least 2"),
        (("lds", "--epochs", "0", "--runs", "R"), 2, "epochs is 0; train with at least 1"),
        (("lds", "--batch-samples", "0", "--runs", "R"), 2, "batch_samples is 0"),
        (("lds", "--learning-rate", "0", "--runs", "R"), 2, "learning_rate is 0.0"),
        (("lds", "--lora-rank", "0", "--runs", "R"), 2, "lora_rank is 0; use at least 1"),
        (("lds", "--limit", "1", "--runs", "R"), 2, "--limit is 1"),
        (("lds", "--learning-rate", "1e38", "--runs", "R"), 1, "learning rate below 1e+38"),
        (("lds", "--runs", "validation.jsonl/below"), 1, "Not a directory; check the path"),
    ],
)
def test_what_is_wrong_is_one_line(built_index, validation, monkeypatch, arguments, code, message):
    monkeypatch.chdir(validation.parent)
    command, *options = arguments
    done = evaluate(command, built_index, validation, *options)
    assert (done.exit_code, done.stdout) == (code, "")
    assert done.stderr.startswith("Error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


def test_runs_that_are_a_file_are_wrong_usage(built_index, validation):
    done = evaluate("lds", built_index, validation, "--runs", validation)
    assert done.exit_code == 2
    assert "Invalid value for '--runs'" in done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("retrieval", "--label", "topic"),
        ("mislabeled", "--flag", "bad"),
        ("fidelity",),
        ("tail-patch",),
        ("lds",),
    ],
    ids=lambda command: command[0],
)
def test_an_empty_index_is_one_line(index, validation, command):
    name, *options = command
    done = evaluate(name, index.path, validation, *options)
    assert done.exit_code == 2
    assert done.stderr.startswith("Error: there are 0 training samples with texts in the index")


def test_a_missing_option_is_wrong_usage(built_index, validation):
    done = evaluate("mislabeled", built_index, validation)
    assert done.exit_code == 2
    assert "Missing option '--flag'" in done.stderr
