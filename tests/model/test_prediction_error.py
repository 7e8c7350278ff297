import math

import pytest
import torch

from forvalue_index.model.prediction_error import Head, prediction_error

HEADS = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "capped": {"softcap": 2.0},
    "biased": {"bias": True},
    "all of it": {"bias": True, "scale": 1.7, "softcap": 2.5},
}


def random_head(*, vocab=23, hidden=7, dtype=torch.float64, bias=False, **options):
    generator = torch.Generator().manual_seed(3)
    weight = torch.randn(vocab, hidden, generator=generator, dtype=torch.float64).to(dtype)
    added = torch.randn(vocab, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    return Head(weight, added, **options)


def random_tokens(head, n=11):
    vocab, hidden = head.weight.shape
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(n, hidden, generator=generator, dtype=torch.float64)
    labels = torch.randint(vocab, (n,), generator=generator)
    return states.to(head.weight.dtype), labels


def test_two_tokens_by_hand():
    """Logits ln 3 and 0 give the probabilities 3/4 and 1/4."""
    head = Head(torch.tensor([[math.log(3)], [0.0]], dtype=torch.float64))
    hidden = torch.ones(2, 1, dtype=torch.float64)
    found = prediction_error(head, hidden, torch.tensor([0, 1]))
    expected = torch.tensor([[0.25, -0.25], [-0.75, 0.75]], dtype=torch.float64)
    torch.testing.assert_close(found.error, expected, rtol=1e-14, atol=1e-15)
    torch.testing.assert_close(
        found.loss, torch.tensor([math.log(4 / 3), math.log(4)], dtype=torch.float64)
    )
    torch.testing.assert_close(found.probability, torch.tensor([0.75, 0.25], dtype=torch.float64))


def test_chain_rule_by_hand():
    """Logits 2 tanh(1/2 * 2 h / 2) at h = 2 atanh(1/2) are 1 and -1, and 1 - (z / 2)^2 is 3/4."""
    weight = torch.tensor([[2.0], [-2.0]], dtype=torch.float64)
    head = Head(weight, scale=0.5, softcap=2.0)
    hidden = torch.tensor([[2 * math.atanh(0.5)]], dtype=torch.float64)
    torch.testing.assert_close(
        head.logits(hidden), torch.tensor([[1.0, -1.0]], dtype=torch.float64)
    )
    other = 1 / (1 + math.e**2)  # the probability of the other token
    found = prediction_error(head, hidden, torch.tensor([0]))
    expected = 0.75 * 0.5 * torch.tensor([[other, -other]], dtype=torch.float64)
    torch.testing.assert_close(found.error, expected)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_error_times_hidden_is_what_autograd_gives_for_the_weight(options):
    head = random_head(**options)
    hidden, labels = random_tokens(head)
    found = prediction_error(head, hidden, labels)

    weight = head.weight.clone().requires_grad_()
    logits = hidden @ weight.T
    if head.bias is not None:
        logits = logits + head.bias
    logits = logits * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    (gradient,) = torch.autograd.grad(loss.sum(), weight)

    torch.testing.assert_close(found.error.T @ hidden, -gradient, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(found.loss, loss.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.probability, loss.detach().neg().exp())


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"scale": 0.3}])
def test_errors_sum_to_zero_over_the_vocabulary(options):
    head = random_head(**options)
    error = prediction_error(head, *random_tokens(head)).error
    torch.testing.assert_close(error.sum(dim=1), torch.zeros(11).double(), rtol=0, atol=1e-14)


def test_a_label_that_is_wrong_by_200_nats():
    """exp(-200) is 0 in float32, and minus its logarithm would be infinite."""
    head = Head(torch.tensor([[200.0], [0.0], [-1e4]]))
    found = prediction_error(head, torch.ones(2, 1), torch.tensor([1, 0]))
    assert found.loss.tolist() == [200.0, 0.0]
    assert found.probability.tolist() == [0.0, 1.0]
    assert found.error.tolist() == [[-1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]


def test_a_loss_between_zero_and_rounding_is_not_negative():
    head = Head(torch.tensor([[17.0], [0.0]]))
    found = prediction_error(head, torch.ones(1, 1), torch.tensor([0]))
    assert 0 <= float(found.loss[0]) < 1e-6
    assert float(found.probability[0]) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_errors_are_float32_whatever_the_head_is(dtype):
    found = prediction_error(head := random_head(dtype=dtype), *random_tokens(head))
    assert {t.dtype for t in found} == {torch.float32}
    exact = prediction_error(random_head(), *random_tokens(random_head()))
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found.error.double(), exact.error, rtol=0, atol=tolerance)


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_head_and_hidden_states_are_left_as_they_were(options):
    """Logits are overwritten in place; a head's parameters and the model's states never are."""
    head = random_head(**options)
    hidden, labels = random_tokens(head)
    before = [t.clone() for t in (head.weight, hidden, labels)]
    prediction_error(head, hidden, labels)
    assert all(map(torch.equal, before, (head.weight, hidden, labels)))


@pytest.mark.parametrize("options", HEADS.values(), ids=HEADS)
def test_a_reordered_head_gives_reordered_errors(options):
    head = random_head(**options)
    hidden, labels = random_tokens(head)
    order = torch.randperm(23, generator=torch.Generator().manual_seed(5))
    place = torch.argsort(order)
    moved = prediction_error(head.reordered(order), hidden, place[labels])
    plain = prediction_error(head, hidden, labels)
    torch.testing.assert_close(moved.error, plain.error[:, order])
    torch.testing.assert_close(moved.loss, plain.loss)
