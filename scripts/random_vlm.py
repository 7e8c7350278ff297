#!/usr/bin/env python3
"""A vision-language model of a realistic size with random weights, to time with.

The shape is that of SmolVLM-256M: an encoder of images as SigLIP-B/16 at 512 x 512 pixels, whose
1,024 patches become 64 tokens, and a language model as SmolLM2-135M, whose tokenizer it takes.
How long a model takes does not depend on its weights, and what it says is noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

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
TEXT = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
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
    """Make the model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizer", type=Path, help="directory of SmolLM2-135M-Instruct")
    parser.add_argument("directory", type=Path, help="where to save the model")
    options = parser.parse_args()
    make(options.tokenizer, options.directory)


def make(tokenizer_of: Path, directory: Path) -> None:
    """Save model, tokenizer and processor, as a checkpoint on the hub has them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(tokenizer_of)
    tokenizer.add_special_tokens({"extra_special_tokens": list(IMAGE_TOKENS)})
    tokenizer.chat_template = TEMPLATE
    ids = tokenizer.convert_tokens_to_ids
    text = TEXT | {"vocab_size": len(tokenizer), "eos_token_id": ids("<end_of_utterance>")}
    config = transformers.Idefics3Config(
        text_config=text,
        vision_config=VISION,
        image_token_id=ids("<image>"),
        scale_factor=4,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    transformers.Idefics3ForConditionalGeneration(config).save_pretrained(directory)
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": 512}, max_image_size={"longest_edge": 512}, do_image_splitting=False
    )
    processor = transformers.Idefics3Processor(
        images, tokenizer, image_seq_len=64, chat_template=TEMPLATE
    )
    processor.save_pretrained(directory)


if __name__ == "__main__":
    main()
