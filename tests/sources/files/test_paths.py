"""What a name stands for: a path, with ~, a pattern, an address, or nothing."""

import json

import pytest
from reading import read

from forvalue_index.exceptions import SourceError, UsageError
from forvalue_index.sources.source import open_sources


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("a.jsonl", "b.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    return tmp_path


def test_the_home_folder_is_found(home):
    assert [source.path for source in open_sources("~/a.jsonl")] == [home / "a.jsonl"]
    assert [row.response for row in read("~/*.jsonl")] == ["a.jsonl", "b.jsonl"]
    assert [row.response for row in read("~")] == ["a.jsonl", "b.jsonl"]


def test_a_file_called_so_comes_before_the_home_folder(home, monkeypatch, tmp_path):
    monkeypatch.chdir(home)
    (home / "~").mkdir()
    (home / "~" / "a.jsonl").write_text('{"text": "odd"}')
    assert [row.response for row in read("~/a.jsonl")] == ["odd"]


def test_splits_and_configurations_of_files_are_refused(home):
    for name in ("~/a.jsonl", "~/*.jsonl"):
        with pytest.raises(UsageError, match=r"--split train: .* has no splits; leave it out"):
            open_sources(name, split="train")
        with pytest.raises(UsageError, match="--config main: only data sets of the hub"):
            open_sources(name, config="main")


def test_what_is_nowhere_is_said(home):
    with pytest.raises(SourceError, match=r"no\.jsonl does not exist: check the path, or pass -"):
        open_sources("~/no.jsonl")
