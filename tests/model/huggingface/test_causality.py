"""Models that see the token they are to be scored by are refused before an index is made."""

import numpy as np
import pytest
import torch
import transformers
from models import HIDDEN, KINDS, VOCAB, save_tiny, tiny_model, tiny_tokenizer
from transformers import AutoModelForCausalLM

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import ModelError
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.causality import (
    change_by_later_tokens,
    refuse_looking_ahead,
)

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
_SMALL = {"vocab_size": VOCAB, "initializer_range": 0.2}
_BERT = {"hidden_size": HIDDEN, "intermediate_size": 48, "num_attention_heads": 4}
# Recurrent, of experts, with windows, with attention in chunks: all from left to right.
CAUSAL = (*KINDS, "recurrent-gemma", "xlstm", "mpt", "rwkv")
AHEAD = {
    "XLNet": {"d_model": HIDDEN, "n_layer": 2, "n_head": 4, "d_inner": 48},
    "BertGeneration": _BERT | {"num_hidden_layers": 2},
    "XLM": {"emb_dim": HIDDEN, "n_layers": 2, "n_heads": 4},
    "CpmAnt": {
        "hidden_size": HIDDEN,
        "num_attention_heads": 4,
        "dim_head": 8,
        "dim_ff": 48,
        "num_hidden_layers": 2,
    },
}


def backbone_of(kind, dtype=torch.float32, **options):
    if kind != "rwkv":
        return Backbone(tiny_model(kind, dtype, **options), tiny_tokenizer(), name="runs/a")
    config = transformers.RwkvConfig(
        vocab_size=VOCAB, hidden_size=HIDDEN, num_hidden_layers=2, attention_hidden_size=HIDDEN
    )
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    return Backbone(model, tiny_tokenizer(), name="runs/a")


def reason(backbone):
    with pytest.raises(ModelError) as raised:
        refuse_looking_ahead(backbone)
    said = str(raised.value)
    assert "\n" not in said
    return said


def with_mask(backbone, monkeypatch, sees):
    """A model whose token i sees token j where `sees(i, j)`; a diffusion model is one like it."""
    forward = backbone._trunk.forward

    def changed(input_ids, attention_mask, **options):
        i = torch.arange(input_ids.shape[1])
        mask = sees(i[:, None], i[None]) & attention_mask[:, None, None].bool()
        return forward(input_ids=input_ids, attention_mask=mask, **options)

    monkeypatch.setattr(backbone._trunk, "forward", changed)
    return backbone


@pytest.mark.parametrize("kind", CAUSAL)
def test_models_that_read_from_left_to_right_pass(kind):
    refuse_looking_ahead(backbone_of(kind))


@pytest.mark.parametrize("kind", ["llama", "mixtral", "qwen3-moe", "gemma3", "llama4", "mamba"])
@pytest.mark.parametrize("dtype", DTYPES[1:])
def test_rounding_is_no_look_ahead(kind, dtype):
    refuse_looking_ahead(backbone_of(kind, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_that_is_told_to_look_ahead(dtype):
    """Embedding models on Gemma are; their logits are those of trunk and head, too."""
    said = reason(backbone_of("gemma3", dtype, use_bidirectional_attention=True))
    assert said.startswith(
        "runs/a: Gemma3ForCausalLM looks ahead: the hidden state before a token moves by "
    )
    assert said.endswith(
        "use a causal model, or a configuration that makes it one (is_decoder, "
        "use_bidirectional_attention)"
    )


@pytest.mark.parametrize("family", AHEAD)
def test_families_that_fill_gaps(family):
    config = getattr(transformers, f"{family}Config")(**_SMALL | AHEAD[family])
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config)
    assert "looks ahead" in reason(Backbone(model, tiny_tokenizer(), name="runs/a"))


@pytest.mark.parametrize(
    "sees",
    [
        lambda i, j: j >= 0,  # LLaDA and Dream see all
        lambda i, j: j <= i + 1,  # the next one alone, which is the label
        lambda i, j: (j - i).abs() <= 2,  # a window to both sides
        *(lambda i, j, n=n: j // n <= i // n for n in (2, 3, 4, 6, 8, 16, 32)),  # block by block
    ],
)
def test_however_far_a_model_looks_ahead(monkeypatch, sees):
    backbone = with_mask(backbone_of("llama"), monkeypatch, sees)
    assert "looks ahead" in reason(backbone)


@pytest.mark.parametrize(
    "sees",
    [
        lambda i, j: j <= i,
        lambda i, j: (j <= i) & (i - j < 3),  # a window
        lambda i, j: (j <= i) & (i // 8 == j // 8),  # a chunk
    ],
)
def test_however_far_a_model_looks_back(monkeypatch, sees):
    refuse_looking_ahead(with_mask(backbone_of("llama"), monkeypatch, sees))


def test_a_model_trained_with_prefixes_that_look_ahead_is_refused_by_its_word():
    """Without being told what the prompt is, it reads from left to right."""
    assert transformers.HrmTextConfig().prefix_lm
    backbone = backbone_of("llama")
    backbone.model.config.prefix_lm = True
    assert "was trained to look ahead within prompts" in reason(backbone)
    assert reason(backbone_of("mpt", attn_config={"prefix_lm": True})) == (
        "runs/a: MptForCausalLM was trained to look ahead within prompts (prefix_lm in its "
        "config.json), which is not done here; use a causal model, or set prefix_lm to false if it "
        "was trained as one"
    )


def test_experts_that_change_their_mind_once_are_no_look_ahead(monkeypatch):
    """In half precision another batch of tokens rounds otherwise, and an expert is exchanged."""
    backbone = backbone_of("llama", torch.bfloat16)
    forward, times = backbone._trunk.forward, []

    def unsteady(**inputs):
        output = forward(**inputs)
        times.append(1)
        if len(times) == 2:
            output.last_hidden_state[:, 16] *= 1.2
        return output

    monkeypatch.setattr(backbone._trunk, "forward", unsteady)
    refuse_looking_ahead(backbone)
    assert len(times) == 4


def test_a_causal_model_is_read_twice(monkeypatch):
    backbone = backbone_of("llama")
    read = []
    backbone._trunk.register_forward_pre_hook(
        lambda _module, _args, given: read.append(given["input_ids"].numel()), with_kwargs=True
    )
    refuse_looking_ahead(backbone)
    assert len(read) == 2
    assert sum(read) <= 64


@pytest.mark.parametrize("vocab_size", [3, 7, 12])
def test_a_small_vocabulary_is_enough(vocab_size, monkeypatch):
    backbone = backbone_of("llama", vocab_size=vocab_size)
    refuse_looking_ahead(backbone)
    assert "looks ahead" in reason(with_mask(backbone, monkeypatch, lambda i, j: j >= 0))


@pytest.mark.parametrize("context", [4, 9, 16])
def test_a_short_context_is_kept_to(context, monkeypatch):
    backbone = backbone_of("gpt2", n_positions=context)
    refuse_looking_ahead(backbone)
    assert "looks ahead" in reason(with_mask(backbone, monkeypatch, lambda i, j: j >= 0))


def test_states_that_overflow_are_said(monkeypatch):
    backbone = backbone_of("llama", torch.float16)
    forward = backbone._trunk.forward

    def overflowing(**inputs):
        output = forward(**inputs)
        output.last_hidden_state[:] = torch.inf
        return output

    monkeypatch.setattr(backbone._trunk, "forward", overflowing)
    assert reason(backbone) == (
        "runs/a: its hidden states of 32 tokens are not finite in torch.float16, so its samples "
        "cannot be valued; use another --dtype"
    )


def test_a_model_that_fails_at_some_length_is_one_line(monkeypatch):
    backbone = backbone_of("llama")

    def fail(**_):
        raise RuntimeError("a step of\nthe wrong sign")

    monkeypatch.setattr(backbone._trunk, "forward", fail)
    assert "does not read tokens alone, or not as its configuration says: a step of the wrong" in (
        reason(backbone)
    )


def test_the_change_is_that_of_the_state_before(monkeypatch):
    """By hand: a state that is doubled where the next token is another one moves by its length."""
    backbone = backbone_of("llama")

    def doubled(input_ids, attention_mask, **options):
        states = torch.ones(*input_ids.shape, HIDDEN)
        states[:, 5] *= 1 + (input_ids[:, 6:7] == input_ids[:, 7:8])
        return (states,)

    monkeypatch.setattr(backbone._trunk, "forward", doubled)
    sample = Encoded(np.arange(10, 20), np.arange(10) > 2)
    assert change_by_later_tokens(backbone, sample, 6) == 1.0
    assert change_by_later_tokens(backbone, sample, 5) == 0.0


def test_nothing_is_left_of_an_index_that_is_refused(tmp_path):
    model = save_tiny(tmp_path / "model", "gemma3", use_bidirectional_attention=True)
    with pytest.raises(ModelError, match="Gemma3ForCausalLM looks ahead"):
        ValuationIndex.create(tmp_path / "index", str(model))
    assert not (tmp_path / "index").exists()
