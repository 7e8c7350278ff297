import numpy as np
import pytest
import torch
from models import HIDDEN, VOCAB, tiny_model, tiny_tokenizer

from forvalue_index.gradients.model_profile import profile_model
from forvalue_index.model.huggingface.backbone import Backbone

DRAWN = np.random.default_rng(0).integers(VOCAB, size=(16, 64))


def profile(model, **options):
    backbone = Backbone(model, tiny_tokenizer())
    return profile_model(backbone, backbone.head, **({"context": 512} | options))


def test_a_profile_is_what_the_model_does_on_random_tokens():
    model = tiny_model("llama")
    found = profile(model)
    with torch.inference_mode():
        output = model(torch.from_numpy(DRAWN), output_hidden_states=True)
    # The head reads the states before each label; the last token of a sample is a label alone.
    states = output.hidden_states[-1][:, :-1].reshape(-1, HIDDEN).double()
    predicted = output.logits[:, :-1].softmax(-1).double().sum((0, 1))
    direction = states.mean(0) / states.mean(0).norm()
    np.testing.assert_allclose(found.direction, direction, atol=1e-5)
    share = (states @ direction).square().sum() / states.square().sum()
    assert found.share == pytest.approx(float(share), rel=1e-4)
    ranked = predicted[torch.from_numpy(found.token_ranking)]
    assert (ranked.diff() <= 1e-5).all()
    assert sorted(found.token_ranking.tolist()) == list(range(VOCAB))


def test_a_short_context_is_kept():
    assert profile(tiny_model("llama"), context=8).share > 0
    assert profile(tiny_model("llama"), context=None).share == profile(tiny_model("llama")).share


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_states_that_are_no_numbers_are_left_out(broken):
    """One token that a model cannot read made the direction NaN, and the ranking arbitrary."""
    model = tiny_model("llama")
    token = int(DRAWN[3, 40])
    expected = profile(model)
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = broken
    found = profile(model)
    assert np.linalg.norm(found.direction) == pytest.approx(1)
    assert found.share == pytest.approx(expected.share, abs=0.1)
    assert float(found.direction @ expected.direction) > 0.9
    top = set(expected.token_ranking[:20].tolist())
    assert len(top & set(found.token_ranking[:20].tolist())) > 10
