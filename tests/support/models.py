"""Tiny models, tokenizers and adapters, made here from configurations: nothing is downloaded.

Weights are random, seeded and wide enough that logits vary by several nats, so that a mistake in
a head's chain rule cannot hide behind a flat softmax.
"""

import warnings

import peft
import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers, processors
from tokenizers import models as tokenizer_models

torch.set_num_threads(1)  # for tensors this small, threads only wait for each other

VOCAB = 288  # 5 special tokens, 256 bytes, the merges below, and some entries without a token
HIDDEN = 32
SPECIAL = ("<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>")
MERGES = ("l l", "a b", "t h", "th e", "o n", "Ġ the", "i n", "e r", "Ġ a", "o r", "b c")

_WIDE = {"vocab_size": VOCAB, "initializer_range": 0.2}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
_BODY = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
}
_LLAMA = _WIDE | _ENDS | _BODY | {"intermediate_size": 48, "num_key_value_heads": 2}
_UNTIED = {"tie_word_embeddings": False}
_GEMMA = {"head_dim": 8, "sliding_window": 16, "query_pre_attn_scalar": 8}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}
_STATE = {"hidden_size": HIDDEN, "num_hidden_layers": 2, "state_size": 8}

CONFIGS = {
    "llama": ("Llama", _LLAMA | _UNTIED),
    "llama-tied": ("Llama", _LLAMA | {"tie_word_embeddings": True}),
    "qwen2": ("Qwen2", _LLAMA | _UNTIED),
    "qwen3": ("Qwen3", _LLAMA | {"head_dim": 8, "tie_word_embeddings": True}),
    "gpt2": (
        "GPT2",
        _WIDE | _ENDS | {"n_embd": HIDDEN, "n_layer": 2, "n_head": 4, "n_positions": 512},
    ),
    # Both caps bite: without them logits and attention scores pass 3.
    "gemma2": (
        "Gemma2",
        _LLAMA | _GEMMA | {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
    "gemma3": ("Gemma3Text", _LLAMA | _GEMMA),
    "granite": ("Granite", _LLAMA | _UNTIED | {"logits_scaling": 1.7}),
    "cohere": ("Cohere", _LLAMA | {"logit_scale": 0.6}),
    "phi": ("Phi", _LLAMA | _UNTIED),
    "opt": (
        "OPT",
        _WIDE | _ENDS | _BODY | {"ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "init_std": 0.2},
    ),
    "mixtral": ("Mixtral", _LLAMA | _UNTIED | _EXPERTS),
    "qwen3-moe": (
        "Qwen3Moe",
        _LLAMA | _UNTIED | _EXPERTS | {"head_dim": 8, "moe_intermediate_size": 24},
    ),
    # Layers of chunked and of full attention, the second one with experts.
    "llama4": (
        "Llama4Text",
        _LLAMA
        | _UNTIED
        | _EXPERTS
        | {
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 16,
            "interleave_moe_layer_step": 2,
            "no_rope_layers": [1, 0],
        },
    ),
    "mamba": ("Mamba", _WIDE | _ENDS | _STATE),
    "falcon-mamba": ("FalconMamba", _WIDE | _ENDS | _STATE),
}
KINDS = tuple(CONFIGS)
# Of these only the heads are of interest: what is done to logits has names of its own.
HEADS = {
    # Their caps bite: without them logits pass 1.
    "recurrent-gemma": (
        "RecurrentGemma",
        _LLAMA
        | {
            "lru_width": HIDDEN,
            "attention_window_size": 16,
            "num_hidden_layers": 3,
            "w_init_variance_scale": 1.0,
            "logits_soft_cap": 1.0,
        },
    ),
    "xlstm": (
        "xLSTM",
        _ENDS
        | _UNTIED
        | {
            "vocab_size": VOCAB,
            "hidden_size": HIDDEN,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "output_logit_soft_cap": 1.0,
        },
    ),
    # Transformers' own MPT does not heed its scale; what comes with models on the hub does.
    "mpt": (
        "Mpt",
        _WIDE
        | _ENDS
        | {
            "d_model": HIDDEN,
            "n_layers": 2,
            "n_heads": 4,
            "max_seq_len": 512,
            "logit_scale": "inv_sqrt_d_model",
        },
    ),
    "hyperclovax": ("HyperCLOVAX", _LLAMA | _UNTIED | {"logits_scaling": 1.7}),
}
CONFIGS |= HEADS
TIED = ("llama-tied", "qwen3", "gpt2", "gemma2", "gemma3", "cohere", "opt", "mamba", "falcon-mamba")
# Their code turns the logits into float32, whatever the model's precision is.
FLOAT32_LOGITS = ("mamba", "falcon-mamba")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GENERATION = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}"
)
# An empty thought stands in the answer to the last question only.
THINKING = (
    "{% set found = namespace(last=-1) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set found.last = loop.index0 %}{% endif %}"
    "{% endfor %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.index0 > found.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
NO_SYSTEM = (
    "{% if messages[0].role == 'system' %}"
    "{{ raise_exception('no system role here') }}{% endif %}" + CHATML
)
# The turn's header is not part of a generation prompt, so the model has to say it.
NO_GENERATION_PROMPT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
)
COUNTING = "{{ messages | length }} turns\n" + CHATML
SHOUTING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if loop.last %}{{ m.content }}{% else %}{{ m.content | upper }}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

BACKWARDS = "{% for m in messages | reverse %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


def tiny_model(kind, dtype=torch.float32, *, seed=0, **options):
    """A causal language model of 2 layers, in eval mode; equal for equal arguments."""
    family, config = CONFIGS[kind]
    config = getattr(transformers, f"{family}Config")(**(config | options))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.3)
    if "num_experts" in config.to_dict() or "num_local_experts" in config.to_dict():
        model.set_experts_implementation("eager")  # the default does not know float64
    return model.to(dtype).eval()


def tiny_tokenizer(chat_template=CHATML, *, bos=False):
    """A byte-level BPE tokenizer with the merges above; `bos` puts <s> before plain text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*SPECIAL, *alphabet, *(m.replace(" ", "") for m in MERGES)]
    model = tokenizer_models.BPE(
        vocab={piece: i for i, piece in enumerate(pieces)},
        merges=[tuple(m.split()) for m in MERGES],
    )
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", 0)]
        )
    backend.add_special_tokens([AddedToken(s, special=True) for s in SPECIAL])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def save_tiny(directory, kind, *, chat_template=CHATML, **options):
    """A directory with model and tokenizer, as `Backbone.load` takes it."""
    tiny_model(kind, **options).save_pretrained(directory)
    tiny_tokenizer(chat_template).save_pretrained(directory)
    return directory


def save_adapter(directory, kind, *, targets=("q_proj", "v_proj")):
    """A LoRA adapter for `tiny_model(kind)`; returns what the model says with it, unmerged."""
    config = peft.LoraConfig(
        r=4, lora_alpha=16, target_modules=list(targets), task_type="CAUSAL_LM"
    )
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        # PEFT reads what transformers is about to rename, and comments on adapters of a head.
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(tiny_model(kind), config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "lora_B" in name:  # zero at first, and the adapter without effect
                    parameter.normal_(0, 0.1)
        model.save_pretrained(directory)
    return model.eval()
