"""Tiny vision-language models, their processors and pictures, made here: nothing is downloaded.

Weights are random, seeded and wide, those of the vision part and of what joins it too, so that a
picture that is lost or mistaken for another is seen in every token after it. Processors work
without torchvision: their image processors are those that need Pillow alone.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers
from models import HIDDEN, tiny_tokenizer
from PIL import Image
from tokenizers import AddedToken
from transformers.models.auto.image_processing_auto import get_image_processor_class_from_name
from transformers.models.auto.processing_auto import processor_class_from_name
from transformers.models.smolvlm import processing_smolvlm

SPARE = 3  # entries of the vocabulary without a token

_TEXT = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "initializer_range": 0.2,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
_VISION = {
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
}
# Windows, and a layer without them, or pictures would be out of sight soon.
_WINDOWS = {"sliding_window": 16, "layer_types": ["sliding_attention", "full_attention"]}
_CLIP = _VISION | {"model_type": "clip_vision_model", "image_size": 28, "patch_size": 14}
_SIGLIP = _VISION | {"model_type": "siglip_vision_model", "image_size": 28, "patch_size": 7}
_QWEN_VISION = {
    "depth": 2,
    "hidden_size": HIDDEN,
    "num_heads": 4,
    "patch_size": 7,
    "initializer_range": 0.2,
}
_QWEN_OUT = {"out_hidden_size": HIDDEN, "intermediate_size": 48}
_QWEN_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
_QWEN_MARK = "<|vision_start|><|image_pad|><|vision_end|>"
_QWEN_IDS = {
    "image_token_id": "<|image_pad|>",
    "video_token_id": "<|video_pad|>",
    "vision_start_token_id": "<|vision_start|>",
    "vision_end_token_id": "<|vision_end|>",
}
_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
_QWEN_TEXT = _TEXT | {"rope_parameters": _MROPE}
# From 1 to 16 tokens of 14 x 14 pixels.
_QWEN_IMAGES = {"size": {"shortest_edge": 14**2, "longest_edge": 16 * 14**2}, "patch_size": 7}
_SQUARE = {"size": {"height": 28, "width": 28}}
_CROPPED = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
_SHAPES = [[28, 56], [56, 28]]
_SPLIT = {"size": {"longest_edge": 56}, "max_image_size": {"longest_edge": 28}}
_SPLIT_TOKENS = (
    *("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2)),
)
_LLAVA_OPTIONS = {
    "patch_size": 14,
    "vision_feature_select_strategy": "default",
    "num_additional_image_tokens": 1,
    "image_token": "<image>",
}

_TURN = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
_END = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
# What the templates of Qwen2-VL and Qwen2.5-VL say where there is no system turn.
_ASSISTANT = (
    "{% if messages[0].role != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
)


def _parts(mark):
    """The parts of a content in their order; a string's parts are its characters: nothing."""
    return (
        "{% for part in m.content %}"
        "{% if part.type == 'image' %}" + mark + "{% elif part.type == 'text' %}{{ part.text }}"
        "{% endif %}{% endfor %}"
    )


def _lists(mark):
    """A template for lists of parts alone."""
    return _TURN + _parts(mark) + _END


def _images_first(mark):
    """A template for lists of parts alone, which puts a turn's pictures before its texts."""
    each = "{% for part in m.content | selectattr('type', 'equalto', "
    images = each + "'image') %}" + mark + "{% endfor %}"
    texts = each + "'text') %}{{ part.text }}{% endfor %}"
    return _TURN + images + texts + _END


def _strings_too(mark, first=""):
    """A template for strings and for lists of parts."""
    string = "{% if m.content is string %}{{ m.content }}{% else %}"
    return first + _TURN + string + _parts(mark) + "{% endif %}" + _END


@dataclass(frozen=True)
class Family:
    """What makes a model and its processor; a token in `config` stands for its id."""

    model: str  # before Config and ForConditionalGeneration
    processor: str
    image_processor: str  # as checkpoints on the hub have it
    tokens: tuple[str, ...]
    text: dict[str, Any]
    vision: dict[str, Any]
    config: dict[str, Any]
    images: dict[str, Any]
    template: str | None
    options: dict[str, Any] = field(default_factory=dict)
    # Tokens that the family's tokenizers have a name for.
    named: dict[str, str] = field(default_factory=dict)
    video: str | None = None  # the video processor, which needs torchvision: it is only named


VISION_CONFIGS = {
    "qwen2-vl": Family(
        *("Qwen2VL", "Qwen2VLProcessor", "Qwen2VLImageProcessor", _QWEN_TOKENS),
        text=_QWEN_TEXT,
        vision=_QWEN_VISION | {"embed_dim": HIDDEN, "mlp_ratio": 2},
        config=_QWEN_IDS,
        images=_QWEN_IMAGES,
        template=_strings_too(_QWEN_MARK, _ASSISTANT),
        video="Qwen2VLVideoProcessor",
    ),
    # One of the vision layers sees windows of 2 x 2 tokens.
    "qwen2.5-vl": Family(
        *("Qwen2_5_VL", "Qwen2_5_VLProcessor", "Qwen2VLImageProcessor", _QWEN_TOKENS),
        text=_QWEN_TEXT,
        vision=_QWEN_VISION | _QWEN_OUT | {"fullatt_block_indexes": [1], "window_size": 28},
        config=_QWEN_IDS,
        images=_QWEN_IMAGES,
        template=_strings_too(_QWEN_MARK, _ASSISTANT),
        video="Qwen2VLVideoProcessor",
    ),
    "qwen3-vl": Family(
        *("Qwen3VL", "Qwen3VLProcessor", "Qwen2VLImageProcessorFast", _QWEN_TOKENS),
        text=_QWEN_TEXT,
        vision=_QWEN_VISION
        | _QWEN_OUT
        | {"deepstack_visual_indexes": [0], "num_position_embeddings": 64},
        config=_QWEN_IDS,
        images=_QWEN_IMAGES,
        template=_strings_too(_QWEN_MARK),
        video="Qwen3VLVideoProcessor",
    ),
    "llava": Family(
        *("Llava", "LlavaProcessor", "CLIPImageProcessor", ("<image>",)),
        text=_TEXT | {"model_type": "llama"},
        vision=_CLIP,
        config={"image_token_index": "<image>"},
        images=_CROPPED,
        template=_images_first("<image>\n"),
        options=_LLAVA_OPTIONS,
        named={"image_token": "<image>"},
    ),
    "llava-next": Family(
        *("LlavaNext", "LlavaNextProcessor", "LlavaNextImageProcessor", ("<image>",)),
        text=_TEXT | {"model_type": "mistral", "sliding_window": None},
        vision=_CLIP,
        config={"image_token_index": "<image>", "image_grid_pinpoints": _SHAPES},
        images=_CROPPED | {"image_grid_pinpoints": _SHAPES},
        template=_images_first("<image>\n"),
        options=_LLAVA_OPTIONS,
        named={"image_token": "<image>"},
    ),
    "llava-onevision": Family(
        "LlavaOnevision",
        *("LlavaOnevisionProcessor", "LlavaOnevisionImageProcessor", ("<image>", "<video>")),
        text=_TEXT | {"model_type": "qwen2"},
        vision=_SIGLIP | {"patch_size": 14, "vision_use_head": False},
        config={
            "image_token_index": "<image>",
            "video_token_index": "<video>",
            "image_grid_pinpoints": _SHAPES,
            "vision_feature_select_strategy": "full",
        },
        images=_SQUARE | {"image_grid_pinpoints": _SHAPES},
        template=_images_first("<image>"),
        options={
            "num_image_tokens": 4,
            "vision_feature_select_strategy": "full",
            "image_token": "<image>",
            "video_token": "<video>",
        },
        named={"image_token": "<image>", "video_token": "<video>"},
        video="LlavaOnevisionVideoProcessor",
    ),
    "idefics3": Family(
        *("Idefics3", "Idefics3Processor", "Idefics3ImageProcessor", _SPLIT_TOKENS),
        text=_TEXT | {"model_type": "llama"},
        vision=_VISION | {"image_size": 28, "patch_size": 7},
        config={"image_token_id": "<image>", "scale_factor": 2},
        images=_SPLIT,
        template=_lists("<image>"),
        options={"image_seq_len": 4},
    ),
    "smolvlm": Family(
        *("SmolVLM", "SmolVLMProcessor", "SmolVLMImageProcessor", _SPLIT_TOKENS),
        text=_TEXT | {"model_type": "llama"},
        vision=_VISION | {"image_size": 28, "patch_size": 7},
        config={"image_token_id": "<image>", "scale_factor": 2},
        images=_SPLIT,
        template=_lists("<image>"),
        options={"image_seq_len": 4},
        named={
            "image_token": "<image>",
            "fake_image_token": "<fake_token_around_image>",
            "global_image_token": "<global-img>",
            "end_of_utterance_token": "<end_of_utterance>",
        },
        video="SmolVLMVideoProcessor",
    ),
    "gemma3": Family(
        *("Gemma3", "Gemma3Processor", "Gemma3ImageProcessor"),
        ("<start_of_image>", "<end_of_image>", "<image_soft_token>"),
        text=_TEXT | _WINDOWS | {"query_pre_attn_scalar": 8},
        vision=_SIGLIP | {"vision_use_head": False},
        config={
            "mm_tokens_per_image": 4,
            "image_token_index": "<image_soft_token>",
            "boi_token_index": "<start_of_image>",
            "eoi_token_index": "<end_of_image>",
        },
        images=_SQUARE,
        template=_strings_too("<start_of_image>", "{{ bos_token }}"),
        options={"image_seq_length": 4},
        named={
            "image_token": "<image_soft_token>",
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
        },
    ),
    "internvl": Family(
        *("InternVL", "InternVLProcessor", "GotOcr2ImageProcessorFast"),
        ("<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
        text=_TEXT | {"model_type": "qwen2"},
        vision=_VISION | {"image_size": [28, 28], "patch_size": [7, 7]},
        config={"image_token_id": "<IMG_CONTEXT>", "image_seq_length": 4},
        images=_SQUARE | {"crop_to_patches": True, "min_patches": 1, "max_patches": 3},
        template=_strings_too("<IMG_CONTEXT>\n"),
        options={"image_seq_length": 4},
        named={
            "context_image_token": "<IMG_CONTEXT>",
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "video_token": "<video>",
        },
        video="InternVLVideoProcessor",
    ),
    "mllama": Family(
        *("Mllama", "MllamaProcessor", "MllamaImageProcessor", ("<|image|>",)),
        text=_TEXT | {"num_hidden_layers": 3, "cross_attention_layers": [1]},
        vision={
            "hidden_size": HIDDEN,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_global_layers": 1,
            "attention_heads": 4,
            "image_size": 28,
            "patch_size": 14,
            "max_num_tiles": 2,
            "vision_output_dim": 2 * HIDDEN,
            "intermediate_layers_indices": [1],
            "supported_aspect_ratios": [[1, 1], [1, 2], [2, 1]],
            "initializer_range": 0.2,
        },
        config={"image_token_index": "<|image|>"},
        images=_SQUARE | {"max_image_tiles": 2},
        template=_strings_too("<|image|>", "{{ bos_token }}"),
    ),
    "paligemma": Family(
        *("PaliGemma", "PaliGemmaProcessor", "SiglipImageProcessor", ("<image>",)),
        text=_TEXT | {"model_type": "gemma"},
        vision=_SIGLIP | {"patch_size": 14, "vision_use_head": False},
        config={"image_token_index": "<image>", "projection_dim": HIDDEN},
        images=_SQUARE | {"image_seq_length": 4},
        template=None,
    ),
    "aya-vision": Family(
        *("AyaVision", "AyaVisionProcessor", "GotOcr2ImageProcessor"),
        ("<image>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "TILE", "TILE_GLOBAL"),
        text=_TEXT | _WINDOWS | {"model_type": "cohere2"},
        vision=_SIGLIP | {"vision_use_head": False},
        config={"image_token_index": "<|IMG_PATCH|>", "downsample_factor": 2},
        images=_SQUARE | {"crop_to_patches": True, "min_patches": 1, "max_patches": 3},
        template=_strings_too("<image>"),
        options={"patch_size": 7, "img_size": 28, "downsample_factor": 2},
    ),
}
VISION_KINDS = tuple(VISION_CONFIGS)
# The legacy layout has their templates in tokenizer_config.json too, InternVL's there alone.
_IN_TOKENIZER = ("qwen2-vl", "qwen2.5-vl", "qwen3-vl", "internvl", "mllama")


def _vision_tokenizer(family):
    """The tiny tokenizer with a family's tokens and template."""
    base = tiny_tokenizer(None)
    backend = base.backend_tokenizer
    backend.add_special_tokens([AddedToken(t, special=True) for t in family.tokens])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        **base.special_tokens_map,
        **family.named,
        extra_special_tokens=[*base.extra_special_tokens, *family.tokens],
        processor_class=family.processor,
    )
    tokenizer.chat_template = family.template
    return tokenizer


def tiny_vision_processor(kind):
    """The processor of `tiny_vision_model(kind)`, which makes 1 to 20 tokens of a picture."""
    family = VISION_CONFIGS[kind]
    name = family.image_processor.removesuffix("Fast") + "Pil"
    parts = {
        "image_processor": get_image_processor_class_from_name(name)(**family.images),
        "tokenizer": _vision_tokenizer(family),
        "chat_template": family.template,
    }
    if family.video:
        parts["video_processor"] = None
    make = processor_class_from_name(family.processor)
    with (
        mock.patch.object(make, "check_argument_for_proper_class"),  # no video processor
        mock.patch.object(processing_smolvlm, "num2words"),  # for videos alone, and seldom there
    ):
        return make(**parts, **family.options)


def tiny_vision_model(kind, dtype=torch.float32, *, seed=0):
    """A vision-language model of 2 or 3 layers, in eval mode; equal for equal arguments."""
    family = VISION_CONFIGS[kind]
    tokenizer = tiny_vision_processor(kind).tokenizer
    ids = tokenizer.get_vocab()
    options = {k: ids.get(v, v) if isinstance(v, str) else v for k, v in family.config.items()}
    text = family.text | {"vocab_size": len(tokenizer) + SPARE}
    if kind == "mllama":  # as in the real one, the head has no row for the token of a picture
        text["vocab_size"] = ids["<|image|>"]
    config = getattr(transformers, f"{family.model}Config")
    config = config(text_config=text, vision_config=family.vision, **options)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family.model}ForConditionalGeneration")(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("bias"):
                    parameter.normal_(0, 0.3)
                elif name.endswith("gate"):  # zero at first, and pictures without effect
                    parameter.fill_(0.5)
                elif not parameter.any():  # a projection, or a norm that adds one
                    parameter.normal_(0, 0.2)
    return model.to(dtype).eval()


def save_tiny_vision(directory, kind, *, legacy=False, **options):
    """A directory with model, tokenizer and processor, as transformers 5 or, `legacy`, 4 wrote it.

    Transformers 5 puts all that processors need into processor_config.json; most checkpoints on
    the hub still have what is about pictures in preprocessor_config.json.
    """
    directory = Path(directory)
    family = VISION_CONFIGS[kind]
    tiny_vision_model(kind, **options).save_pretrained(directory)
    processor = tiny_vision_processor(kind)
    if legacy:
        _save_legacy(directory, kind, processor)
        return directory
    processor.tokenizer.save_pretrained(directory)  # and the chat template
    config = processor.to_dict()
    if family.video:
        config["video_processor"] = {"video_processor_type": family.video}
    _write(directory / "processor_config.json", config)
    return directory


def _save_legacy(directory, kind, processor):
    family = VISION_CONFIGS[kind]
    if kind not in _IN_TOKENIZER:
        processor.tokenizer.chat_template = None
    processor.tokenizer.save_pretrained(directory, save_jinja_files=False)
    if family.template and kind != "internvl":
        _write(directory / "chat_template.json", {"chat_template": family.template})
    named = {"processor_class": family.processor}
    images = processor.image_processor.to_dict() | named
    images["image_processor_type"] = family.image_processor
    if kind in ("qwen2-vl", "qwen2.5-vl"):
        size = images.pop("size")
        images |= {"min_pixels": size["shortest_edge"], "max_pixels": size["longest_edge"]}
    _write(directory / "preprocessor_config.json", images)
    if family.options:
        _write(directory / "processor_config.json", family.options | named)


def _write(path, value):
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def tiny_image(width, height, seed):
    """A picture of blocks of 8 x 8 pixels in random colours."""
    shape = (-(-height // 8), -(-width // 8), 3)
    blocks = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    pixels = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return Image.fromarray(pixels)
