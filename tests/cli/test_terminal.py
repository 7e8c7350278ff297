"""Nothing that a command prints is a command to the terminal."""

import json
import shutil

import pytest
from commands import refused, run
from hypothesis import given
from hypothesis import strategies as st
from rows import write_jsonl

from forvalue_index.cli.terminal import json_text, without_control

pytest_plugins = ("tiny",)

# The first clears the screen; the second does, too, where a terminal reads 8 bits.
CLEARING, EIGHT_BITS = "\x1b[2J", "\x9b2J"


@given(st.text(st.characters(exclude_categories=())))
def test_json_is_what_it_says_without_control_characters(text):
    written = json_text({"text": text})
    assert json.loads(written) == {"text": text}
    assert without_control(written) == written
    written.encode("utf-8")


@given(st.text(st.characters(exclude_categories=())))
def test_text_without_control_can_be_printed(text):
    printed = without_control(text)
    printed.encode("utf-8")
    assert len(printed) == len(text)
    assert all(c in "\t\n" or c.isprintable() or ord(c) >= 0xA0 for c in printed)


@pytest.mark.parametrize("command", [CLEARING, EIGHT_BITS, "\x7f"])
def test_errors_hold_none(built_index, tmp_path, command):
    data = write_jsonl(tmp_path / "v.jsonl", [{"prompt": "p", command: "x"}])
    for name in (f"no{command}sample", f"@{command}"):
        assert command not in refused("show", built_index, name)
    assert command not in refused("query", built_index, data)
    assert command not in refused("query", built_index, tmp_path / f"no{command}.jsonl")
    assert command not in refused("info", tmp_path / f"no{command}index")


@pytest.mark.parametrize("command", [CLEARING, EIGHT_BITS])
def test_what_an_index_says_holds_none(built_index, tmp_path, command):
    path = shutil.copytree(built_index, tmp_path / "index")
    document = json.loads((path / "index.json").read_text())
    document["settings"]["model"] = f"a{command}model"
    (path / "index.json").write_text(json.dumps(document))
    for options in ([], ["--json"]):
        printed = run("info", path, *options).stdout
        assert "model" in printed
        assert command not in printed
