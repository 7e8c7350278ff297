"""scripts/studies/shapes.py: the demonstration's pictures and model, at a size of seconds."""

import importlib.util
import json
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from forvalue_index import ValuationIndex

SCRIPT = Path(__file__).parents[2] / "scripts/studies/shapes.py"


@pytest.fixture(scope="module")
def shapes():
    spec = importlib.util.spec_from_file_location("shapes", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["shapes"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["shapes"]


@pytest.fixture(scope="module")
def directory(shapes, tmp_path_factory):
    made = tmp_path_factory.mktemp("shapes")
    shapes.make_shapes(made, 3, samples=100)
    return made


def rows(directory, name):
    return [json.loads(line) for line in (directory / f"{name}.jsonl").read_text().splitlines()]


def pixels(directory, row):
    with Image.open(directory / row["image"]) as opened:
        return np.asarray(opened)


def test_so_many_captions_are_flipped_and_the_captions_as_a_whole_are_not(directory):
    train, validation = rows(directory, "train"), rows(directory, "validation")
    assert [row["flipped"] for row in train].count(True) == 30
    assert all((row["response"] != row["true_caption"]) == row["flipped"] for row in train)
    assert Counter(r["response"] for r in train) == Counter(r["true_caption"] for r in train)
    assert not any(row["flipped"] for row in validation)
    sizes = {pixels(directory, row).shape for row in train}
    assert len(sizes) > 50


def test_a_seed_gives_the_same_pictures(shapes, directory, tmp_path):
    shapes.make_shapes(tmp_path, 3, samples=100)
    assert rows(tmp_path, "train") == rows(directory, "train")
    for row in rows(directory, "train")[:5]:
        assert np.array_equal(pixels(directory, row), pixels(tmp_path, row))


def test_a_caption_follows_from_its_picture(shapes):
    """The shapes that are drawn are apart, the first one larger, and stand as it says."""
    random = np.random.default_rng(0)
    for relation, way in shapes.RELATIONS.items():
        for _ in range(50):
            (x, y, size), (u, v, other) = shapes._places(relation, (60, 90), random)
            assert size > 1.4 * other
            step = np.array([x - u, y - v])
            assert step @ np.array(way) > size + other
            assert min(x - size, y - size, u - other, v - other) > 0
            assert max(x + size, u + other) < 60
            assert max(y + size, v + other) < 90


def test_the_model_is_one_that_an_index_takes(shapes, directory, monkeypatch, capsys):
    monkeypatch.setattr(shapes, "EPOCHS", 1)
    model = shapes.train(directory)
    assert "epoch 1 of 1: loss" in capsys.readouterr().out
    with ValuationIndex.create(directory / "index", str(model), dim=256) as index:
        assert index.add(str(directory / "train.jsonl")).added == 100
        examples = shapes.encoded(
            shapes.make_processor([row["response"] for row in rows(directory, "train")]),
            rows(directory, "train"),
            directory,
        )
        losses = shapes.measured(index.model.backbone.model, examples).loss
        stored = [one.statistics.loss for one in index.list_samples()]
        np.testing.assert_allclose(stored, losses, rtol=1e-3)
