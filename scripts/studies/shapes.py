#!/usr/bin/env python3
"""Generated pictures with captions, and a tiny vision-language model trained on them from scratch.

A picture shows two coloured shapes, and its caption names the larger one first, so that it follows
from the picture: "a red circle left of a blue square". Of the training captions 30 % are flipped:
they are dealt out anew among their pictures, so that none keeps its own and the captions as a whole
stay what they were. The model, a LLaVA of transformers, trains on all of them, as nobody would know
which are flipped. A seed gives the same pictures everywhere, and the same model on one machine.

DIR then holds train.jsonl, validation.jsonl, which is clean, pictures/ and model/.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil

SAMPLES, VALIDATION_SAMPLES = 8000, 200
FLIPPED_SHARE = 0.3
PROMPT = "What is in the picture?"
COLOURS = {
    "red": (205, 45, 45),
    "green": (50, 150, 60),
    "blue": (50, 80, 200),
    "yellow": (225, 200, 50),
    "purple": (140, 60, 160),
}
# Corners in units of a shape's size; a circle is drawn as one.
POLYGONS = {
    "circle": (),
    "square": ((-0.85, -0.85), (0.85, -0.85), (0.85, 0.85), (-0.85, 0.85)),
    "triangle": ((0, -1), (1, 0.85), (-1, 0.85)),
    "star": tuple(
        ((1.1, 0.45)[i % 2] * np.sin(i * np.pi / 5), -(1.1, 0.45)[i % 2] * np.cos(i * np.pi / 5))
        for i in range(10)
    ),
}
# From the second shape to the first, with y downwards.
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}

SIDE, PATCH = 64, 16  # pixels
VISION_LAYERS, TEXT_LAYERS, HIDDEN = 3, 2, 128
# Standard deviations of weights and of the places of patches, which must be told apart early.
SCALE, PLACE_SCALE = 0.06, 0.5
EPOCHS, BATCH, LEARNING_RATE, WARMUP = 8, 32, 1e-3, 0.05
START, END, PAD, IMAGE = "<|im_start|>", "<|im_end|>", "<|pad|>", "<image>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<image>' }}"
    "{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
IGNORED = -100
MEAN, DEVIATION = [0.75] * 3, [0.2] * 3  # about those of the pictures

Row = dict[str, Any]


@dataclass(frozen=True)
class Scene:
    """What a picture shows: colour and shape of the larger one and of the smaller one."""

    larger: tuple[str, str]
    smaller: tuple[str, str]
    relation: str

    @property
    def caption(self) -> str:
        """What is to be said of it."""
        return f"a {' '.join(self.larger)} {self.relation} a {' '.join(self.smaller)}"


@dataclass(frozen=True)
class Examples:
    """Samples as the model reads them: pixels, and token ids and labels [sample, token]."""

    pixels: Tensor
    ids: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Found:
    """What a model makes of examples: mean loss and mean p(label) of each, and if it is right."""

    loss: NDArray[np.float64]
    p_label: NDArray[np.float64]
    exact: NDArray[np.bool_]


def main() -> None:
    """Make pictures, train, and print what came of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--samples", type=int, default=SAMPLES, help="to train on")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    started, cpu_started = time.perf_counter(), time.process_time()
    make_shapes(options.directory, seed=options.seed, samples=options.samples)
    print(f"{options.samples} pictures in {time.perf_counter() - started:.1f} s", flush=True)
    train(options.directory, seed=options.seed)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    print(f"{seconds:.0f} s, {cpu_seconds:.0f} s of CPU")


def make_shapes(directory: Path, seed: int = 0, *, samples: int = SAMPLES) -> None:
    """Write pictures and the rows of train.jsonl and validation.jsonl."""
    (directory / "pictures").mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    for name, count, share in (
        ("train", samples, FLIPPED_SHARE),
        ("validation", VALIDATION_SAMPLES, 0.0),
    ):
        rows = []
        for number in range(count):
            scene = some_scene(random)
            image = f"pictures/{name}-{number:05d}.png"
            drawn(scene, random).save(directory / image)
            rows.append({"id": f"{name}-{number:05d}", "image": image, "caption": scene.caption})
        lines = [json.dumps(row) + "\n" for row in _captioned(rows, share, random)]
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def some_scene(random: np.random.Generator) -> Scene:
    """Two shapes that differ in colour, shape or both."""
    looks = [(colour, shape) for colour in COLOURS for shape in POLYGONS]
    larger, smaller = random.choice(len(looks), 2, replace=False)
    relation = list(RELATIONS)[random.integers(len(RELATIONS))]
    return Scene(looks[larger], looks[smaller], relation)


def drawn(scene: Scene, random: np.random.Generator) -> Image.Image:
    """A picture of a scene; its size, places, sizes and shades are random."""
    width, height = (random.uniform(48, 96) * random.uniform(0.8, 1, 2)).astype(int).clip(48)
    background = random.uniform(180, 235) + random.uniform(-10, 10, 3)
    image = Image.new("RGB", (int(width), int(height)), _shade(background))
    draw = ImageDraw.Draw(image)
    places = _places(scene.relation, (width, height), random)
    for (colour, shape), (x, y, size) in zip((scene.larger, scene.smaller), places, strict=True):
        shade = _shade(np.array(COLOURS[colour]) + random.uniform(-20, 20, 3))
        if shape == "circle":
            draw.ellipse((x - size, y - size, x + size, y + size), fill=shade)
        else:
            draw.polygon([(x + size * i, y + size * j) for i, j in POLYGONS[shape]], fill=shade)
    noisy = np.asarray(image) + random.normal(0, 8, (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


def _shade(values: NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(int(value) for value in values.clip(0, 255))


def _places(
    relation: str, sides: tuple[int, int], random: np.random.Generator
) -> list[tuple[float, float, float]]:
    """Centre and size of the larger and the smaller shape, clear of each other and of the edges."""
    way, sides = np.array(RELATIONS[relation]), np.array(sides)
    larger = min(sides) * random.uniform(0.19, 0.25)
    sizes = np.array([larger, larger * random.uniform(0.55, 0.68)])
    margins = 1.15 * sizes
    room = sides - margins.sum()
    apart = random.uniform(margins.sum(), room @ abs(way))
    across = random.uniform(-0.5, 0.5) * min(apart, 2 * room.min())
    step = apart * way + across * (way == 0)
    lowest = np.maximum(margins[0], margins[1] + step)
    highest = np.minimum(sides - margins[0], sides - margins[1] + step)
    centre = random.uniform(lowest, highest)
    return [(*centre, sizes[0]), (*(centre - step), sizes[1])]


def _captioned(rows: Sequence[Row], share: float, random: np.random.Generator) -> Iterator[Row]:
    captions = [row["caption"] for row in rows]
    flipped = random.permutation(len(rows))[: round(share * len(rows))]
    responses = list(captions)
    for place, caption in zip(flipped, dealt_anew(captions, flipped, random), strict=True):
        responses[place] = caption
    for place, row in enumerate(rows):
        yield {
            "id": row["id"],
            "image": row["image"],
            "prompt": PROMPT,
            "response": responses[place],
            "flipped": responses[place] != captions[place],
            "true_caption": captions[place],
        }


def dealt_anew(
    captions: Sequence[str], places: NDArray[np.int64], random: np.random.Generator
) -> list[str]:
    """The captions at `places` in another order, in which none is where it was."""
    own = [captions[place] for place in places]
    dealt = [own[i] for i in random.permutation(len(own))]
    while same := [i for i, caption in enumerate(dealt) if caption == own[i]]:
        for i in same:
            other = random.integers(len(own))
            dealt[i], dealt[other] = dealt[other], dealt[i]
    return dealt


def train(directory: Path, seed: int = 0) -> Path:
    """Train on train.jsonl of a directory, print what came of it, and give back its model/."""
    rows, validation = read(directory, "train"), read(directory, "validation")
    processor = make_processor([row["response"] for row in rows])
    examples = encoded(processor, rows, directory)
    clean = encoded(processor, validation, directory)
    model = make_model(processor.tokenizer, seed)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    for epoch, loss in enumerate(epochs(model, examples, seed), 1):
        found = measured(model, clean)
        print(
            f"epoch {epoch} of {EPOCHS}: loss {loss:.3f}; validation loss {found.loss.mean():.3f}, "
            f"{found.exact.mean():.1%} of captions exact, p(label) {found.p_label.mean():.3f}",
            flush=True,
        )
    flipped = np.array([row["flipped"] for row in rows])
    losses = measured(model, examples).loss
    print(f"training loss: right {losses[~flipped].mean():.3f}", end="")
    print(f", flipped {losses[flipped].mean():.3f}" if flipped.any() else "")
    model.save_pretrained(directory / "model")
    processor.save_pretrained(directory / "model")
    return directory / "model"


def read(directory: Path, name: str) -> list[Row]:
    """The rows of a file of `directory`."""
    lines = (directory / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def make_processor(captions: Sequence[str]) -> LlavaProcessor:
    """A tokenizer of the words of captions and prompt, and pictures padded to a square."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        special_tokens=[START, END, PAD, IMAGE],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator([*captions, f"user\n{PROMPT}", "assistant\n", PROMPT], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens={"image_token": IMAGE},
        chat_template=CHAT_TEMPLATE,
    )
    pictures = LlavaImageProcessorPil(
        do_pad=True,
        image_mean=MEAN,
        image_std=DEVIATION,
        size={"height": SIDE, "width": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
    )
    return LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlavaForConditionalGeneration:
    """An untrained model."""
    body = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": HIDDEN // 32,
    }
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            image_size=SIDE, patch_size=PATCH, num_hidden_layers=VISION_LAYERS, **body
        ),
        text_config=LlamaConfig(
            vocab_size=len(tokenizer),
            max_position_embeddings=256,
            num_hidden_layers=TEXT_LAYERS,
            initializer_range=SCALE,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            **body,
        ),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE),
        image_seq_length=(SIDE // PATCH) ** 2,
        vision_feature_layer=-1,
        initializer_range=SCALE,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlavaForConditionalGeneration(config)
        places = model.model.vision_tower.embeddings.position_embedding
        torch.nn.init.normal_(places.weight, std=PLACE_SCALE)
    return model


def encoded(processor: LlavaProcessor, rows: Sequence[Row], directory: Path) -> Examples:
    """Pictures and conversations as the model reads them; labels are a response and its end."""
    asked = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
    before = processor.apply_chat_template([asked], add_generation_prompt=True)
    read = processor(
        images=[Image.open(directory / row["image"]) for row in rows],
        text=[before + row["response"] + END for row in rows],
        padding=True,
        return_tensors="pt",
    )
    ids, lengths = read["input_ids"], read["attention_mask"].sum(dim=1)
    responses = processor.tokenizer([row["response"] + END for row in rows])["input_ids"]
    starts = lengths - torch.tensor([len(response) for response in responses])
    places = torch.arange(ids.shape[1])
    labelled = (places >= starts[:, None]) & (places < lengths[:, None])
    return Examples(read["pixel_values"], ids, ids.masked_fill(~labelled, IGNORED))


def epochs(model: LlavaForConditionalGeneration, examples: Examples, seed: int) -> Iterator[float]:
    """Train, and give back the mean loss of every epoch."""
    random = np.random.default_rng(seed)
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.98), weight_decay=0.01)
    n_steps = EPOCHS * -(-len(examples) // BATCH)
    step = 0
    for _ in range(EPOCHS):
        losses = []
        for some in np.array_split(random.permutation(len(examples)), n_steps // EPOCHS):
            step += 1
            rising, falling = step / (WARMUP * n_steps), (1 - step / n_steps) / (1 - WARMUP)
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * min(rising, falling)
            loss = _label_losses(model, examples, some)[0].mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            losses.append(loss.item())
        yield float(np.mean(losses))


def _label_losses(
    model: LlavaForConditionalGeneration, examples: Examples, some: NDArray[np.int64]
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss of each label token of some examples, which of them it is of, and if it is foremost."""
    states = model.model(input_ids=examples.ids[some], pixel_values=examples.pixels[some])[0]
    labels = examples.labels[some, 1:]
    labelled = labels != IGNORED
    logits = model.lm_head(states[:, :-1][labelled])
    losses = torch.nn.functional.cross_entropy(logits, labels[labelled], reduction="none")
    return losses, labelled.nonzero()[:, 0], logits.argmax(dim=1) == labels[labelled]


@torch.no_grad()
def measured(model: LlavaForConditionalGeneration, examples: Examples) -> Found:
    """Losses and greedy choices, each token after the right ones before it."""
    loss, p_label, exact = [], [], []
    for some in np.array_split(np.arange(len(examples)), -(-len(examples) // BATCH)):
        losses, rows, foremost = (t.numpy() for t in _label_losses(model, examples, some))
        counts = np.bincount(rows)
        loss += list(np.bincount(rows, losses) / counts)
        p_label += list(np.bincount(rows, np.exp(-losses)) / counts)
        exact += list(np.bincount(rows, foremost) == counts)
    return Found(np.array(loss), np.array(p_label), np.array(exact))


if __name__ == "__main__":
    main()
