"""Folders of shards: one format, one split, in the order of their numbers."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reading import read

from forvalue_index.exceptions import SourceError, UsageError
from forvalue_index.sources.files.folders import shards, split_of
from forvalue_index.sources.source import open_sources


@pytest.fixture
def folder(tmp_path):
    def make(*names):
        for name in names:
            path = tmp_path / "f" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if name.endswith(".parquet"):
                pq.write_table(pa.table({"text": [name]}), path)
            else:
                path.write_text(json.dumps({"text": name}))
        return tmp_path / "f"

    return make


def responses(path, **options):
    return [row.response for row in read(path, **options)]


def test_shards_come_in_natural_order_each_a_source(folder):
    path = folder("part-10.jsonl", "part-2.jsonl", "part-1.jsonl", ".part.crc", "_SUCCESS")
    assert responses(path) == ["part-1.jsonl", "part-2.jsonl", "part-10.jsonl"]
    assert [source.path for source in open_sources(path)] == [
        path / f"part-{number}.jsonl" for number in (1, 2, 10)
    ]


TRAIN = ["train_sft-00000-of-00002.parquet", "train_sft-00001-of-00002.parquet"]


def test_one_split_of_several(folder):
    path = folder(*TRAIN, "test_sft-00000-of-00001.parquet")
    with pytest.raises(SourceError, match="the splits test_sft, train_sft: choose one"):
        open_sources(path)
    assert responses(path, split="train_sft") == TRAIN
    with pytest.raises(SourceError, match="no split 'dev': its files are named after test_sft"):
        open_sources(path, split="dev")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a.jsonl", "b.parquet"), r"not of one format alone: a\.jsonl, b\.parquet; name its"),
        (("a.jsonl", "notes.rst"), r"not of one format alone: notes\.rst, a\.jsonl; name its"),
        (("a.jsonl", "a.txt"), r"not of one format alone: a\.txt, a\.jsonl; name its"),
        (("a.jsonl", "b.txt", "c.txt"), r"not of one format alone: b\.txt, c\.txt, a\.jsonl"),
        (("a.jsonl", "images/a.png"), r"not of one format alone: images/, a\.jsonl; name its"),
        (("README.md", "dataset_infos.json"), "is a directory without a data file"),
        (("a.jsonl", "a.jsonl.gz"), "not of one format alone"),
        (("a.txt",), r"not of one format alone: a\.txt; name one"),
        (("train.jsonl", "test.jsonl"), "the splits test, train: choose one"),
        (("train.jsonl", "more.jsonl"), r"the splits train, beside more\.jsonl: choose one"),
        (("train-00000-of-00003.parquet",), "lacks its shards 00001, 00002; complete it"),
        (
            ("test.jsonl",),
            "files of the split test alone: say that it is meant, as in --split test",
        ),
        (("test_sft-00000-of-00001.parquet",), "of the split test_sft alone: .* --split test_sft"),
        (("test/a.jsonl",), "holds folders of the split test alone: .* --split test"),
        (("train/a.jsonl", "test/a.jsonl"), "holds folders of the splits test, train: choose one"),
        (
            ("train/a.jsonl", "training/a.jsonl"),
            "data in several folders: train, training; name one",
        ),
        (("main/a.jsonl", "more/a.jsonl"), "data in several folders: main, more; name one"),
        (("data/a.jsonl", "more/a.jsonl"), "data in several folders: data, more; name one"),
        (("images/a.png",), "is a directory without a data file"),
        ((".hidden",), "is a directory without a data file"),
    ],
)
def test_folders_that_are_refused_with_what_is_there(folder, names, told):
    with pytest.raises(SourceError, match=told):
        open_sources(folder(*names))


def test_a_split_where_there_is_none(folder):
    path = folder("a.jsonl")
    with pytest.raises(SourceError, match="has no split 'train': its files name none"):
        open_sources(path, split="train")
    with pytest.raises(UsageError, match=r"--split train: .*a\.jsonl has no splits; leave it out"):
        open_sources(path / "a.jsonl", split="train")


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("train.jsonl", "train"),
        ("my_training_set.csv", "train"),
        ("dev-1.parquet", "validation"),
        ("gsm8k-test.jsonl", "test"),
        ("train_prefs-00000-of-00001-0a1b2c3d4e5f6789.parquet", "train_prefs"),
        ("part-0001.parquet", None),
        ("attestation.jsonl", None),
        ("trainer.jsonl", None),
    ],
)
def test_splits_are_told_by_words(name, split):
    assert split_of(name) == split


def test_other_words_for_a_split():
    def listed(_):
        return {"dev.jsonl": False, "train.jsonl": False}

    assert shards("f", listed, "validation") == ["dev.jsonl"]
    assert shards("f", listed, "dev") == ["dev.jsonl"]


def test_one_split_alone(folder):
    assert responses(folder("train.jsonl")) == ["train.jsonl"]
    (folder() / "train.jsonl").rename(folder() / "test.jsonl")
    assert responses(folder(), split="test") == ["train.jsonl"]


def test_folders_named_after_splits(folder):
    path = folder("train/a.jsonl", "val/test-1.jsonl", "val/b.jsonl", "README.md", "images/a.png")
    assert responses(path, split="train") == responses(path / "train") == ["train/a.jsonl"]
    assert responses(path, split="validation") == responses(path, split="dev") == ["val/b.jsonl"]
    with pytest.raises(SourceError, match="no split 'test': its folders are named after train, v"):
        open_sources(path, split="test")


def test_a_clone_of_a_repository_of_data(folder):
    names = [f"data/{name}" for name in TRAIN]
    path = folder(*names, "README.md", ".gitattributes", "LICENSE", "croissant.json", "img/a.png")
    assert responses(path) == responses(f"{path}/", split="train_sft") == names
    folder("data/test-00000-of-00001.parquet")
    with pytest.raises(SourceError, match=r"f/data holds files of the splits test, train_sft: ch"):
        open_sources(path)


def test_documentation_is_no_data(folder):
    path = folder("a.jsonl", "README.md", "LICENSE.txt", "dataset_infos.json", "requirements.txt")
    assert responses(path) == ["a.jsonl"]
    assert responses(folder("licenses.jsonl")) == ["a.jsonl", "licenses.jsonl"]
