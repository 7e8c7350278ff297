import json
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import click
import pyarrow.parquet
import pytest
from commands import document, run
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex, __version__
from forvalue_index.cli import main
from forvalue_index.cli.display import readable_number
from forvalue_index.store.manifest import open_catalog

pytest_plugins = ("tiny",)

MODEL_OPTIONS = ("--model", "--trust-remote-code")
SCORING_OPTIONS = ("--geometry", "--normalize", "--whiten")
READING_OPTIONS = ("--columns", "--ignore", "--media-root", "--split", "--config")
EVALUATION_OPTIONS = (*READING_OPTIONS, "--on-bad", "--limit", "--seed", "--json", *MODEL_OPTIONS)
# A sub-command stands under its group's name and its own.
OPTIONS = {
    "init": {
        *("--model", "--adapter", "--revision", "--dim", "--seed", "--labels", "--template"),
        *(
            "--chat-template",
            "--max-length",
            "--row-dtype",
            "--dtype",
            "--catalog",
            "--trust-remote-code",
            "--json",
        ),
        *("--payload", "--geometry", "--damping", "--calibration", "--max-label-tokens"),
        *("--hardest", "--media"),
    },
    "calibrate": {*READING_OPTIONS, "--wait", "--json", *MODEL_OPTIONS},
    "peek": {
        *("--model", "--index", "-n", "--count", *READING_OPTIONS, "--adapter", "--revision"),
        *("--labels", "--template", "--chat-template", "--max-length", "--media"),
        *("--trust-remote-code", "--json"),
    },
    "add": {*READING_OPTIONS, "--on-bad", "--relabel", "--wait", "--json", *MODEL_OPTIONS},
    "query": {
        *READING_OPTIONS,
        "--on-bad",
        "--json",
        *MODEL_OPTIONS,
        "--top",
        "--bottom",
        "--per-sample",
        "--rerank",
        *("--where", "--search"),
        *SCORING_OPTIONS,
    },
    "values": {
        *("--on-bad", "--json", "-o", "--output", "--exact", "--where"),
        *READING_OPTIONS,
        *MODEL_OPTIONS,
        *SCORING_OPTIONS,
    },
    "explain": {
        *("--on-bad", "--json", "-o", "--output", "--validation-tokens"),
        *READING_OPTIONS,
        *("--geometry", "--normalize", *MODEL_OPTIONS),
    },
    "show": {"--json", "-o", "--output"},
    "list": {"--where", "--limit", "--offset", "--json"},
    "info": {"--json"},
    "evaluate": set(),
    "evaluate retrieval": {"--label", "--exact", *EVALUATION_OPTIONS},
    "evaluate mislabeled": {
        *("--flag", "--label", "--exact", "-o", "--output", *EVALUATION_OPTIONS),
    },
    "evaluate fidelity": {*EVALUATION_OPTIONS},
    "evaluate tail-patch": {"--exact", "--top", "--learning-rate", *EVALUATION_OPTIONS},
    "evaluate lds": {
        *("--subsets", "--epochs", "--learning-rate", "--batch-samples", "--lora-rank", "--runs"),
        *EVALUATION_OPTIONS,
    },
    "remove": {"--source", "--where", "--dry-run", "--yes", "--wait", "--json"},
    "compact": {"--wait", "--json"},
    "check": {"--repair", "--labels", "--wait", "--json", *MODEL_OPTIONS},
    "tune": {"--recall", "--geometry", "--normalize", "--search", "--json"},
    "migrate": {"--wait", "--json"},
    "make-demo-data": {"--seed"},
}
INFO_KEYS = [
    *("samples", "removed", "segments", "bytes", "dim", "row_dtype", "model", "adapter"),
    *("revision", "trust_remote_code", "dtype", "labels", "template", "max_length", "seed"),
    *("chat_template", "payload", "media", "geometry", "damping", "max_label_tokens", "hardest"),
    "fingerprint",
    *("index_version", "catalog", "search", "sources", "loss", "label_error_mass", "warnings"),
    "stopped",
]
ADD_KEYS = [
    *(
        "read",
        "added",
        "relabelled",
        "restored",
        "known",
        "updated",
        "duplicates",
        "differing",
        "examples",
        "rejected",
        "reasons",
        "truncated",
        "unread",
        "unrendered",
        "cut",
        "label_tokens",
        "segments",
        "seconds",
    ),
    *("tokens_per_s", "rejected_file"),
]
QUERY_KEYS = [
    *("index", "fingerprint", "index_version", "geometry", "normalized", "whitened"),
    *(
        "validation",
        "search",
        "where",
        "searched",
        "reranked",
        "label_error_mass",
        "seconds",
        "warnings",
    ),
    *("helpful", "harmful"),
]
HIT_KEYS = [
    *("rank", "id", "key", "score", "stderr", "exact", "source", "metadata", "preview"),
]
SAMPLE_KEYS = [
    *("id", "key", "source", "position", "content_hash", "n_tokens", "n_label_tokens"),
    *("truncated", "removed", "loss", "label_error_mass", "norm", "metadata", "messages"),
    *("tools", "text_error"),
]


@pytest.fixture
def train(tmp_path):
    return write_jsonl(tmp_path / "train.jsonl", rows(12))


@pytest.fixture
def validation(tmp_path):
    return write_jsonl(tmp_path / "validation.jsonl", rows(3, seed=2, prefix="v"))


def forvalue(*arguments):
    """A command in a process of its own, as a script runs it."""
    return [
        sys.executable,
        "-c",
        "from forvalue_index.cli import main; main()",
        *map(str, arguments),
    ]


def commands_of(group, prefix=""):
    """Every command by name, each group before what is in it."""
    for name, command in group.commands.items():
        yield prefix + name, command
        if isinstance(command, click.Group):
            yield from commands_of(command, f"{prefix}{name} ")


COMMANDS = dict(commands_of(main))


def test_the_commands_are_these():
    assert list(COMMANDS) == list(OPTIONS)


@pytest.mark.parametrize("command", OPTIONS)
def test_every_command_explains_itself(command):
    done = run(*command.split(), "--help")
    assert done.exit_code == 0
    assert done.stderr == ""
    assert f"Usage: main {command} [OPTIONS]" in done.stdout
    assert COMMANDS[command].help
    assert run(*command.split(), "-h").stdout == done.stdout


@pytest.mark.parametrize("command", OPTIONS)
def test_the_options_are_these(command):
    """Scripts depend on the names."""
    options = [p for p in COMMANDS[command].params if isinstance(p, click.Option)]
    assert {name for option in options for name in option.opts} == OPTIONS[command]


def test_the_group_explains_itself():
    done = run("--help")
    assert done.exit_code == 0
    assert all(command in done.stdout for command in main.commands)
    assert run("--version").stdout == f"forvalue, version {__version__}\n"


def test_from_nothing_to_values(tmp_path, model_dir, train, validation):
    index = tmp_path / "index"
    created = document("init", index, "--model", model_dir, "--dim", 256)
    assert list(created) == INFO_KEYS
    assert (created["samples"], created["dim"], created["model"]) == (0, 256, str(model_dir))
    assert (created["loss"], created["sources"], created["catalog"]) == (None, [], "sqlite")
    assert (created["geometry"], created["damping"], created["hardest"]) == ("raw", 1.0, None)

    added = document("add", index, train)
    assert list(added) == ADD_KEYS
    assert list(added["seconds"]) == ["load", "forward", "total"]
    assert (added["read"], added["added"], added["known"], added["segments"]) == (12, 12, 0, 1)
    assert (added["rejected"], added["truncated"], added["rejected_file"]) == (0, 0, None)
    assert added["tokens_per_s"] > 0
    assert document("add", index, train)["known"] == 12

    found = document("query", index, validation, "--top", 3, "--bottom", 2)
    assert list(found) == QUERY_KEYS
    assert found["validation"].keys() == {"samples", "label_tokens"}
    assert (found["validation"]["samples"], found["searched"]) == (3, 12)
    where = (found["index"], found["geometry"], found["fingerprint"])
    assert where == (str(index), "raw", created["fingerprint"])
    assert (found["normalized"], found["whitened"], found["reranked"]) == (False, False, 0)
    assert found["label_error_mass"].keys() == {"validation", "index"}
    assert all(0 < mass < 1 for mass in found["label_error_mass"].values())
    assert (len(found["helpful"]), len(found["harmful"])) == (3, 2)
    for hit in found["helpful"] + found["harmful"]:
        assert list(hit) == HIT_KEYS
        assert (hit["source"], hit["exact"]) == (str(train), False)
        assert hit["metadata"].keys() == {"topic"}
        assert hit["stderr"] > 0

    output = tmp_path / "values.parquet"
    written = document("values", index, validation, "-o", output)
    assert written == {"output": str(output), "samples": 12}
    table = pyarrow.parquet.read_table(output)
    assert table.column_names == ["id", "key", "source", "score", "stderr"]
    assert table["key"].to_pylist() == [row["id"] for row in rows(12)]
    best = max(table.to_pylist(), key=lambda row: row["score"])
    assert best["key"] == found["helpful"][0]["key"]

    info = document("info", index)
    assert list(info) == INFO_KEYS
    assert (info["samples"], info["removed"], info["index_version"]) == (12, 0, 1)
    assert (info["sources"], info["segments"]) == ([{"source": str(train), "samples": 12}], 1)
    assert info["bytes"] > 12 * 256 * 2


def test_rows_that_repeat_others_are_counted_and_named(filled, tmp_path):
    index = filled.storage.path
    texts = [{"text": "I loved it.", "label": label} for label in (1, 1, 0)]
    path = write_jsonl(tmp_path / "d.jsonl", texts)
    added = document("add", index, path)
    assert (added["added"], added["known"], added["duplicates"], added["differing"]) == (1, 0, 2, 1)
    example = {"row": f"{path}:3", "repeats": f"{path}:1", "metadata": {"label": 0}}
    assert added["examples"] == [example]
    said = run("add", index, path).stdout
    assert "1 were known" in said
    assert "2 repeats of an earlier row of this add: 1 with the same metadata, 1 with other" in said
    assert f"{path}:3 repeats {path}:1: label 0\n" in said


def test_each_validation_sample_alone(built_index, validation):
    found = document("query", built_index, validation, "--per-sample", "--top", 2)
    assert list(found) == [*QUERY_KEYS, "per_sample"]
    assert [one["validation"] for one in found["per_sample"]] == [0, 1, 2]
    for one in found["per_sample"]:
        assert list(one) == ["validation", "helpful", "harmful"]
        assert [list(hit) for hit in one["helpful"] + one["harmful"]] == [HIT_KEYS] * 4


def test_exact_scores_say_so(tmp_path, model_dir, train, validation):
    document("init", tmp_path / "index", "--model", model_dir, "--dim", 16_384)
    document("add", tmp_path / "index", train)
    hit = document("query", tmp_path / "index", validation)["helpful"][0]
    assert (hit["exact"], hit["stderr"]) == (True, 0)


def test_init_again_is_no_error(built_index, model_dir):
    again = document("init", built_index, "--model", model_dir, "--dim", 256, "--geometry", "raw")
    assert again["samples"] == 30


def test_one_sample(built_index):
    shown = document("show", built_index, "r2")
    assert list(shown) == SAMPLE_KEYS
    assert (shown["id"], shown["key"], shown["position"]) == (2, "r2", 3)
    assert shown["metadata"] == {"topic": "war"}
    assert [turn["role"] for turn in shown["messages"]] == ["user", "assistant"]
    assert document("show", built_index, 2) == shown


def test_listing(built_index):
    listed = document("list", built_index, "--where", "metadata.topic = 'art'", "--limit", 4)
    assert list(listed) == ["matching", "samples"]
    assert listed["matching"] == 10
    assert [sample["key"] for sample in listed["samples"]] == ["r1", "r4", "r7", "r10"]
    assert [list(sample) for sample in listed["samples"]] == [SAMPLE_KEYS] * 4
    rest = document("list", built_index, "--offset", 28)
    assert (rest["matching"], [s["key"] for s in rest["samples"]]) == (30, ["s8", "s9"])
    assert document("list", built_index, "--where", "n_tokens > 1000") == {
        "matching": 0,
        "samples": [],
    }


def test_people_read_tables(built_index, validation, tmp_path, model_dir, train):
    found = document("query", built_index, validation, "--top", 3)
    shown = run("query", built_index, validation, "--top", 3, "--per-sample").stdout
    for hit in found["helpful"] + found["harmful"]:
        assert hit["key"] in shown
        assert readable_number(hit["score"], sign="+") in shown
    assert "Most helpful to the validation set" in shown
    assert "Most harmful to validation sample 2" in shown
    assert "r2" in run("show", built_index, "r2").stdout
    listed = run("list", built_index).stdout
    assert all(row["id"] in listed for row in rows(20))
    assert "30 of 30 samples" in listed
    assert "30  <iterable>" in run("info", built_index).stdout
    assert "is ready" in run("init", tmp_path / "index", "--model", model_dir).stdout
    assert "12 samples added of 12 read" in run("add", tmp_path / "index", train).stdout
    assert "none yet" not in run("info", tmp_path / "index").stdout
    done = run("values", built_index, validation, "-o", tmp_path / "v.csv")
    assert done.stdout == f"30 values written to {tmp_path / 'v.csv'}\n"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (12345.6, "+12,346"),
        (-100.4, "-100"),
        (99.96, "+100.0"),
        (-1.25, "-1.2"),
        (0.123456, "+0.123"),
        (-2e-7, "-2e-07"),
        (0.0, "+0"),
    ],
)
def test_numbers_are_readable(value, shown):
    assert readable_number(value, sign="+") == shown


def test_markup_in_data_is_shown_as_it_is(tmp_path, model_dir):
    """rich would take [x] for a style."""
    data = [{"id": "[red]key[/]", "prompt": "[bold]p[/bold]", "response": "[/nothing] r"}]
    path = write_jsonl(tmp_path / "[odd].jsonl", data)
    document("init", tmp_path / "index", "--model", model_dir)
    document("add", tmp_path / "index", path)
    for command in (("show", tmp_path / "index", "0"), ("query", tmp_path / "index", path)):
        shown = run(*command).stdout
        assert "[red]key[/]" in shown
        assert "[bold]p[/bold]" in shown
        assert "[/nothing] r" in shown


def test_standard_input(filled, tmp_path):
    index = filled.storage.path
    lines = "".join(json.dumps(row) + "\n" for row in rows(3, seed=7, prefix="n"))
    assert document("add", index, "-", input=lines)["added"] == 3
    assert document("show", index, "n1")["source"] == "<stdin>"
    assert document("query", index, "-", input=lines)["validation"]["samples"] == 3
    output = tmp_path / "v.jsonl"
    assert document("values", index, "-", "-o", output, input=lines)["samples"] == 33


def test_columns_and_bad_rows(filled, tmp_path):
    index = filled.storage.path
    data = [{"Q": row["prompt"], "A": row["response"]} for row in rows(4, seed=8)]
    path = write_jsonl(tmp_path / "qa.jsonl", [*data, {"Q": "?", "A": None}, {"other": 1}])
    mapped = ("--columns", "prompt=Q,response=A", "--on-bad", "skip")
    added = document("add", index, path, *mapped)
    assert (added["read"], added["added"], added["rejected"]) == (6, 4, 2)
    lines = Path(added["rejected_file"]).read_text("utf-8").splitlines()
    rejected = [json.loads(line) for line in lines]
    assert [entry["position"] for entry in rejected] == [5, 6]
    assert "'A' is null" in rejected[0]["reason"]
    assert "no column 'Q' for prompt" in rejected[1]["reason"]
    found = document("query", index, path, *mapped)
    assert found["validation"]["samples"] == 4
    assert "2 validation row(s) were left out" in found["warnings"][0]
    shown = run("query", index, path, *mapped).stdout
    assert "2 validation row(s) were left out" in shown
    fresh = write_jsonl(tmp_path / "more.jsonl", [{"Q": "a", "A": "b c"}, {"Q": "?", "A": ""}])
    shown = run("add", index, fresh, *mapped).stdout
    assert "1 rejected row" in shown


def test_what_rows_have_that_is_not_read_is_counted_and_said(filled, tmp_path):
    index = filled.storage.path
    turns = [
        {"role": "user", "content": "a", "timestamp": 1},
        {"role": "assistant", "content": "b", "timestamp": 2},
    ]
    data = [
        {"messages": turns, "passage": "words " * 50},
        {
            "messages": [*turns, *turns, {"role": "user", "content": "bye"}],
            "passage": "other " * 50,
        },
        {"messages": turns[:1]},
        {"messages": [*turns, {"role": 3, "content": "x"}]},
        {"messages": [{"role": 4, "content": "x"}, *turns]},
    ]
    path = write_jsonl(tmp_path / "odd.jsonl", data)
    added = document("add", index, path, "--on-bad", "skip")
    assert (added["added"], added["rejected"], added["cut"]) == (2, 3, 1)
    assert (added["unread"], added["unrendered"]) == ({"passage": 2}, {"timestamp": 2})
    assert list(added["reasons"].values()) == [2, 1]
    first, second = added["reasons"]
    assert first == "the role of turn … of … is int, wanted text"
    assert second.startswith("'messages': no assistant turn")
    copy = write_jsonl(tmp_path / "copy.jsonl", [{**row, "id": n} for n, row in enumerate(data)])
    said = run("add", index, copy, "--on-bad", "skip").stdout
    assert "columns that are not read, and are metadata: passage (2 rows)" in said
    assert "fields of turns that the chat template leaves out: timestamp (2 rows)" in said
    assert "1 conversation cut behind the assistant's last turn" in said
    assert "    2 times: the role of turn" in said


def test_several_files_and_patterns(filled, tmp_path):
    index = filled.storage.path
    for n in range(3):
        write_jsonl(tmp_path / f"part-{n}.jsonl", rows(2, seed=n + 20, prefix=f"p{n}-"))
    added = document("add", index, tmp_path / "part-0.jsonl", tmp_path / "part-[12].jsonl")
    assert added["added"] == 6
    assert document("list", index, "--where", "key LIKE 'p%'")["matching"] == 6


def test_a_model_that_moved(filled, tmp_path, model_dir, validation):
    moved = tmp_path / "moved"
    moved.symlink_to(model_dir)
    index = filled.storage.path
    assert document("add", index, validation, "--model", moved)["added"] == 3
    assert document("query", index, validation, "--model", moved)["searched"] == 33
    output = tmp_path / "v.csv"
    assert document("values", index, validation, "--model", moved, "-o", output)["samples"] == 33


def test_demo_data(tmp_path, model_dir):
    done = run("make-demo-data", tmp_path / "demo")
    assert done.exit_code == 0
    written = done.stdout.split()
    assert sorted(written) == sorted(str(p) for p in (tmp_path / "demo").iterdir())
    document("init", tmp_path / "index", "--model", model_dir, "--dim", 64)
    assert document("add", tmp_path / "index", tmp_path / "demo" / "start.jsonl")["added"] > 100


def test_a_script_reads_nothing_but_json(built_index, validation):
    """Progress, advice of libraries and logs must not reach stdout; nor stderr, in a pipe."""
    done = subprocess.run(
        forvalue("query", built_index, validation, "--json"), capture_output=True, text=True
    )
    assert done.returncode == 0
    assert list(json.loads(done.stdout)) == QUERY_KEYS
    assert done.stderr == ""


def test_a_pipe_that_closes_early_is_no_disaster(built_index):
    with subprocess.Popen(
        forvalue("list", built_index, "--json"), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        errors = process.stderr.read().decode()
    assert "Traceback" not in errors


@pytest.mark.parametrize("command", [("info",), ("list",), ("show", "r1")], ids=lambda c: c[0])
def test_reading_imports_no_torch(built_index, command):
    name, *more = command
    code = (
        "import sys; from forvalue_index.cli import main\n"
        f"main({[name, str(built_index), *more]!r}, standalone_mode=False)\n"
        "assert not {'torch', 'faiss', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def stored_in(catalog):
    with catalog.snapshot() as snapshot:
        return snapshot.count()


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_finished(tmp_path, model_dir):
    """Stopped in the middle, once the first of many batches is stored."""
    index = tmp_path / "index"
    ValuationIndex.create(index, str(model_dir), dim=256, row_dtype="float32").close()
    data = rows(2_000, words=3)
    train = write_jsonl(tmp_path / "train.jsonl", data)
    often = "import forvalue_index.ingest.storing as storing; storing.COMMIT_BYTES = 1; "
    python, option, code, *arguments = forvalue("add", index, train)
    with subprocess.Popen(
        [python, option, often + code, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        _, catalog = open_catalog(index)
        with closing(catalog):
            while stored_in(catalog) == 0 and process.poll() is None:
                time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert stdout == ""
    assert stderr == "Stopped. What was finished is stored; the same command goes on from there.\n"
    with ValuationIndex.open(index) as opened:
        stored = len(opened)
        assert 0 < stored < 2_000
        report = opened.add(write_jsonl(train, data[: stored + 50]))
        assert report.known + report.added == stored + 50
        assert report.added >= 50
        assert opened.query(data[:1], top=1).searched == len(opened)
