"""Saved data sets, those of a hub that runs here, and those in memory; splits never mix."""

import json
import os
import subprocess
import sys

import datasets
import pyarrow as pa
import pytest
from local_hub import local_hub
from reading import PAIRS, ROWS, metadata, pairs, read

from forvalue_index.exceptions import SourceError, UsageError
from forvalue_index.sources.files.dataset_library import hub_id
from forvalue_index.sources.source import open_sources

DATA = datasets.Dataset.from_list(ROWS)


@pytest.fixture
def saved(tmp_path, capfd):
    datasets.DatasetDict(train=DATA, test=DATA.select([0])).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def test_a_saved_test_split_never_slips_in(saved):
    """Training and test data went into one index."""
    told = r"has the splits train, test, which belong in no one index: .* --split train"
    for name in (saved, f"{saved}/*", f"{saved}/t*", f"{saved}/**/*.arrow", f"{saved}/t*/d*.arrow"):
        with pytest.raises(SourceError, match=told):
            open_sources(name)
    assert pairs(saved, split="train") == pairs(saved / "train") == PAIRS
    assert pairs(f"{saved}/train/*.arrow") == PAIRS
    assert pairs(saved, split="test") == PAIRS[:1]
    with pytest.raises(SourceError, match="has no split 'dev': it has train, test"):
        open_sources(saved, split="dev")
    with pytest.raises(UsageError, match="--config main: only data sets of the hub have"):
        open_sources(saved, split="train", config="main")


def test_a_split_of_what_is_in_memory():
    for splits in (
        datasets.DatasetDict(train=DATA, test=DATA.select([0])),
        datasets.IterableDatasetDict(train=DATA.to_iterable_dataset()),
        {"train": ROWS},
    ):
        with pytest.raises(SourceError, match="is not one data set: choose a split, as in split="):
            open_sources(splits)
        assert pairs(splits, split="train") == PAIRS
        with pytest.raises(SourceError, match="has no split 'dev': it has train"):
            open_sources(splits, split="dev")
    with pytest.raises(UsageError, match="--split train: a Dataset has no splits"):
        open_sources(DATA, split="train")


def test_data_in_memory_say_that_they_come_from_arrow():
    for data in (DATA, DATA.to_iterable_dataset()):
        (source,) = open_sources(data)
        assert source.origin == "arrow"
        assert source.rereadable
        assert pairs(data) == PAIRS
    assert open_sources(ROWS)[0].origin == "json"


def test_a_format_of_the_user_counts():
    upper = DATA.with_transform(lambda batch: {"text": [t.upper() for t in batch["topic"]]})
    assert [row.response for row in read(upper)] == ["X", "Y"]


def test_dates_past_the_range_of_python():
    table = pa.table({"text": ["a"], "day": pa.array([10**8], pa.int32()).cast(pa.date32())})
    assert metadata(datasets.Dataset(table)) == [{"day": "100000000 (date32[day])"}]


README = """---
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train.jsonl
  - split: test
    path: main/test.jsonl
- config_name: other
  data_files: other.jsonl
---
"""
FILES = {
    "README.md": README.encode(),
    "main/train.jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode(),
    "main/test.jsonl": json.dumps(ROWS[0]).encode(),
    "other.jsonl": b'{"text": "T"}\n',
}
# The libraries read the address of the hub once, when they are imported.
READ = """
import json, sys
from forvalue_index.exceptions import ForValueError
from forvalue_index.sources.source import open_sources

for arguments in json.loads(sys.argv[1]):
    name, options = arguments
    try:
        (source,) = open_sources(name, **options)
        rows = [row.response for row in source.samples()]
        print(json.dumps([source.name, source.origin == "arrow", rows]))
    except ForValueError as error:
        print(json.dumps(str(error)))
"""


def read_hub(endpoint, home, *asked):
    facts = {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", READ, json.dumps(asked)],
        capture_output=True,
        text=True,
        env=os.environ | facts,
        check=True,
    )
    assert done.stderr == ""
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_data_sets_of_the_hub(tmp_path):
    with local_hub("o/n", FILES) as endpoint:
        found = read_hub(
            endpoint,
            tmp_path,
            ("o/n", {"config": "main", "split": "train"}),
            ("hf://datasets/o/n", {"config": "other", "split": "train"}),
            ("hf://datasets/o/n/main/test.jsonl", {}),
            ("hf://datasets/o/n/main", {"split": "train"}),
            ("o/n", {}),
            ("o/n", {"config": "main"}),
            ("o/n", {"config": "main", "split": "dev"}),
            ("o/none", {"split": "train"}),
        )
    answers = [row["response"] for row in ROWS]
    assert found[:4] == [
        ["o/n/main/train", True, answers],
        ["o/n/other/train", True, ["T"]],
        ["hf://datasets/o/n/main/test.jsonl", False, answers[:1]],
        ["hf://datasets/o/n/main/train.jsonl", False, answers],
    ]
    assert found[4] == "o/n has the configurations main, other: choose one, as in --config main"
    assert found[5].startswith("o/n has the splits train, test, which belong in no one index: ")
    assert "as a data set of the Hugging Face hub, cannot be read: Unknown split" in found[6]
    assert found[7].startswith("o/none, as a data set of the Hugging Face hub, does not exist")


def test_names_of_data_sets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert hub_id("tatsu-lab/alpaca") == hub_id("hf://datasets/tatsu-lab/alpaca")
    assert hub_id("hf://datasets/here/n") == "here/n"
    for name in ("here/n", "o/n/x", "o/d.jsonl", "./n", "o", "/o/n", "~/n", "o/*"):
        assert hub_id(name) is None
    with pytest.raises(SourceError, match="here/n does not exist: check the path"):
        open_sources("here/n")
