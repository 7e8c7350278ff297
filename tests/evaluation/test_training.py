import copy
import dataclasses

import numpy as np
import pytest
import torch
from models import VOCAB, tiny_model, tiny_tokenizer

from forvalue_index.evaluation import training
from forvalue_index.evaluation.training import (
    Recipe,
    add_gradients,
    fine_tune,
    mean_losses,
    precision_warnings,
    trainable,
)
from forvalue_index.exceptions import ModelError, UsageError
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone

QUICK = Recipe(epochs=2, learning_rate=1e-2, batch_samples=3)


def backbone(kind="llama", **options):
    return Backbone(tiny_model(kind, **options), tiny_tokenizer())


def samples(n=7, *, seed=0, prompt=2):
    """Random tokens, of lengths that differ; the first `prompt` are no labels."""
    random = np.random.default_rng(seed)
    made = []
    for length in random.integers(prompt + 2, 14, size=n):
        mask = np.arange(length) >= prompt
        made.append(Encoded(random.integers(5, VOCAB, size=length), mask))
    return made


def slow_loss(model, some):
    """The definition: one sample at a time, the whole model, cross-entropy summed over labels."""
    total, count = 0.0, 0
    for sample in some:
        logits = model(input_ids=torch.from_numpy(sample.token_ids)[None]).logits[0]
        places = torch.from_numpy(np.flatnonzero(sample.label_mask))
        labels = torch.from_numpy(sample.token_ids)[places]
        loss = torch.nn.functional.cross_entropy(logits[places - 1], labels, reduction="sum")
        total, count = total + loss, count + len(places)
    return total / count


def weights(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(model, before):
    after = model.state_dict()
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        assert torch.equal(tensor, before[name]), name


@pytest.mark.parametrize(
    "kind", ["llama", "llama-tied", "gemma2", "granite", "phi", "opt", "mixtral"]
)
def test_gradients_are_those_of_the_definition(kind):
    trained = backbone(kind, dtype=torch.float64)
    oracle = copy.deepcopy(trained.model).requires_grad_(True)
    tolerance = 1e-5 if kind == "gemma2" else 1e-9  # its norms compute in float32
    expected = slow_loss(oracle, samples())
    expected.backward()
    with trainable(trained):
        loss = add_gradients(trained, samples())
        assert loss == pytest.approx(expected.item(), rel=tolerance)
        largest = max(p.grad.abs().max() for p in oracle.parameters() if p.grad is not None)
        for (name, found), wanted in zip(
            trained.model.named_parameters(), oracle.parameters(), strict=True
        ):
            if wanted.grad is None:
                assert found.grad is None or not found.grad.any(), name
            else:
                gap = (found.grad - wanted.grad).abs().max()
                assert gap <= tolerance * largest, name


def test_neither_batches_nor_chunks_enter_the_gradient(monkeypatch):
    trained = backbone(dtype=torch.float64)
    gradients = []
    for budget, chunk in ((4096, 4096), (16, 3)):
        monkeypatch.setitem(training.TOKEN_BUDGET, "cpu", budget)
        monkeypatch.setitem(training.CHUNK_TOKENS, "cpu", chunk)
        with trainable(trained) as parameters:
            add_gradients(trained, samples())
            gradients.append([p.grad.clone() for p in parameters])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_mean_losses_are_those_of_samples_alone(kind, monkeypatch):
    measured = backbone(kind, dtype=torch.float64)
    monkeypatch.setitem(training.TOKEN_BUDGET, "cpu", 40)
    some = samples(9)
    with torch.no_grad():
        expected = [slow_loss(measured.model, [sample]).item() for sample in some]
    rtol = 1e-5 if kind == "gemma2" else 1e-9
    np.testing.assert_allclose(mean_losses(measured, some), expected, rtol=rtol)


def test_fine_tuning_is_a_plain_loop_of_adamw():
    recipe = Recipe(epochs=2, learning_rate=1e-2, batch_samples=3, weight_decay=0.1, warmup_steps=4)
    trained = backbone(dtype=torch.float64)
    oracle = copy.deepcopy(trained.model).requires_grad_(True)
    optimizer = torch.optim.AdamW(oracle.parameters(), lr=1.0, weight_decay=0.1)
    random, step = np.random.default_rng(5), 0
    for _ in range(2):
        order = random.permutation(7)
        for members in (order[:3], order[3:6], order[6:]):
            step += 1
            optimizer.param_groups[0]["lr"] = 1e-2 * min(1, step / 4)
            optimizer.zero_grad()
            slow_loss(oracle, [samples()[i] for i in members]).backward()
            optimizer.step()
    with trainable(trained) as parameters:
        fine_tune(trained, parameters, samples(), recipe, seed=5)
        for found, wanted in zip(parameters, oracle.parameters(), strict=True):
            torch.testing.assert_close(found.detach(), wanted.detach(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lora_rank", [None, 2])
@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_the_model_is_afterwards_what_it_was(kind, lora_rank):
    trained = backbone(kind)
    before, identity = weights(trained.model), trained.identity()
    first = mean_losses(trained, samples())
    with trainable(trained, lora_rank=lora_rank) as parameters:
        fine_tune(trained, parameters, samples(), QUICK, seed=0)
        assert mean_losses(trained, samples()).mean() < first.mean() - 0.01
    assert_same_bits(trained.model, before)
    assert trained.identity() == identity
    np.testing.assert_array_equal(mean_losses(trained, samples()), first)
    assert not any(p.requires_grad or p.grad is not None for p in trained.model.parameters())


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_the_model_is_what_it_was_after_an_error_too(lora_rank):
    trained = backbone()
    before = weights(trained.model)

    def interrupt(progress):
        if progress.done == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), trainable(trained, lora_rank=lora_rank) as parameters:
        fine_tune(trained, parameters, samples(), QUICK, seed=0, on_progress=interrupt)
    assert_same_bits(trained.model, before)


def test_lora_trains_low_ranks_alone():
    trained = backbone()
    before = weights(trained.model)
    with trainable(trained, lora_rank=2) as parameters:
        assert {min(p.shape) for p in parameters} == {2}
        fine_tune(trained, parameters, samples(), QUICK, seed=0)
        kept = trained.model.state_dict()
        shared = before.keys() & kept.keys()
        assert "lm_head.weight" in shared
        assert all(torch.equal(before[name], kept[name]) for name in shared)


@pytest.mark.parametrize("lora_rank", [None, 2])
def test_a_run_is_a_function_of_its_seed(lora_rank):
    trained = backbone()

    def losses(seed):
        with trainable(trained, lora_rank=lora_rank) as parameters:
            fine_tune(trained, parameters, samples(), QUICK, seed=seed)
            return mean_losses(trained, samples())

    np.testing.assert_array_equal(losses(0), losses(0))
    assert not np.array_equal(losses(0), losses(1))


def test_bfloat16_products_follow_weights_as_they_change():
    """Autocast caches the weights it rounds: with its cache, the trunk kept those of step 1."""
    trained = backbone()
    recipe = Recipe(epochs=6, learning_rate=1e-2, batch_samples=3)
    losses = {}
    for bfloat16 in (False, True):
        with trainable(trained) as parameters:
            chosen = dataclasses.replace(recipe, bfloat16=bfloat16)
            fine_tune(trained, parameters, samples(), chosen, seed=0)
            assert {p.dtype for p in parameters} == {torch.float32}
            losses[bfloat16] = mean_losses(trained, samples())
    assert not np.array_equal(losses[True], losses[False])
    np.testing.assert_allclose(losses[True], losses[False], atol=0.15)


def test_every_step_is_reported():
    trained, seen = backbone(), []
    with trainable(trained) as parameters:
        fine_tune(trained, parameters, samples(), QUICK, seed=0, on_progress=seen.append)
    assert [(p.stage, p.done, p.total) for p in seen] == [("training", i, 6) for i in range(1, 7)]


def test_a_loss_that_is_no_number_is_an_error():
    trained = backbone()
    before = weights(trained.model)
    wild = Recipe(learning_rate=1e38, batch_samples=3)
    message = r"loss is (nan|inf) at step \d of 12.*below 1e\+38"
    with pytest.raises(ModelError, match=message), trainable(trained) as parameters:
        fine_tune(trained, parameters, samples(), wild, seed=0)
    assert_same_bits(trained.model, before)


def test_losses_that_are_no_numbers_are_an_error():
    """As after a single step that was too long, whose own loss was still a number."""
    trained = backbone()
    with trainable(trained) as parameters:
        wild = Recipe(epochs=1, learning_rate=1e38, batch_samples=7)
        fine_tune(trained, parameters, samples(), wild, seed=0)
        with pytest.raises(ModelError, match=r"losses of 7 of 7 samples are .* lower learning"):
            mean_losses(trained, samples())
    assert np.isfinite(mean_losses(trained, samples())).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lora_rank", [None, 2])
def test_coarse_weights_are_warned_of(dtype, lora_rank):
    """A LoRA has weights of its own, which are fine."""
    warnings = precision_warnings(backbone(dtype=dtype), Recipe(lora_rank=lora_rank))
    coarse = dtype != torch.float32 and lora_rank is None
    assert len(warnings) == coarse
    if coarse:
        assert f"in {str(dtype)[6:]}, in which steps of learning rate 0.001 are" in warnings[0]


def test_no_sample_is_an_error():
    trained = backbone()
    with trainable(trained) as parameters, pytest.raises(UsageError, match="no sample"):
        fine_tune(trained, parameters, [], QUICK, seed=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_samples": 0}, "batch_samples is 0"),
        ({"lora_rank": 0}, "lora_rank is 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
        ({"warmup_steps": -1}, "warmup_steps is -1"),
    ],
)
def test_a_recipe_refuses_what_can_never_work(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**options)
