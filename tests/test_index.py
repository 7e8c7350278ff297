import shutil

import pytest
from models import save_tiny
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import (
    BrokenIndexError,
    ForValueError,
    ModelError,
    SettingsMismatchError,
    UsageError,
)

pytest_plugins = ("tiny",)


def test_the_whole_of_it_as_the_readme_shows_it(tmp_path, model_dir):
    train = write_jsonl(tmp_path / "train.jsonl", rows(12))
    validation = write_jsonl(tmp_path / "validation.jsonl", rows(2))
    index = ValuationIndex.create(tmp_path / "runs" / "a", model=str(model_dir))
    assert index.add(str(train)).added == 12
    result = index.query(str(validation), top=10)
    assert result.helpful[0].score > result.helpful[1].score
    assert result.helpful[0].sample.response == rows(12)[result.helpful[0].id]["response"]
    assert result.helpful[0].id in (0, 1), "a sample helps itself most"
    index.close()
    with ValuationIndex.open(tmp_path / "runs" / "a") as again:
        assert again.query(validation, top=10).helpful == result.helpful


def test_settings_are_resolved_against_the_model(index):
    settings = index.manifest.settings
    assert (settings.template, settings.max_length, settings.dtype) == ("chat", 512, "float32")
    assert (settings.row_dtype, settings.labels, settings.revision) == (
        "bfloat16",
        "response",
        None,
    )
    assert (index.manifest.model.vocab_size, index.manifest.model.hidden_size) == (288, 32)


def test_creating_what_is_there_opens_it(index, model_dir):
    index.add(rows(3))
    path = index.storage.path
    for settings in ({}, {"template": "chat", "max_length": 512}):
        same = {"dim": 256, "geometry": "raw"} | settings
        with ValuationIndex.create(path, str(model_dir), **same) as again:
            assert len(again) == 3
            assert again.manifest == index.manifest
            assert again.model._reader is None, "nothing needs the model yet"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"dim": 128}, "dim 256, and this asks for 128"),
        ({"dim": 256, "seed": 3}, "seed 0, and this asks for 3"),
        ({"dim": 256, "labels": "all"}, "labels 'response', and this asks for 'all'"),
        ({"dim": 256, "template": "plain"}, "template 'chat', and this asks for 'plain'"),
        ({"dim": 256, "max_length": 64}, "max_length 512, and this asks for 64"),
        ({"dim": 256, "row_dtype": "float32"}, "row_dtype 'bfloat16', and this asks for"),
        ({"dim": 256, "dtype": "bfloat16"}, "dtype 'float32', and this asks for 'bfloat16'"),
        ({"dim": 256, "geometry": "fisher"}, "geometry 'raw', and this asks for 'fisher'"),
        ({"dim": 256, "geometry": "raw", "damping": 0.5}, "damping 1.0, and this asks for 0.5"),
        ({"dim": 256, "geometry": "raw", "hardest": 0.5}, "hardest None, and this asks for 0.5"),
        ({"dim": 256, "geometry": "raw", "max_label_tokens": 9}, "max_label_tokens None, and th"),
    ],
)
def test_other_settings_are_refused(index, model_dir, settings, said):
    with pytest.raises(SettingsMismatchError, match=said):
        ValuationIndex.create(index.storage.path, str(model_dir), **settings)


def test_another_place_for_the_catalog_is_refused(index, model_dir):
    url = "postgresql+psycopg://someone@nowhere/database"
    with pytest.raises(UsageError, match="has its catalog at sqlite, and this asks for another"):
        ValuationIndex.create(
            index.storage.path, str(model_dir), dim=256, geometry="raw", catalog=url
        )


@pytest.mark.parametrize(
    ("settings", "error", "said"),
    [
        ({"dim": 3}, UsageError, "--dim cannot be 3"),
        ({"max_length": 513}, UsageError, r"--max-length 513: .* reads 512 tokens at most"),
        ({"model": "/no/such/model"}, ModelError, "there is no such model directory"),
        ({"catalog": "nonsense"}, UsageError, "the scheme nonsense is not allowed; use sqlite"),
    ],
)
def test_creation_that_fails_leaves_no_index(tmp_path, model_dir, settings, error, said):
    path = tmp_path / "index"
    with pytest.raises(error, match=said):
        ValuationIndex.create(path, **({"model": str(model_dir)} | settings))
    with pytest.raises(BrokenIndexError):
        ValuationIndex.open(path)
    ValuationIndex.create(path, str(model_dir), dim=256).close()


def test_a_chat_template_is_asked_for_and_there_is_none(tmp_path, plain_model_dir):
    with pytest.raises(UsageError, match=r"--template chat: the tokenizer of .* has no chat templ"):
        ValuationIndex.create(tmp_path / "index", str(plain_model_dir), template="chat")
    with ValuationIndex.create(tmp_path / "index", str(plain_model_dir)) as index:
        assert index.manifest.settings.template == "plain"
        assert index.add(rows(2)).added == 2


def test_a_model_whose_weights_changed_is_refused(tmp_path):
    """Rows of two models do not mix, though everything else about the models agrees."""
    model = save_tiny(tmp_path / "model", "llama")
    with ValuationIndex.create(tmp_path / "index", str(model), dim=256) as index:
        index.add(rows(2))
    save_tiny(tmp_path / "model", "llama", seed=1)
    with ValuationIndex.open(tmp_path / "index") as index:
        for use in (index.add, index.query, index.values):
            with pytest.raises(SettingsMismatchError, match="its weights digest is"):
                use(rows(3))
        assert len(index) == 2


def test_a_model_whose_template_changed_is_refused(tmp_path):
    model = save_tiny(tmp_path / "model", "llama")
    with ValuationIndex.create(tmp_path / "index", str(model), dim=256) as index:
        index.add(rows(2))
    save_tiny(tmp_path / "model", "llama", chat_template="{{ messages[0].content }}")
    with (
        ValuationIndex.open(tmp_path / "index") as index,
        pytest.raises(SettingsMismatchError, match="its tokenizer digest is"),
    ):
        index.query(rows(2))


def test_a_model_that_moved_is_found_where_it_is_said_to_be(tmp_path, other_model_dir):
    model = save_tiny(tmp_path / "model", "llama")
    with ValuationIndex.create(tmp_path / "index", str(model), dim=256) as index:
        index.add(rows(4))
        expected = index.query(rows(2)).helpful
    moved = shutil.move(model, tmp_path / "elsewhere")
    with (
        ValuationIndex.open(tmp_path / "index") as index,
        pytest.raises(ModelError, match="there is no such model directory"),
    ):
        index.query(rows(2))
    with ValuationIndex.open(tmp_path / "index", model=str(moved)) as index:
        assert index.query(rows(2)).helpful == expected
        assert index.add(rows(5)).added == 1
    with (
        ValuationIndex.open(tmp_path / "index", model=str(other_model_dir)) as index,
        pytest.raises(SettingsMismatchError, match="its weights digest is"),
    ):
        index.query(rows(2))


def test_a_model_given_by_a_relative_path_is_found_from_anywhere(tmp_path, model_dir, monkeypatch):
    monkeypatch.chdir(model_dir.parent)
    with ValuationIndex.create(tmp_path / "index", model_dir.name, dim=256) as index:
        assert index.manifest.settings.model == str(model_dir)
    monkeypatch.chdir(tmp_path)
    with ValuationIndex.open("index") as index:
        monkeypatch.chdir("/")
        assert index.add(rows(3)).added == 3
        assert index.query(rows(3)).searched == 3


def test_reading_needs_no_model(tmp_path):
    model = save_tiny(tmp_path / "model", "llama")
    with ValuationIndex.create(tmp_path / "index", str(model), dim=256) as index:
        index.add(rows(6))
    shutil.rmtree(model)
    with ValuationIndex.open(tmp_path / "index") as index:
        assert len(index) == index.count() == index.info().samples == 6
        assert index.version == 1
        assert index.count("metadata.topic = 'law'") == 2
        laws = index.list_samples("metadata.topic = 'law'", limit=1, offset=1)
        assert [stored.sample.key for stored in laws] == ["r3"]
        assert index.sample("r3") == index.sample(3) == index.sample("3") == laws[0]
        assert laws[0].sample.metadata == {"topic": "law"}
        with pytest.raises(ForValueError, match="no sample with the key or id 'nobody'"):
            index.sample("nobody")


def test_a_sample_named_like_another_ones_number_comes_first(index):
    index.add([{"id": "1", "text": "the name is one"}, {"id": "x", "text": "the number is one"}])
    assert index.sample("1").sample.response == "the name is one"
    assert index.sample("x").id == 1


def test_an_unknown_way_with_bad_rows_is_refused(index):
    for use in (index.add, index.query, index.values):
        with pytest.raises(UsageError, match="--on-bad cannot be 'ignore'; use one of fail, skip"):
            use(rows(1), on_bad="ignore")


def test_columns_are_mapped(index):
    data = [{"Q": row["prompt"], "A": row["response"], "nr": i} for i, row in enumerate(rows(3))]
    columns = {"prompt": "Q", "response": "A", "id": "nr"}
    assert index.add(data, columns=columns).added == 3
    assert index.sample("2").sample.response == rows(3)[2]["response"]
    assert index.query(data, columns=columns, top=1).validation_samples == 3
    assert len(index.values(data, columns=columns).ids) == 3


def test_the_search_index_is_kept_until_the_index_changes(index):
    index.add(rows(4))
    index.query(rows(1))
    first = index._search._held
    index.query(rows(2))
    assert index._search._held is first
    with ValuationIndex.open(index.storage.path) as other:
        other.add(rows(5))
    assert index.query(rows(1)).searched == 5


def test_values_refuse_a_file_before_the_model_is_loaded(filled, tmp_path):
    for name, said in (("v.xlsx", "use one of"), ("none/v.csv", "is not a directory")):
        with pytest.raises(UsageError, match=said):
            filled.values(rows(2), output=tmp_path / name)
    assert filled.model._reader is None


def test_there_is_nothing_else_in_the_package():
    import forvalue_index

    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        getattr(forvalue_index, "Nothing")  # noqa: B009


@pytest.mark.parametrize("address", ["sqlite:///shared.sqlite", "sqlite://", "sqlite:///:memory:"])
def test_a_catalog_in_a_file_elsewhere_is_refused(model_dir, tmp_path, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="use sqlite, which lies within the index"):
        ValuationIndex.create("a", str(model_dir), catalog=address)
    assert list(tmp_path.iterdir()) == []


def test_a_local_model_has_no_revisions(model_dir, tmp_path):
    """It was ignored, and the same command then failed the second time."""
    with pytest.raises(UsageError, match=r"--revision abc: .* is local and has no revisions"):
        ValuationIndex.create(tmp_path / "a", str(model_dir), revision="abc")
