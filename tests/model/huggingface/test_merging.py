"""A merged adapter is the model as it was trained, compared with PEFT's own forward pass."""

import warnings

import peft
import pytest
import torch
from models import VOCAB, save_tiny, tiny_model, tiny_tokenizer
from oracle import gradient, seen
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING as CONFIGS
from safetensors.torch import load_file, save_file

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import ModelError
from forvalue_index.model.huggingface.adapters import KINDS, merge_adapter
from forvalue_index.model.huggingface.merging import merged_as_trained
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.sample import Message, Sample

TOKEN_IDS = (torch.arange(5, 37) * 5 % VOCAB)[None]
ATTENTION = {"target_modules": ["q_proj", "v_proj"]}
EXACT = {torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 5e-2}
# What each kind wants to be told on a model of 32 dimensions.
OPTIONS = {
    "ADALORA": {"total_step": 10, "init_r": 4, "target_r": 2},
    "BEFT": {},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 4},
    "FOURIERFT": {"n_frequency": 20},
    "GRALORA": {"r": 8, "gralora_k": 2},
    "IA3": {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "PSOFT": {"r": 4},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHIRA": {"r": 4},
    "TRAINABLE_TOKENS": {"token_indices": [7, 21, 30], "target_modules": ["embed_tokens"]},
    "VBLORA": {"num_vectors": 8, "vector_length": 8, "r": 4, "topk": 2},
    "WAVEFT": {"n_frequency": 20},
}
# Prompts and prefixes, additions to attention, routers, tasks, and models beside the model.
NOT_MERGED = {
    *("PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "CPT", "CARTRIDGE"),
    *("ADAPTION_PROMPT", "XLORA", "POLY", "SHADOW", "LILY"),
    "FROD",  # merges, and draws a bar on the terminal whenever it is loaded
}
TOKENS = {"trainable_token_indices": [7, 21, 30]}
ENDS = {
    "tokens": TOKENS,
    "tokens of the embedding, named": {"trainable_token_indices": {"EMBEDDING": [7, 21, 30]}},
    "tokens of the head": {"trainable_token_indices": {"lm_head": [7, 21, 30]}},
    "tokens of both, others": {
        "trainable_token_indices": {"lm_head": [7, 21, 30], "EMBEDDING": [7, 21, 31]}
    },
    "embedding": {"target_modules": ["EMBEDDING"]},
    "embedding, tied": {"target_modules": ["EMBEDDING"], "ensure_weight_tying": True},
    "head": {"target_modules": ["lm_head"]},
    "both": {"target_modules": ["EMBEDDING", "lm_head"]},
    "embedding kept": {"modules_to_save": ["EMBEDDING"]},
    "embedding kept, tied": {"modules_to_save": ["EMBEDDING"], "ensure_weight_tying": True},
    "head kept": {"modules_to_save": ["lm_head"]},
    "head kept, tied": {"modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    "both kept": {"modules_to_save": ["EMBEDDING", "lm_head"]},
}
NAMES = {"gpt2": ("wte", "c_attn")}


def trained(directory, kind, config, *, dtype=torch.float32, size=0.1):
    """An adapter with weights as if it had been trained, saved; and the model with it, unmerged."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what PEFT has to say on ends that share a weight
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny_model(kind, dtype), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * size)
        model.save_pretrained(directory)
    return model.eval()


@torch.inference_mode()
def gap(one, other):
    one, other = (model(input_ids=TOKEN_IDS).logits for model in (one, other))
    return float((one - other).abs().max() / other.abs().max())


def is_as_trained(directory, kind, config, dtype=torch.float32):
    unmerged = trained(directory, kind, config, dtype=dtype)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse invariant checks")  # of SHiRA, at its first use
        assert gap(tiny_model(kind, dtype), unmerged) > 0.05  # it has an effect
    merged = merge_adapter(tiny_model(kind, dtype), str(directory))
    return gap(merged, unmerged) <= EXACT[dtype]


def reason(directory, kind="llama"):
    with pytest.raises(ModelError) as error:
        merge_adapter(tiny_model(kind), str(directory))
    said = str(error.value)
    assert "\n" not in said
    assert said.startswith(str(directory))
    return said.removeprefix(str(directory))


def with_names(kind, options):
    """Options of a LoRA for the names that a kind of model has."""
    embedding, attention = NAMES.get(kind, ("embed_tokens", "q_proj"))

    def named(value):
        if isinstance(value, dict):
            return {named(key): some for key, some in value.items()}
        if isinstance(value, list):
            return [named(one) for one in value]
        return embedding if value == "EMBEDDING" else value

    options = {key: named(value) for key, value in options.items()}
    options["target_modules"] = [*options.get("target_modules", []), attention]
    return options


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_that_is_taken_is_merged_right(tmp_path, kind):
    config = CONFIGS[kind](task_type="CAUSAL_LM", **ATTENTION | OPTIONS.get(kind, {}))
    # BEFT tunes biases alone, which Qwen2's attention has.
    assert is_as_trained(tmp_path, "qwen2" if kind == "BEFT" else "llama", config)


def test_every_kind_is_either_taken_or_not():
    assert {kind.value for kind in CONFIGS} == {*KINDS, *NOT_MERGED}
    assert not NOT_MERGED & set(KINDS)


@pytest.mark.parametrize("kind", ["llama-tied", "gemma2", "gpt2", "llama"])
@pytest.mark.parametrize("ends", ENDS)
def test_both_ends_of_a_model_are_as_they_were_trained(tmp_path, kind, ends):
    """Head and embedding share a weight in most of these. What was trained may be one end, the
    other, both alike or both apart; merged into the one weight, or parted too early, it was
    another model: SmolLM2 with three trained tokens gave half of its values, and nothing was said.
    """
    options = with_names(kind, ENDS[ends])
    assert is_as_trained(tmp_path, kind, peft.LoraConfig(r=4, **options))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("llama", {"use_dora": True}),
        ("llama", {"use_rslora": True}),
        ("llama", {"init_lora_weights": "pissa"}),
        ("llama", {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}}),
        ("llama", {"modules_to_save": ["norm"], "target_modules": "all-linear"}),
        ("qwen2", {"bias": "all"}),
        ("qwen2", {"lora_bias": True, "target_modules": ["q_proj"]}),
        ("mixtral", {"target_modules": [], "target_parameters": ["mlp.experts.gate_up_proj"]}),
        ("opt", TOKENS),
        ("mamba", {"target_modules": ["in_proj"], "trainable_token_indices": {"embeddings": [7]}}),
    ],
)
def test_what_a_lora_may_be_besides(tmp_path, kind, options):
    assert is_as_trained(tmp_path, kind, peft.LoraConfig(**ATTENTION | {"r": 4} | options))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounding_of_merged_weights_is_no_other_model(tmp_path, dtype):
    assert is_as_trained(tmp_path, "llama-tied", peft.LoraConfig(**ATTENTION | TOKENS), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, TOKENS], ids=["lora", "tokens"])
def test_a_merge_that_says_something_else_is_refused(tmp_path, dtype, options):
    adapted = trained(
        tmp_path, "llama-tied", peft.LoraConfig(**ATTENTION | options), dtype=dtype, size=0.2
    )
    # As if merging forgot it.
    adapted.merge_and_unload = adapted.unload
    with pytest.raises(ModelError) as error:
        merged_as_trained(adapted, "runs/lora")
    said = str(error.value)
    assert said.startswith(
        "runs/lora: merged into the model, this adapter says something else than beside it (by "
    )
    assert said.endswith(
        " of the largest logit or state), so samples would be valued for a model that was never "
        "trained; merge it with the program that trained it, and name the merged model, without "
        "--adapter"
    )


def test_layers_that_are_repeated_share_a_weight_and_are_refused(tmp_path):
    trained(tmp_path, "llama", peft.LoraConfig(layer_replication=[(0, 2), (1, 2)], **ATTENTION))
    assert "says something else than beside it" in reason(tmp_path)


def test_an_adapter_that_waits_for_its_tokens_is_refused(tmp_path):
    trained(
        tmp_path,
        "llama",
        peft.LoraConfig(alora_invocation_tokens=[7], task_type="CAUSAL_LM", **ATTENTION),
    )
    assert reason(tmp_path) == (
        ": this adapter cannot be merged into the model: aLoRA does not support merging; train one "
        "that can, or merge it with the program that trained it, and name that model"
    )


def test_a_bias_without_a_place_is_one_line_on_adapters(tmp_path):
    trained(tmp_path, "llama", CONFIGS["BEFT"](**ATTENTION))
    assert "Base layer has no bias" in reason(tmp_path)


def test_weights_without_a_place_are_refused(tmp_path):
    """PEFT 0.21 saves the head of a tied GPT-2 and does not find it again."""
    config = peft.LoraConfig(target_modules=["c_attn", "lm_head"], ensure_weight_tying=True)
    trained(tmp_path, "gpt2", config)
    assert reason(tmp_path, "gpt2") == (
        " has 2 weights that find no place in the model (base_model.model.lm_head.lora_A.weight), "
        "so it would be valued as it was not trained; name the model that it was trained on, or "
        "merge it with the program that trained it, and name the merged model"
    )


def test_weights_that_are_missing_are_refused(tmp_path):
    trained(tmp_path, "llama", peft.LoraConfig(**ATTENTION))
    weights = load_file(tmp_path / "adapter_model.safetensors")
    save_file(
        {name: some for name, some in weights.items() if "layers.1" not in name},
        tmp_path / "adapter_model.safetensors",
    )
    said = reason(tmp_path)
    assert said.startswith(" lacks weights that its adapter_config.json asks for (Found missing ")
    assert said.endswith("; save it anew with the PEFT that it was trained with")


@pytest.mark.parametrize(
    "options", [TOKENS, {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True}]
)
def test_values_are_those_of_autograd_on_the_unmerged_model(tmp_path, options):
    model = save_tiny(tmp_path / "model", "llama-tied")
    unmerged = trained(
        tmp_path / "adapter", "llama-tied", peft.LoraConfig(r=4, **ATTENTION | options)
    )
    training = [{"prompt": "ab", "response": "the hall"}, {"prompt": "on", "response": "abc"}]
    validation = [{"prompt": "in", "response": "her the"}]
    with ValuationIndex.create(
        tmp_path / "index", str(model), adapter=str(tmp_path / "adapter"), dim=64
    ) as index:
        index.add(training)
        values = index.values(validation, exact=True).scores

    encoder = PromptEncoder(tiny_tokenizer(), template="chat", labels="response", max_length=512)

    def of(row):
        turns = (Message("user", row["prompt"]), Message("assistant", row["response"]))
        sample = encoder.encode(Sample(turns))
        return gradient(seen(unmerged.get_base_model(), sample.token_ids, sample.label_mask))

    expected = [float((of(row) * of(validation[0])).sum()) for row in training]
    assert list(values) == pytest.approx(expected, rel=1e-4)
