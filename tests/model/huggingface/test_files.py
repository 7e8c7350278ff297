"""What is read of a model: safetensors and GGUF, and never a pickle."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from models import save_adapter, save_tiny, tiny_model, tiny_tokenizer
from safetensors.torch import load_file
from strangers import edit

from forvalue_index.exceptions import ModelError
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.files import locate_model, without_pickle
from forvalue_index.settings import Settings

CPU = torch.device("cpu")


class Touch:
    """A pickle of this leaves a mark where it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "it-has-run"


@pytest.fixture
def llama(tmp_path):
    return save_tiny(tmp_path / "llama", "llama")


def reason(directory, **options):
    with pytest.raises(ModelError) as error:
        Backbone.load(Settings(model=str(directory), **options), device=CPU)
    said = str(error.value)
    assert "\n" not in said
    return said


def test_a_pickle_alone_is_refused_and_how_to_convert_it_is_said(tmp_path):
    directory = tmp_path / "pickled"
    model = tiny_model("llama")
    directory.mkdir()
    model.config.save_pretrained(directory)
    tiny_tokenizer().save_pretrained(directory)
    torch.save(model.state_dict(), directory / "pytorch_model.bin")
    said = reason(directory)
    assert said.startswith(
        f"{directory} has its weights in pytorch_model.bin, a format that can run code when it is "
        "read, and none in safetensors; if you trust it, convert it once: python -c "
    )
    command = shlex.split(said[said.index("python -c") :])
    command = [sys.executable, *command[1:]]
    command[-1] = command[-1].replace("NEW_DIRECTORY", str(tmp_path / "safe"))
    subprocess.run(command, check=True, capture_output=True)
    converted = Backbone.load(Settings(model=str(tmp_path / "safe"), dtype="float32"), device=CPU)
    assert converted.identity() == Backbone(model, tiny_tokenizer()).identity()


def test_a_pickle_beside_safetensors_is_not_read(llama, mark):
    torch.save(Touch(mark), llama / "pytorch_model.bin")
    Backbone.load(Settings(model=str(llama)), device=CPU)
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model-00001-of-00001.bin", "../elsewhere.bin"])
def test_an_index_of_shards_cannot_name_a_pickle(llama, mark, name):
    """transformers would hand whatever has another suffix than .safetensors to torch.load."""
    torch.save(Touch(mark), llama / name)
    weights = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").rename(llama / "unused.safetensors")
    index = {"metadata": {"total_size": 1}, "weight_map": dict.fromkeys(weights, name)}
    (llama / "model.safetensors.index.json").write_text(json.dumps(index))
    assert reason(llama) == (
        f"{llama} has tensors in a format that can run code when it is read; use a copy of it in "
        "safetensors"
    )
    assert not mark.exists()


def test_a_configuration_cannot_name_a_pickle(llama, mark):
    torch.save(Touch(mark), llama / "adapter_model.bin")
    edit(llama / "config.json", transformers_weights="adapter_model.bin")
    assert "in a format that can run code" in reason(llama)
    assert not mark.exists()


def test_an_adapter_inside_a_model_is_refused(llama, tmp_path):
    """transformers would apply it, and take its adapter_model.bin as well."""
    save_adapter(tmp_path / "adapter", "llama")
    for path in (tmp_path / "adapter").iterdir():
        shutil.copy(path, llama)
    assert reason(llama) == (
        f"{llama} holds a PEFT adapter (adapter_config.json); name the model without it, and the "
        "adapter with --adapter"
    )


def test_pickles_are_read_again_afterwards(tmp_path):
    load = torch.load
    with pytest.raises(ModelError, match="runs/m has tensors"), without_pickle("runs/m"):
        torch.load(tmp_path / "any")
    assert torch.load is load


# On a hub, of which only the list of files is asked.


def on_hub(monkeypatch, *files):
    siblings = [SimpleNamespace(rfilename=name) for name in files]
    found = SimpleNamespace(sha="c0ffee", siblings=siblings)
    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_, **__: found)


def test_files_on_a_hub_are_looked_at_before_one_is_fetched(monkeypatch):
    on_hub(monkeypatch, "config.json", "pytorch_model.bin", "onnx/model.safetensors")
    with pytest.raises(ModelError, match=re.escape("a/b has its weights in pytorch_model.bin")):
        locate_model(Settings(model="a/b"))
    on_hub(monkeypatch, "adapter_config.json", "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"a/b holds a PEFT adapter"):
        locate_model(Settings(model="a/b"))


def test_the_commit_of_a_model_on_a_hub_is_named(monkeypatch):
    on_hub(monkeypatch, "config.json", "pytorch_model.bin", "model.safetensors")
    assert locate_model(Settings(model="a/b")).revision == "c0ffee"
    assert locate_model(Settings(model="a/b", revision="v1")).revision == "v1"
