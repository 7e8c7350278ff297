"""Samples with images, in every family of models: tokens, labels, rows and exact values.

The oracle is autograd on the whole model, fed by its own processor: of one sample at a time, and
with labels found by what the processor makes of the text before the answer.
"""

import copy
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from vision_models import (
    VISION_CONFIGS,
    VISION_KINDS,
    save_tiny_vision,
    tiny_image,
    tiny_vision_model,
    tiny_vision_processor,
)

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BadSampleError, ModelError
from forvalue_index.gradients.exact_values import exact_values, validation_gradient
from forvalue_index.gradients.geometry import Geometry
from forvalue_index.model.batching import batches, collate
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.image_check import open_content
from forvalue_index.model.huggingface.vision import (
    REPLACED_TOKEN,
    VisionProcessor,
    placeholders,
    processor_digest,
    stacked,
)
from forvalue_index.model.label_tokens import ModelReader, Prepared
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.images import ImageFiles
from forvalue_index.sources.sample import BadRow, Message, Sample

KINDS = tuple(kind for kind in VISION_KINDS if kind != "paligemma")
SIZES = [(40, 30), (60, 28), (28, 80), (64, 64), (33, 47)]


def image(number, size):
    return ImageFiles(Path()).read(tiny_image(*size, number), "image")


IMAGES = [image(number, size) for number, size in enumerate(SIZES)]


def asked(images, prompt, *answers):
    turns = [Message("user", prompt, images=tuple(images))]
    for answer in answers:
        turns += [Message("assistant", answer), Message("user", f"and {answer}?")]
    return Sample(tuple(turns[:-1]), source="s")


SAMPLES = [
    asked(IMAGES[:1], "what is this", "the cab"),
    asked(IMAGES[1:3], "both", "a hall and an abc, on the other side of it"),
    asked([], "no image at all", "none in here"),
    asked(IMAGES[3:4], "two turns", "the first", "then the other one"),
    asked(IMAGES[4:5], "x", "y"),
]


@pytest.fixture(scope="module")
def backbones():
    """By kind; the last one made is kept, as tests go through kinds in order."""
    kept = {}

    def backbone(kind, dtype=torch.float32):
        if (kind, dtype) not in kept:
            kept.clear()
            processor = tiny_vision_processor(kind)
            processor.tokenizer.chat_template = processor.chat_template
            kept[kind, dtype] = Backbone(
                tiny_vision_model(kind, dtype), processor.tokenizer, processor=processor
            )
        return kept[kind, dtype]

    return backbone


def encoder(backbone, **options):
    options = {"template": "chat", "labels": "response", "max_length": 512} | options
    around = backbone.placeholders
    vision = VisionProcessor(backbone.processor, open_content, context_tokens=around)
    return PromptEncoder(backbone.tokenizer, vision=vision, **options)


def conversation(sample, upto=None):
    return [
        {
            "role": message.role,
            "content": [{"type": "image"} for _ in message.images]
            + [{"type": "text", "text": message.content}],
        }
        for message in sample.messages[:upto]
    ]


def their_inputs(backbone, sample, upto=None):
    """What the model's own processor makes of a sample, or of what comes before an answer."""
    text = backbone.tokenizer.apply_chat_template(
        conversation(sample, upto), tokenize=False, add_generation_prompt=upto is not None
    )
    pixels = [open_content(one) for one in sample.images]
    images = {"images": [pixels]} if pixels else {}
    found = backbone.processor(text=[text], add_special_tokens=False, **images)
    found.pop("labels", None)
    return {name: torch.as_tensor(np.asarray(value)) for name, value in found.items()}


def their_labels(backbone, sample):
    """Which tokens the assistant says: what is longer with an answer than before it."""
    end = backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    ids = their_inputs(backbone, sample)["input_ids"][0].tolist()
    labels = []
    for turn, message in enumerate(sample.messages):
        if message.role == "assistant":
            start = their_inputs(backbone, sample, turn)["input_ids"].shape[1]
            labels += range(start, ids.index(end, start) + 1)
    return labels


def their_gradient(backbone, sample):
    """Minus the gradient of the summed loss w.r.t. the head weight, by autograd."""
    inputs, labels = their_inputs(backbone, sample), their_labels(backbone, sample)
    layer = backbone.model.get_output_embeddings()
    kept, layer.weight = layer.weight, torch.nn.Parameter(layer.weight.detach().clone())
    try:
        dtype = layer.weight.dtype
        inputs = {n: t.to(dtype) if t.is_floating_point() else t for n, t in inputs.items()}
        logits = backbone.model(**inputs, use_cache=False).logits[0]
        at = torch.tensor(labels)
        loss = torch.nn.functional.cross_entropy(
            logits[at - 1], inputs["input_ids"][0, at], reduction="sum"
        )
        (found,) = torch.autograd.grad(loss, layer.weight)
    finally:
        layer.weight = kept
    return -found


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_and_labels_are_those_of_the_processor(kind, backbones):
    backbone = backbones(kind)
    for sample in SAMPLES:
        encoded = encoder(backbone).encode(sample)
        theirs = their_inputs(backbone, sample)["input_ids"][0].tolist()
        assert encoded.token_ids.tolist() == theirs
        assert np.flatnonzero(encoded.label_mask).tolist() == their_labels(backbone, sample)
        assert len(encoded.image_tokens) == len(sample.images)
        assert not any(encoded.label_mask[s:e].any() for s, e in encoded.image_tokens)
        assert (encoded.n_patches > 0) == bool(sample.images)


@pytest.mark.parametrize("kind", KINDS)
def test_what_everybody_says_is_read(kind, backbones):
    """Templates that take lists alone pass over the content of a role that is given as text."""
    turns = SAMPLES[0].messages
    system, tool = Message("system", "BE KIND"), Message("tool", "SOME TOOL")
    for messages in ((system, *turns), (*turns, tool, *turns)):
        encoded = encoder(backbones(kind)).encode(Sample(messages))
        text = backbones(kind).tokenizer.decode(encoded.token_ids.tolist())
        assert all(message.content in text for message in messages)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("template", ["chat", "plain"])
def test_texts_and_pairs_with_images_are_read_or_refused(kind, template, backbones):
    """Without a template, too: images that stand beside each other, and are told apart."""
    backbone = backbones(kind)
    encode = encoder(backbone, template=template).encode
    text = Sample((Message("text", "a cab and a hall", images=tuple(IMAGES[:2])),))
    for sample in (text, SAMPLES[1]):
        if kind == "mllama" and (template == "plain" or sample is text):
            with pytest.raises(BadSampleError, match="makes other tokens of this sample"):
                encode(sample)
            continue
        encoded = encode(sample)
        states = backbone.hidden_states(collate([encoded], [0]))
        assert torch.isfinite(states).all()
        assert len(states) == encoded.n_label_tokens


@pytest.mark.parametrize("kind", KINDS)
def test_all_labels_are_all_but_what_stands_for_images(kind, backbones):
    backbone = backbones(kind)
    for sample in SAMPLES:
        encoded = encoder(backbone, labels="all").encode(sample)
        of_images = {i for span in encoded.image_tokens for i in range(*span)}
        of_images |= set(np.flatnonzero(np.isin(encoded.token_ids, list(backbone.placeholders))))
        expected = [i for i in range(1, len(encoded)) if i not in of_images]
        assert np.flatnonzero(encoded.label_mask).tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_do_not_depend_on_the_batch(kind, backbones):
    """Sizes and numbers of images, and texts without any, in one go."""
    backbone = backbones(kind)
    encoded = [encoder(backbone).encode(sample) for sample in SAMPLES + SAMPLES[::-1]]
    alone = [backbone.hidden_states(collate([one], [0])) for one in encoded]
    largest = max(float(states.abs().max()) for states in alone)
    for budget in (64, 256, 10_000):
        seen = []
        for batch in batches(encoded, token_budget=budget):
            states = backbone.hidden_states(batch)
            for row, place in enumerate(batch.indices):
                mine = states[torch.from_numpy(batch.label_rows) == row]
                assert (mine - alone[place]).abs().max() <= 1e-5 * largest
            seen += batch.indices
        assert sorted(seen) == list(range(len(encoded)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("kind", KINDS)
def test_a_gpu_reads_images_as_the_cpu_does(kind, backbones):
    backbone = backbones(kind)
    model = copy.deepcopy(backbone.model).to("cuda")
    on_gpu = Backbone(model, backbone.tokenizer, processor=backbone.processor)
    encoded = [encoder(backbone).encode(sample) for sample in SAMPLES]
    for batch in batches(encoded, token_budget=256):
        expected = backbone.hidden_states(batch)
        found = on_gpu.hidden_states(batch)
        assert found.device.type == "cuda"
        assert (found.cpu() - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_response_is_cut_alone(kind, backbones):
    """Tokens up to the maximum length are read as if there were no more of them."""
    backbone = backbones(kind)
    whole = encoder(backbone).encode(SAMPLES[1])
    cut = encoder(backbone, max_length=len(whole) - 5).encode(SAMPLES[1])
    assert (cut.truncated, whole.truncated) == (True, False)
    assert 0 < cut.n_label_tokens == whole.n_label_tokens - 4  # and a line break after them
    expected = backbone.hidden_states(collate([whole], [0]))[: cut.n_label_tokens]
    for members in ([cut], [whole, cut]):
        batch = collate(members, range(len(members)))
        mine = torch.from_numpy(batch.label_rows) == len(members) - 1
        found = backbone.hidden_states(batch)[mine]
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("kind", KINDS)
def test_exact_values_are_those_of_autograd(kind, backbones, tmp_path):
    """Through an index on disk: rows that are gradients, and scores of the model itself."""
    model = save_tiny_vision(tmp_path / "model", kind)
    with ValuationIndex.create(
        tmp_path / "index", str(model), dim=2**17, row_dtype="float32", media="copy"
    ) as index:
        assert index.manifest.exact_rows
        data = [row_of(sample) for sample in SAMPLES]
        assert index.add(data).added == len(SAMPLES)
        backbone = index.backbone
        gradients = torch.stack([their_gradient(backbone, s) for s in SAMPLES]).double()
        expected = torch.einsum("vh,ivh->i", gradients[:2].mean(0), gradients).numpy()
        scale = np.abs(expected).max()
        sketched = index.values(data[:2])
        np.testing.assert_allclose(sketched.scores, expected, atol=1e-4 * scale)
        exact = index.values(data[:2], exact=True)
        np.testing.assert_allclose(exact.scores, expected, atol=1e-4 * scale)
        hits = index.query(data[:2], top=5, rerank=5).helpful
        assert [hit.exact for hit in hits] == [True] * 5
        assert [hit.id for hit in hits] == np.argsort(-expected).tolist()
        explained = index.explain(0, data[:2])
        assert explained.score == pytest.approx(expected[0], abs=1e-4 * scale)
        assert [t.text for t in explained.training.tokens if t.image == 0] == ["[image 40 x 30]"]


def row_of(sample):
    return {
        "messages": [
            {
                "role": message.role,
                "content": [{"type": "image", "image": one.content} for one in message.images]
                + [{"type": "text", "text": message.content}],
            }
            for message in sample.messages
        ]
    }


@pytest.mark.parametrize("kind", KINDS)
def test_signs_and_values_in_float64(kind, backbones):
    """Exact values of all pairs, the harmful ones too, to the precision of float64."""
    backbone = backbones(kind, torch.float64)
    index_reader = reader(backbone)
    prepared = [index_reader.prepare(sample) for sample in SAMPLES]
    gradients = torch.stack([their_gradient(backbone, sample) for sample in SAMPLES])
    expected = torch.einsum("vh,ivh->i", gradients[1] - gradients[4], gradients).numpy()
    targets = [
        validation_gradient(index_reader, Geometry("raw"), [prepared[place]]) for place in (1, 4)
    ]
    found = [exact_values(index_reader, target, prepared) for target in targets]
    np.testing.assert_allclose(found[0] - found[1], expected, rtol=1e-9, atol=1e-9)
    assert expected.min() < 0 < expected.max()


def reader(backbone):
    order = torch.arange(backbone.head.weight.shape[0])
    return ModelReader(
        backbone,
        backbone.head,
        encoder=encoder(backbone),
        vocab_order=order,
        replaced_tokens=backbone.replaced_tokens,
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_checkpoint_is_loaded_as_it_was_saved(kind, legacy, tmp_path):
    """Both layouts of files, of transformers 5 and of most checkpoints on the hub."""
    model = save_tiny_vision(tmp_path / "model", kind, legacy=legacy)
    with ValuationIndex.create(tmp_path / "index", str(model), dim=64) as index:
        expected = processor_digest(tiny_vision_processor(kind))
        assert processor_digest(index.backbone.processor) == expected
        assert index.manifest.model.processor_digest == expected
        family = VISION_CONFIGS[kind]
        assert index.backbone.tokenizer.chat_template == family.template
        assert index.manifest.settings.template == "chat"


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_holds_what_stands_for_images_is_refused(kind, backbones):
    """Raw errors of a model that misses an image would end an ingestion in its middle."""
    backbone = backbones(kind)
    for token in backbone.replaced_tokens | {backbone.processor.image_token}:
        token = token if isinstance(token, str) else backbone.tokenizer.decode([token])
        for images in ([], IMAGES[:1]):
            bad = reader(backbone).prepare(asked(images, f"a {token} in it", "the cab"))
            assert isinstance(bad, BadRow)
            assert "stands for" in bad.reason or "no image came with it" in bad.reason
    assert all(isinstance(reader(backbone).prepare(sample), Prepared) for sample in SAMPLES)


def test_paligemma_is_refused(tmp_path):
    model = save_tiny_vision(tmp_path / "model", "paligemma")
    with pytest.raises(ModelError, match="PaliGemma"):
        ValuationIndex.create(tmp_path / "index", str(model))
    assert not (tmp_path / "index").exists()


def test_inputs_of_samples_follow_each_other_padded_with_zeros():
    """By hand: what runs over tokens is as long as the batch, all else as the largest."""
    first = {
        "token_type_ids": np.array([[0, 1, 1, 0, 0, 0]]),
        "cross_attention_mask": np.ones((1, 6, 1, 2), dtype=np.int64),
        "pixel_values": np.ones((1, 2, 2), dtype=np.float32),
        "image_grid_thw": np.array([[1, 2, 3]]),
    }
    second = {
        "token_type_ids": np.array([[0, 1, 0]]),
        "cross_attention_mask": np.full((1, 3, 2, 1), 2),
        "pixel_values": np.full((2, 1, 3), 2, dtype=np.float32),
        "image_grid_thw": np.array([[4, 5, 6], [7, 8, 9]]),
    }
    found = stacked([first, second], 4)
    assert found["token_type_ids"].tolist() == [[0, 1, 1, 0], [0, 1, 0, 0]]
    assert found["pixel_values"].tolist() == [
        [[1, 1, 0], [1, 1, 0]],
        [[2, 2, 2], [0, 0, 0]],
        [[2, 2, 2], [0, 0, 0]],
    ]
    assert found["image_grid_thw"].tolist() == [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
    assert found["cross_attention_mask"].shape == (2, 4, 2, 2)
    assert found["cross_attention_mask"][1].tolist() == [
        *[[[2, 0], [2, 0]]] * 3,
        [[0, 0], [0, 0]],
    ]
    assert {tensor.dtype for tensor in found.values()} == {torch.int64, torch.float32}


def test_tokens_that_stand_for_something_else():
    config = {
        "image_token_id": 7,
        "text_config": {"eos_token_id": 1, "pad_token_id": 0, "vocab_size": 9},
        "vision_start_token_id": 8,
        "video_token_index": 3,
        "id2label": {0: "x"},
        "image_token_index": None,
    }
    assert placeholders(config) == {7, 8, 3}
    assert placeholders(config, REPLACED_TOKEN) == {7, 3}


def test_texts_and_images_are_tokenised_at_once(backbones):
    """By two threads, of one model, as an ingestion does."""
    backbone = backbones("aya-vision")
    tokenised = encoder(backbone)
    encoded = [tokenised.encode(sample) for sample in SAMPLES]
    expected = [one.token_ids.tolist() for one in encoded]

    def read():
        for _ in range(30):
            for one in encoded:
                if one.read_inputs is not None:
                    one.read_inputs()

    with ThreadPoolExecutor(1) as thread:
        reading = thread.submit(read)
        while not reading.done():
            found = encoder(backbone)
            assert [found.encode(sample).token_ids.tolist() for sample in SAMPLES] == expected
        reading.result()
