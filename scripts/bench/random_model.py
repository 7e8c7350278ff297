#!/usr/bin/env python3
"""A model of a realistic size with random weights, to time with.

How long a model takes does not depend on its weights, and what it says is noise. All take the
tokenizer of SmolLM2-135M. `smolvlm-256m` reads images: an encoder as SigLIP-B/16 at 512 x 512
pixels, whose 1,024 patches become 64 tokens, and a language model as SmolLM2-135M.
`smollm2-1.7b` reads text.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

IMAGE_TOKENS = ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>")
TEMPLATE = (
    "<|im_start|>{% for m in messages %}{{ m.role | capitalize }}:"
    "{% for part in m.content %}{% if part.type == 'image' %}<image>{% else %} {{ part.text }}"
    "{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
SMALL = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}
LARGE = SMALL | {
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 24,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
VISION = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 512,
    "patch_size": 16,
}


def main() -> None:
    """Make a model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("directory", type=Path, help="where to save the model")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="smolvlm-256m")
    options = parser.parse_args()
    torch.manual_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.tokenizer)
    SHAPES[options.shape](tokenizer, options.directory)


def make_text_model(tokenizer: Any, directory: Path) -> None:
    """Save model and tokenizer."""
    config = transformers.LlamaConfig(**LARGE, vocab_size=len(tokenizer), pad_token_id=None)
    transformers.LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def make_vision_model(tokenizer: Any, directory: Path) -> None:
    """Save model, tokenizer and processor, as a checkpoint on the hub has them."""
    tokenizer.add_special_tokens({"extra_special_tokens": list(IMAGE_TOKENS)})
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer.convert_tokens_to_ids
    text = SMALL | {"vocab_size": len(tokenizer), "eos_token_id": ids("<end_of_utterance>")}
    config = transformers.Idefics3Config(
        text_config=text,
        vision_config=VISION,
        image_token_id=ids("<image>"),
        scale_factor=4,
        tie_word_embeddings=True,
    )
    transformers.Idefics3ForConditionalGeneration(config).save_pretrained(directory)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 512}, max_image_size={"longest_edge": 512}, do_image_splitting=False
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=64, chat_template=TEMPLATE
    )
    processor.save_pretrained(directory)


SHAPES = {"smolvlm-256m": make_vision_model, "smollm2-1.7b": make_text_model}

if __name__ == "__main__":
    main()
