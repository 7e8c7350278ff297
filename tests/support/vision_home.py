"""Data with pictures, and a tiny LLaVA that reads them: fixtures of several test files."""

import random

import pytest
from models import save_tiny
from rows import WORDS, write_jsonl
from vision_commands import COUNT
from vision_models import save_tiny_vision, tiny_image


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_vision(tmp_path_factory.mktemp("model"), "llava")


@pytest.fixture(scope="module")
def text_model(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("text"), "llama")


@pytest.fixture
def home(tmp_path):
    """Data with pictures of many sizes, one or two a sample, and samples of text alone."""
    data = tmp_path / "data"
    (data / "pictures").mkdir(parents=True)
    chosen = random.Random(0)
    items = []
    for i in range(COUNT):
        name = f"pictures/{i}.png"
        tiny_image(20 + 3 * i, 80 - 2 * i, i).save(data / name)
        images = {} if i % 6 == 5 else {"images": [name, "pictures/0.png"][: 1 + i % 2]}
        words = (" ".join(chosen.choices(WORDS, k=1 + i % 5)) for _ in range(2))
        items.append(dict(zip(("prompt", "response"), words, strict=True)) | images)
        items[-1] |= {"id": f"s{i}", "topic": ("law", "art")[i % 2]}
    write_jsonl(data / "train.jsonl", items)
    write_jsonl(data / "validation.jsonl", items[:4])
    return tmp_path
