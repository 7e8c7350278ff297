"""Chat templates of adapters and in files are used, kept in the index and part of what it is."""

import json

import pytest
from models import CHATML, save_adapter

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import SettingsMismatchError, UsageError
from forvalue_index.model.huggingface.templates import adapter_template
from forvalue_index.sources.columns import to_sample

pytest_plugins = ("tiny",)

OTHER = CHATML.replace("{{ m.role }}", "{{ m.role | upper }}")
THIRD = CHATML.replace("{{ m.role }}", "- {{ m.role }}")


def create(path, model_dir, **options):
    return ValuationIndex.create(path, str(model_dir), dim=64, geometry="raw", **options)


def said(index):
    """What the model of an index reads of a pair."""
    reader = index.model.reader
    prepared = reader.prepare(to_sample({"prompt": "a", "response": "b"}))
    return reader.decode(prepared.encoded.token_ids.tolist())


@pytest.fixture
def template_file(tmp_path):
    file = tmp_path / "other.jinja"
    file.write_text(OTHER, encoding="utf-8")
    return file


def test_a_template_in_a_file_is_used_and_fingerprinted(tmp_path, model_dir, template_file):
    with create(tmp_path / "own", model_dir) as own:
        assert said(own).startswith("<|im_start|>user\na")
        fingerprint = own.manifest.fingerprint
    with create(tmp_path / "other", model_dir, chat_template=template_file) as other:
        assert said(other).startswith("<|im_start|>USER\na")
        assert other.manifest.fingerprint != fingerprint


def test_an_index_does_not_depend_on_the_file_of_its_template(tmp_path, model_dir, template_file):
    create(tmp_path / "index", model_dir, chat_template=template_file).close()
    template_file.unlink()
    with ValuationIndex.open(tmp_path / "index") as index:
        assert said(index).startswith("<|im_start|>USER\na")


def test_another_template_is_another_index(tmp_path, model_dir, template_file):
    create(tmp_path / "index", model_dir, chat_template=template_file).close()
    create(tmp_path / "index", model_dir, chat_template=template_file).close()
    create(tmp_path / "index", model_dir).close()
    third = tmp_path / "third.jinja"
    third.write_text(THIRD, encoding="utf-8")
    with pytest.raises(SettingsMismatchError, match="was built with chat_template '"):
        create(tmp_path / "index", model_dir, chat_template=third)


@pytest.mark.parametrize("kind", ["jinja", "config", "named"])
def test_a_template_that_comes_with_an_adapter_is_used(tmp_path, model_dir, kind):
    adapter = tmp_path / "adapter"
    save_adapter(adapter, "llama")
    if kind == "jinja":
        (adapter / "chat_template.jinja").write_text(OTHER, encoding="utf-8")
    else:
        named = [{"name": "tool_use", "template": CHATML}, {"name": "default", "template": OTHER}]
        config = {"chat_template": OTHER if kind == "config" else named}
        (adapter / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with create(tmp_path / "index", model_dir, adapter=str(adapter)) as index:
        assert said(index).startswith("<|im_start|>USER\na")
    for file in ("chat_template.jinja", "tokenizer_config.json"):
        (adapter / file).unlink(missing_ok=True)
    with ValuationIndex.open(tmp_path / "index") as index:
        assert said(index).startswith("<|im_start|>USER\na")


def test_a_template_in_a_file_comes_before_that_of_an_adapter(tmp_path, model_dir, template_file):
    adapter = tmp_path / "adapter"
    save_adapter(adapter, "llama")
    (adapter / "chat_template.jinja").write_text(THIRD, encoding="utf-8")
    options = {"adapter": str(adapter), "chat_template": template_file}
    with create(tmp_path / "index", model_dir, **options) as index:
        assert said(index).startswith("<|im_start|>USER\na")


def test_an_adapter_without_a_template_has_none(tmp_path):
    adapter = tmp_path / "adapter"
    save_adapter(adapter, "llama")
    assert adapter_template(str(adapter)) is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        (b" \n", "is empty"),
        (b"\xff", "cannot be read"),
        (b"{% for %}", "the chat template is not Jinja (line 1: "),
    ],
)
def test_a_file_that_is_no_template_is_refused(tmp_path, model_dir, content, said):
    file = tmp_path / "template.jinja"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UsageError) as error:
        create(tmp_path / "index", model_dir, chat_template=file)
    assert said in str(error.value)
    assert not (tmp_path / "index").exists()


def test_a_template_is_not_used_for_plain_text(tmp_path, model_dir, template_file):
    with pytest.raises(UsageError, match="--chat-template is not used with --template plain"):
        create(tmp_path / "index", model_dir, chat_template=template_file, template="plain")
