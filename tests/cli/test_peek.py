"""`peek`: what the terminal shows of rows, and its document."""

import json
import re
import shutil

import pytest
from commands import document, misused, refused, run
from models import NO_SYSTEM
from rows import rows, write_jsonl

from forvalue_index.cli.peek import print_peeked
from forvalue_index.ingest.peek import PeekedRow, PeekedSource, TextRun
from forvalue_index.reports.peek_documents import peek_document
from forvalue_index.sources.sample import Message, Sample

pytest_plugins = ("tiny",)

NASTY = "[red]x[/] \x1b[2J"
SAMPLE = Sample(
    (Message("user", "Hi"), Message("assistant", "Yes")),
    source="d.jsonl",
    position=2,
    own_id="[b]k",
    metadata={"topic": NASTY, "long": "word " * 50},
    tools=({"type": "function"}, {"type": "function"}),
    cut_turns=1,
    unread=("document", "notes"),
)
RUNS = (TextRun("user: Hi\nassistant: ", False, 5), TextRun(f"Yes {NASTY}", True, 3))
PEEKED = [
    PeekedSource(
        "d.jsonl",
        (
            PeekedRow(
                *("d.jsonl", 2, SAMPLE), runs=RUNS, truncated=True, unrendered=("name", "thinking")
            ),
            PeekedRow("d.jsonl", 3, reason="no [i]prompt"),
        ),
    ),
    PeekedSource("e.json", (), "e.json cannot be read: damaged; check the file"),
]
SHOWN = """\
d.jsonl:2, key [b]k: 8 tokens, 3 of them labels; cut to --max-length
    user: Hi
    assistant: [[Yes [red]x[/] �[2J]]
  turns user, assistant
  tools 2
  metadata topic: [red]x[/] �[2J
  metadata long: word word word word word word word word word word word word word word word word word word word word…
  columns that are not read document, notes
  fields of turns that the chat template leaves out name, thinking
  turns left out after the assistant's last 1
d.jsonl:3: not usable: no [i]prompt
d.jsonl: 1 of 2 rows looked at are usable.
e.json: 0 of 0 rows looked at are usable. e.json cannot be read: damaged; check the file
"""  # noqa: E501 - as it is printed
ROW_KEYS = [
    *("source", "position", "key", "usable", "reason", "n_tokens", "n_label_tokens", "truncated"),
    *("roles", "runs", "n_tools", "metadata", "unread", "unrendered", "cut_turns"),
]


@pytest.fixture
def model(tmp_path, model_dir):
    """A model without weights."""
    path = shutil.copytree(model_dir, tmp_path / "model")
    (path / "model.safetensors").unlink()
    return path


@pytest.fixture
def data(tmp_path):
    return write_jsonl(tmp_path / "data.jsonl", rows(5))


def test_without_colours_labels_stand_in_brackets(capsys):
    print_peeked(PEEKED)
    assert capsys.readouterr().out == SHOWN


def test_with_colours_labels_are_coloured(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("NO_COLOR", raising=False)
    print_peeked(PEEKED)
    printed = capsys.readouterr().out
    assert "\x1b[30;42mYes [red]x[/] \ufffd[2J\x1b[0m" in printed
    assert "\x1b[2massistant: \x1b[0m" in printed
    assert "[[" not in printed
    assert "\x1b[2J" not in printed
    monkeypatch.setenv("NO_COLOR", "1")
    print_peeked(PEEKED)
    assert "[[Yes [red]x[/] \ufffd[2J]]" in re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)


def test_rows_as_a_document():
    found = peek_document(PEEKED)
    assert found == {
        "sources": [
            {
                "source": "d.jsonl",
                "looked_at": 2,
                "usable": 1,
                "problem": None,
                "rows": [
                    {
                        "source": "d.jsonl",
                        "position": 2,
                        "key": "[b]k",
                        "usable": True,
                        "reason": None,
                        "n_tokens": 8,
                        "n_label_tokens": 3,
                        "truncated": True,
                        "roles": ["user", "assistant"],
                        "runs": [
                            {"text": "user: Hi\nassistant: ", "is_label": False, "n_tokens": 5},
                            {"text": f"Yes {NASTY}", "is_label": True, "n_tokens": 3},
                        ],
                        "n_tools": 2,
                        "metadata": {"topic": NASTY, "long": "word " * 50},
                        "unread": ["document", "notes"],
                        "unrendered": ["name", "thinking"],
                        "cut_turns": 1,
                    },
                    {
                        "source": "d.jsonl",
                        "position": 3,
                        "key": None,
                        "usable": False,
                        "reason": "no [i]prompt",
                        "n_tokens": 0,
                        "n_label_tokens": 0,
                        "truncated": False,
                        "roles": [],
                        "runs": [],
                        "n_tools": 0,
                        "metadata": {},
                        "unread": [],
                        "unrendered": [],
                        "cut_turns": 0,
                    },
                ],
            },
            {
                "source": "e.json",
                "looked_at": 0,
                "usable": 0,
                "problem": "e.json cannot be read: damaged; check the file",
                "rows": [],
            },
        ]
    }
    assert [list(row) for row in found["sources"][0]["rows"]] == [ROW_KEYS] * 2
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_model_without_weights(model, data):
    (source,) = document("peek", data, "--model", model)["sources"]
    assert (source["source"], source["looked_at"], source["usable"]) == (str(data), 3, 3)
    assert [row["key"] for row in source["rows"]] == ["r0", "r1", "r2"]
    first = source["rows"][0]
    assert [run["is_label"] for run in first["runs"]] == [False, True, False]
    assert first["runs"][1]["text"] == rows(1)[0]["response"] + "<|im_end|>"
    assert first["metadata"] == {"topic": "law"}
    shown = run("peek", data, "--model", model, "-n", 1)
    assert shown.exit_code == 0
    assert f"[[{rows(1)[0]['response']}<|im_end|>]]\n" in shown.stdout
    assert shown.stdout.endswith(f"{data}: 1 of 1 rows looked at are usable.\n")


def test_an_index(built_index, data):
    by_index = document("peek", data, "--index", built_index)
    model = json.loads((built_index / "index.json").read_text("utf-8"))["settings"]["model"]
    assert by_index == document("peek", data, "--model", model)
    said = refused("peek", data, "--index", built_index, "--labels", "all", code=2)
    assert said.startswith(f"--labels: {built_index} has settings of its own")


def test_options_are_those_of_init_and_add(model, tmp_path):
    path = write_jsonl(tmp_path / "qa.jsonl", [{"Q": "Hi", "A": "Yes", "prompt": "p"}])
    options = ("--columns", "prompt=Q,response=A", "--ignore", "prompt", "--template", "plain")
    found = document("peek", path, "--model", model, *options, "--max-length", 4, "-n", 9)
    (row,) = found["sources"][0]["rows"]
    assert [run["text"] for run in row["runs"]] == ["Hi", "Ye"]
    assert (row["truncated"], row["metadata"]) == (True, {"prompt": "p"})


def test_bad_rows_stop_nothing(model, tmp_path):
    template = tmp_path / "strict.jinja"
    template.write_text(NO_SYSTEM)
    turns = [{"role": "system", "content": "s"}, {"role": "assistant", "content": "a"}]
    path = write_jsonl(tmp_path / "d.jsonl", [{"messages": turns}, 1, {"other": "x"}])
    done = run("peek", path, "--model", model, "--chat-template", template)
    assert done.exit_code == 0
    assert "no system role here" in done.stdout
    assert f"{path}:2: not usable: the row is int, wanted an object\n" in done.stdout
    assert done.stdout.endswith(f"{path}: 0 of 3 rows looked at are usable.\n")


def test_a_whole_number_of_many_digits(model, tmp_path):
    path = tmp_path / "d.jsonl"
    path.write_text('{"text": "the cab", "n": 1%s}\n' % ("0" * 4200))
    (row,) = document("peek", path, "--model", model)["sources"][0]["rows"]
    assert row["metadata"]["n"] in (10**4200, hex(10**4200))


def test_what_cannot_be_read_is_one_line(model, tmp_path, data):
    broken, empty = tmp_path / "broken.json", tmp_path / "empty.jsonl"
    broken.write_text("[")
    empty.touch()
    options = ("--model", model)
    assert "none.jsonl does not exist" in refused("peek", tmp_path / "none.jsonl", *options)
    assert "broken.json cannot be read: " in refused("peek", broken, *options)
    assert "empty.jsonl: there is no row in it" in refused("peek", empty, *options)
    assert run("peek", broken, data, *options).exit_code == 0
    neither = refused("peek", data, code=2)
    assert neither.startswith("give either --model")
    assert refused("peek", data, *options, "--index", "i", code=2) == neither
    assert "none does not exist" in refused("peek", data, "--index", tmp_path / "none")
    assert "--count cannot be 0" in refused("peek", data, *options, "-n", 0, code=2)
    assert "no such model directory" in refused("peek", data, "--model", tmp_path / "none")
    assert "Missing argument 'DATA...'" in misused("peek", *options)


def test_standard_input(model):
    found = document("peek", "-", "--model", model, input='{"text": "the cab"}\n')
    assert found["sources"][0]["source"] == "<stdin>"
    assert found["sources"][0]["rows"][0]["runs"] == [
        {"text": "the", "is_label": False, "n_tokens": 1},
        {"text": " cab", "is_label": True, "n_tokens": 3},
    ]
