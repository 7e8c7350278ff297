"""What a model is read with is the same with its weights and without them."""

import pytest
import torch
from models import KINDS, save_tiny
from vision_models import save_tiny_vision

from forvalue_index.exceptions import ModelError
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.digests import tokenizer_digest
from forvalue_index.model.huggingface.tokenizers import ModelTokenizer
from forvalue_index.settings import Settings


def both(path):
    """The model loaded whole, and then, with its weights gone, what it is read with."""
    settings = Settings(str(path), dtype="float32")
    whole = Backbone.load(settings, device=torch.device("cpu"))
    (path / "model.safetensors").unlink()
    return whole, ModelTokenizer.load(settings)


def assert_alike(whole, read):
    identity = whole.identity()
    assert read.vocab_size == identity.vocab_size
    assert tokenizer_digest(read.tokenizer) == identity.tokenizer_digest
    for name in ("context", "placeholders", "replaced_tokens"):
        assert getattr(read, name) == getattr(whole, name), name


@pytest.mark.parametrize("kind", KINDS)
def test_text_models(tmp_path, kind):
    whole, read = both(save_tiny(tmp_path, kind))
    assert_alike(whole, read)
    assert read.processor is None
    assert read.placeholders == set()


@pytest.mark.parametrize("kind", ["llava", "qwen2-vl"])
def test_vision_models(tmp_path, kind):
    whole, read = both(save_tiny_vision(tmp_path, kind))
    assert_alike(whole, read)
    assert read.processor is not None
    assert read.replaced_tokens <= read.placeholders != set()


def test_a_damaged_configuration_is_a_line(tmp_path):
    save_tiny(tmp_path, "llama")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded as a language model"):
        ModelTokenizer.load(Settings(str(tmp_path)))
