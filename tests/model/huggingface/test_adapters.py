"""Adapters from strangers: nothing of them is run, and nothing but them is read."""

import contextlib
import shlex
import subprocess
import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import EntryNotFoundError
from models import save_adapter, tiny_model
from safetensors.torch import load_file
from strangers import edit

from forvalue_index.exceptions import ForValueError, MissingDependencyError, ModelError
from forvalue_index.model.huggingface.adapters import KINDS, attached_lora, merge_adapter


@pytest.fixture
def adapter(tmp_path):
    save_adapter(tmp_path / "adapter", "llama")
    return tmp_path / "adapter"


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*arguments, **_):
        raise AssertionError(f"asks the hub for {arguments}")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refuse)
    monkeypatch.setattr("peft.config.hf_hub_download", refuse)
    monkeypatch.setattr("peft.utils.save_and_load.hf_hub_download", refuse)
    monkeypatch.setattr("peft.utils.save_and_load.file_exists", refuse)


def reason(adapter):
    with pytest.raises(ModelError) as error:
        merge_adapter(tiny_model("llama"), str(adapter))
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(str(adapter))
    return said.removeprefix(str(adapter))


def pickled(adapter):
    """The weights as older versions of PEFT wrote them."""
    weights = adapter / "adapter_model.safetensors"
    torch.save(load_file(weights), adapter / "adapter_model.bin")
    weights.unlink()


def test_a_pickle_alone_is_refused_and_how_to_convert_it_is_said(adapter):
    merged = merge_adapter(tiny_model("llama"), str(adapter)).state_dict()
    pickled(adapter)
    said = reason(adapter)
    assert said.startswith(
        " has no adapter_model.safetensors, and adapter_model.bin can run code when it is read; if "
        "you trust it, convert it once, in its directory: python -c "
    )
    command = [sys.executable, *shlex.split(said[said.index("python -c") :])[1:]]
    subprocess.run(command, check=True, cwd=adapter)
    converted = merge_adapter(tiny_model("llama"), str(adapter)).state_dict()
    torch.testing.assert_close(converted, merged)


def test_no_other_place_than_the_adapter_is_asked(adapter, no_network):
    edit(
        adapter / "adapter_config.json",
        base_model_name_or_path="someone/else",
        revision="main",
        auto_mapping={"base_model_class": "Popen", "parent_library": "antigravity"},
    )
    merge_adapter(tiny_model("llama"), str(adapter))
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("kind", ["XLORA", "SHADOW", "PROMPT_TUNING", "ADAPTION_PROMPT", "X", None])
def test_kinds_that_cannot_be_merged_are_refused_unread(adapter, no_network, kind):
    """X-LoRA and Shadow fetch more models, prompt tuning a tokenizer."""
    edit(adapter / "adapter_config.json", peft_type=kind, shadow_model="someone/else")
    said = reason(adapter)
    assert said.startswith(f" is an adapter of kind {kind!r}, which cannot be merged into a model")


def test_kinds_that_are_taken_are_known_to_peft():
    from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING

    known = {kind.value: tuner for kind, tuner in PEFT_TYPE_TO_TUNER_MAPPING.items()}
    assert all(hasattr(known[kind], "merge_and_unload") for kind in KINDS)


def test_a_module_to_import_is_refused(adapter):
    edit(adapter / "adapter_config.json", megatron_config={"a": 1}, megatron_core="antigravity")
    assert reason(adapter) == (
        " asks for the module 'antigravity' to be run (megatron_config); use an adapter without it"
    )
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize("name", ["corda", "eva", "lora_ga", "loftq"])
def test_initialisations_read_no_file(adapter, no_network, monkeypatch, name):
    """Some keep what they need in a pickle. Whether PEFT takes them or not, it reads none."""
    edit(
        adapter / "adapter_config.json",
        init_lora_weights=name,
        corda_config={"cache_file": "a.pt", "covariance_file": "b.pt"},
        lora_ga_config={"cache_file": "a.pt"},
        loftq_config={"loftq_bits": 4},
    )
    asked = []
    monkeypatch.setattr(torch, "load", lambda *a, **_: asked.append(a))
    monkeypatch.setattr(
        "forvalue_index.model.huggingface.adapters.without_pickle", contextlib.nullcontext
    )
    with contextlib.suppress(ForValueError):
        merge_adapter(tiny_model("llama"), str(adapter))
    assert not asked


def test_what_is_no_adapter(adapter, tmp_path):
    assert reason(tmp_path / "none") == ": there is no such adapter directory; check the path"
    (adapter / "adapter_config.json").write_text("{")
    assert "cannot be loaded" in reason(adapter)
    (adapter / "adapter_config.json").write_text("[]")
    assert "cannot be loaded" in reason(adapter)
    (adapter / "adapter_config.json").unlink()
    assert reason(adapter) == " has no adapter_config.json, so it is no adapter; check the path"


# On a hub.


def on_hub(monkeypatch, directory):
    def fetch(name, file, **_):
        assert name == "a/b"
        if not (directory / file).exists():
            raise EntryNotFoundError(f"404: {file}")
        return str(directory / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fetch)


def test_an_adapter_on_a_hub(adapter, monkeypatch):
    on_hub(monkeypatch, adapter)
    merged = merge_adapter(tiny_model("llama"), "a/b").state_dict()
    torch.testing.assert_close(
        merged, merge_adapter(tiny_model("llama"), str(adapter)).state_dict()
    )


def test_a_pickle_on_a_hub_is_not_fetched(adapter, monkeypatch):
    pickled(adapter)
    on_hub(monkeypatch, adapter)
    assert reason("a/b").startswith(" has no adapter_model.safetensors, and adapter_model.bin can ")


def test_a_name_that_no_hub_has(tmp_path, monkeypatch):
    on_hub(monkeypatch, tmp_path)
    assert reason("a/b") == (
        " is neither a directory here nor an adapter on the hub that can be read: "
        "404: adapter_config.json"
    )


def test_a_new_lora_has_no_effect_at_first_and_leaves_nothing_behind():
    model, plain = tiny_model("gpt2"), tiny_model("gpt2")
    token_ids = torch.arange(5, 25)[None]
    state = torch.random.get_rng_state()
    with attached_lora(model, rank=3) as parameters:
        # Four linear layers a block, two matrices each; GPT-2 writes them as convolutions.
        assert len(parameters) == 2 * 4 * 2
        assert torch.equal(model(token_ids).logits, plain(token_ids).logits)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def test_a_lora_without_peft_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    wanted = r"LoRA of rank 3 needs PEFT; pip install 'forvalue-index\[models\]'"
    with pytest.raises(MissingDependencyError, match=wanted), attached_lora(None, rank=3):
        pass
