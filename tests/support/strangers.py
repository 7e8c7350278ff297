"""Models that come with code of their own: each leaves a mark where its code is run."""

import json

from models import save_tiny

CODE = """
from pathlib import Path

from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

Path({mark!r}).touch()


class StrangeConfig(LlamaConfig):
    model_type = {kind!r}


class StrangeModel(LlamaForCausalLM):
    config_class = StrangeConfig


class StrangeTokenizer(PreTrainedTokenizerFast):
    pass
"""


def edit(path, **changes):
    """Change fields of a JSON file."""
    document = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(document | changes), "utf-8")


def save_strange_model(directory, mark, *, kind="strange"):
    """A tiny Llama under a name that transformers does not know, so that it needs its own code."""
    save_tiny(directory, "llama")
    (directory / "modeling_strange.py").write_text(CODE.format(mark=str(mark), kind=kind), "utf-8")
    edit(
        directory / "config.json",
        model_type=kind,
        architectures=["StrangeModel"],
        auto_map={
            "AutoConfig": "modeling_strange.StrangeConfig",
            "AutoModelForCausalLM": "modeling_strange.StrangeModel",
        },
    )
    return directory


def save_strange_tokenizer(directory, mark):
    """A tiny Llama as it is, with a tokenizer of a class that its own code defines."""
    save_tiny(directory, "llama")
    code = CODE.format(mark=str(mark), kind="strange")
    (directory / "tokenization_strange.py").write_text(code, "utf-8")
    edit(
        directory / "tokenizer_config.json",
        tokenizer_class="StrangeTokenizer",
        auto_map={"AutoTokenizer": [None, "tokenization_strange.StrangeTokenizer"]},
    )
    return directory
