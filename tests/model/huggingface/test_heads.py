"""What is done to logits, under whatever name, against autograd on the model's own logits."""

import numpy as np
import pytest
import torch
import transformers
from models import HEADS, HIDDEN, VOCAB, tiny_model, tiny_tokenizer
from oracle import head_gradient

from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.huggingface.heads import heads_of, trunk_of
from forvalue_index.model.prediction_error import prediction_error

TOKEN_IDS = np.arange(20, dtype=np.int64) * 13 % VOCAB
SAMPLE = Encoded(TOKEN_IDS, np.arange(20) > 3)


class ScaledMpt(transformers.MptForCausalLM):
    """MPT as it was trained, and as its own code on the hub is: it heeds `logit_scale`."""

    def forward(self, *args, **options):
        output = super().forward(*args, **options)
        scale = self.config.logit_scale
        if scale is not None:
            number = HIDDEN**-0.5 if isinstance(scale, str) else scale
            output.logits = output.logits * number
        return output


def own_gradient(backbone):
    with torch.inference_mode():
        states = backbone.hidden_states(collate([SAMPLE], [0]))
        labels = torch.from_numpy(TOKEN_IDS[SAMPLE.label_mask])
        return (prediction_error(backbone.head, states, labels).error.T @ states).numpy()


def is_that_of_autograd(backbone):
    theirs = head_gradient(backbone.model, TOKEN_IDS, SAMPLE.label_mask)
    return np.abs(own_gradient(backbone) - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("kind", [*HEADS, "llama4", "granite", "cohere", "gemma2"])
def test_gradients_are_those_of_autograd(kind):
    assert is_that_of_autograd(Backbone(tiny_model(kind), tiny_tokenizer()))


@pytest.mark.parametrize(
    ("kind", "softcap"), [("recurrent-gemma", 1.0), ("xlstm", 1.0), ("mpt", None)]
)
def test_a_cap_is_found_and_not_only_passed_by(kind, softcap):
    assert Backbone(tiny_model(kind), tiny_tokenizer()).head.softcap == softcap


@pytest.mark.parametrize(
    ("written", "scale"),
    [("inv_sqrt_d_model", HIDDEN**-0.5), (0.25, 0.25), (2.5, 2.5), (None, 1.0)],
)
@pytest.mark.parametrize("model_class", [transformers.MptForCausalLM, ScaledMpt])
def test_the_scale_of_mpt_in_words_and_in_numbers(model_class, written, scale):
    """It is taken where the model's own logits have it."""
    heeds = model_class is ScaledMpt and written is not None
    config = tiny_model("mpt", logit_scale=written).config
    torch.manual_seed(0)
    backbone = Backbone(model_class(config), tiny_tokenizer())
    assert backbone.head.scale == pytest.approx(scale if heeds else 1.0)
    assert is_that_of_autograd(backbone)


def test_a_scale_that_says_nothing_is_passed_over():
    model = tiny_model("mpt", logit_scale="as_it_was")
    assert [head.scale for head in heads_of(model, "runs/mpt")] == [1.0]


def test_a_text_model_under_a_name_of_the_whole_has_its_trunk_found():
    model = tiny_model("llama4")
    assert model.base_model is model
    assert trunk_of(model) is model.model
    assert trunk_of(tiny_model("gpt2")).__class__.__name__ == "GPT2Model"
