"""Models that cannot be taken apart with images are refused before an index is made."""

import pytest
import torch
from vision_models import save_tiny_vision, tiny_vision_model, tiny_vision_processor

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import ModelError, SettingsMismatchError
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.image_check import open_content, refuse_misread_images
from forvalue_index.model.huggingface.vision import VisionProcessor
from forvalue_index.model.prompts import PromptEncoder

START = "the model: samples with images cannot be valued with LlavaForConditionalGeneration: "


@pytest.fixture
def backbone():
    processor = tiny_vision_processor("llava")
    processor.tokenizer.chat_template = processor.chat_template
    return Backbone(tiny_vision_model("llava"), processor.tokenizer, processor=processor)


def encoder(backbone):
    return PromptEncoder(
        backbone.tokenizer,
        template="chat",
        labels="response",
        max_length=512,
        vision=VisionProcessor(backbone.processor, open_content),
    )


def reason(backbone):
    with pytest.raises(ModelError) as raised:
        refuse_misread_images(backbone, encoder(backbone))
    said = str(raised.value)
    assert said.startswith(START)
    assert said.endswith(
        "Use a model of another family, or another --template (docs/models.md, Vision-language "
        "models)"
    )
    return said.removeprefix(START)


def after(backbone, monkeypatch, change):
    """What the trunk says becomes what `change` makes of it and its inputs."""
    forward = backbone._trunk.forward

    def changed(**inputs):
        output = forward(**inputs)
        output.last_hidden_state = change(output.last_hidden_state, inputs)
        return output

    monkeypatch.setattr(backbone._trunk, "forward", changed)


def test_a_model_as_it_should_be_passes(backbone):
    refuse_misread_images(backbone, encoder(backbone))


def test_one_that_looks_ahead(backbone, monkeypatch):
    def mean(states, inputs):
        mask = inputs["attention_mask"][..., None]
        return states + (states * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)

    after(backbone, monkeypatch, mean)
    assert reason(backbone).startswith("it looks ahead at later tokens of the response (by ")


def test_one_that_mixes_samples(backbone, monkeypatch):
    after(backbone, monkeypatch, lambda states, _: states + states.mean(0, keepdim=True))
    assert reason(backbone).startswith("what it makes of one sample depends on its batch (by ")


def test_one_with_another_head(backbone, monkeypatch):
    class Scaled(torch.nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden) if hidden.shape[1] > 20 else super().forward(hidden)

    head = backbone.model.lm_head
    scaled = Scaled(head.in_features, head.out_features, bias=False)
    scaled.weight = head.weight
    monkeypatch.setattr(backbone.model, "lm_head", scaled)
    assert reason(backbone).startswith("its head is of an unknown kind (by ")


def test_one_that_fails(backbone, monkeypatch):
    def fail(*_):
        raise RuntimeError("mat1 and\nmat2 differ")

    after(backbone, monkeypatch, fail)
    assert reason(backbone).startswith("it cannot read them: mat1 and mat2 differ. Use")


def test_a_processor_that_says_other_tokens(backbone, monkeypatch):
    """As where a family changes texts on the way."""
    call = type(backbone.processor).__call__

    def longer(self, text, **options):
        return call(self, text=[text[0] + " the"], **options)

    monkeypatch.setattr(type(backbone.processor), "__call__", longer)
    assert "makes other tokens of this sample" in reason(backbone)


def test_nothing_is_left_of_an_index_that_is_refused(tmp_path, monkeypatch):
    model = save_tiny_vision(tmp_path / "model", "llava")

    def refuse(*_):
        raise ModelError("no")

    monkeypatch.setattr("forvalue_index.store.create.refuse_misread_images", refuse)
    with pytest.raises(ModelError):
        ValuationIndex.create(tmp_path / "index", str(model))
    assert not (tmp_path / "index").exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("NoSuchProcessor", "its processor, NoSuchProcessor, is not one that transformers has"),
        ("PixtralProcessor", "its processor, PixtralProcessor, is not one that transformers has"),
        ("PaliGemmaProcessor", "PaliGemma wants prompt and answer given apart"),
    ],
)
def test_a_processor_that_cannot_be_used_is_named(tmp_path, name, said):
    model = save_tiny_vision(tmp_path / "model", "llava")
    config = model / "processor_config.json"
    config.write_text(config.read_text().replace("LlavaProcessor", name))
    with pytest.raises(ModelError, match=said):
        ValuationIndex.create(tmp_path / "index", str(model))


def test_a_model_without_its_processor_is_told(tmp_path):
    """What is there of it is no causal language model."""
    model = save_tiny_vision(tmp_path / "model", "llava")
    (model / "processor_config.json").unlink()
    with pytest.raises(ModelError) as raised:
        ValuationIndex.create(tmp_path / "index", str(model))
    assert "cannot be loaded as a language model" in str(raised.value)


@pytest.mark.parametrize("text", ["{", "{}", '{"image_processor": 7}'])
def test_a_damaged_processor_is_one_line(tmp_path, text):
    model = save_tiny_vision(tmp_path / "model", "llava")
    (model / "processor_config.json").write_text(text)
    with pytest.raises(ModelError) as raised:
        ValuationIndex.create(tmp_path / "index", str(model))
    assert "\n" not in str(raised.value)


def test_another_processor_is_another_model(tmp_path):
    """Weights and tokenizer are the same, and images are made smaller."""
    model = save_tiny_vision(tmp_path / "model", "llava")
    ValuationIndex.create(tmp_path / "index", str(model), dim=64).close()
    config = model / "processor_config.json"
    config.write_text(config.read_text().replace("0.48145466", "0.5"))
    with (
        ValuationIndex.open(tmp_path / "index") as index,
        pytest.raises(SettingsMismatchError, match="its processor digest is"),
    ):
        index.add([{"prompt": "a", "response": "b"}])
