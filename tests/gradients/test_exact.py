import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import FLOAT32_LOGITS, KINDS, TIED, VOCAB, tiny_model, tiny_tokenizer

from forvalue_index.gradients.exact import gradient, kernel_score, streaming_terms
from forvalue_index.model.batching import collate
from forvalue_index.model.encoded import Encoded
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.model.prediction_error import Head, prediction_error

V, D = 19, 6


def random_head(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Head(torch.randn(V, D, generator=generator, dtype=torch.float64))


def random_sample(n, *, seed, head=None):
    """Errors, hidden states and labels of a sample of n label tokens."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, D, generator=generator, dtype=torch.float64)
    labels = torch.randint(V, (n,), generator=generator)
    return prediction_error(head or random_head(), hidden, labels).error, hidden, labels


def matrix_score(one, two):
    return (gradient(*one[:2]) * gradient(*two[:2])).sum()


def relative(difference, *norms):
    size = 1.0
    for tensor in norms:
        size *= float(tensor.norm())
    return float(torch.as_tensor(difference).norm()) / size


def test_a_score_by_hand():
    """<(1, -1), (2, 0)> = 2 for the errors times <(3), (5)> = 15 for the states."""
    validation = (torch.tensor([[1.0, -1.0]]), torch.tensor([[3.0]]))
    training = (torch.tensor([[2.0, 0.0]]), torch.tensor([[5.0]]))
    assert float(kernel_score(validation, training)) == 30.0
    assert gradient(*training).tolist() == [[10.0], [0.0]]
    assert streaming_terms(gradient(*validation), *training).tolist() == [30.0]


@pytest.mark.parametrize(("n_validation", "n_training"), [(1, 1), (4, 9), (12, 3)])
def test_all_forms_of_the_score_agree(n_validation, n_training):
    validation = random_sample(n_validation, seed=1)
    training = random_sample(n_training, seed=2)
    expected = float(matrix_score(validation, training))
    assert float(kernel_score(validation[:2], training[:2])) == pytest.approx(expected, rel=1e-10)
    terms = streaming_terms(gradient(*validation[:2]), *training[:2])
    assert float(terms.sum()) == pytest.approx(expected, rel=1e-10)
    one_by_one = [
        matrix_score(validation, (training[0][[t]], training[1][[t]])) for t in range(n_training)
    ]
    torch.testing.assert_close(terms, torch.stack(one_by_one), rtol=1e-10, atol=1e-12)


def test_a_score_is_how_fast_the_sample_gets_likelier_along_the_gradient():
    """d/d(eps) log p of the training sample under the weight W + eps G_v, at eps = 0."""
    head = random_head()
    validation = random_sample(4, seed=1, head=head)
    error, hidden, labels = random_sample(9, seed=2, head=head)
    direction = gradient(*validation[:2])

    eps = torch.zeros((), dtype=torch.float64, requires_grad=True)
    logits = hidden @ (head.weight + eps * direction).T
    log_probability = torch.log_softmax(logits, dim=1).gather(1, labels[:, None]).sum()
    (slope,) = torch.autograd.grad(log_probability, eps)
    terms = streaming_terms(direction, error, hidden)
    assert float(terms.sum()) == pytest.approx(float(slope), rel=1e-10)


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 5), st.integers(1, 6))
def test_the_score_of_a_set_is_the_mean_of_its_scores(seed, n_validation, n_training):
    samples = [random_sample(2 + i, seed=seed + i) for i in range(n_validation)]
    training = random_sample(n_training, seed=seed + 99)
    mean = torch.stack([gradient(*s[:2]) for s in samples]).mean(dim=0)
    scores = torch.stack([kernel_score(s[:2], training[:2]) for s in samples])
    of_the_mean = streaming_terms(mean, *training[:2]).sum()
    torch.testing.assert_close(of_the_mean, scores.mean(), rtol=0, atol=1e-10)


@settings(deadline=None)
@given(st.integers(0, 10**6))
def test_scores_are_symmetric_and_change_sign_with_the_query(seed):
    one, two = random_sample(3, seed=seed), random_sample(5, seed=seed + 1)
    score = kernel_score(one[:2], two[:2])
    torch.testing.assert_close(kernel_score(two[:2], one[:2]), score, rtol=0, atol=1e-10)
    torch.testing.assert_close(kernel_score((-one[0], one[1]), two[:2]), -score, rtol=0, atol=0)
    terms = streaming_terms(gradient(*one[:2]), *two[:2])
    torch.testing.assert_close(streaming_terms(-gradient(*one[:2]), *two[:2]), -terms)
    assert float(matrix_score(one, one)) > 0


def test_the_order_of_tokens_changes_nothing():
    validation, training = random_sample(4, seed=1), random_sample(9, seed=2)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(3))
    shuffled = (training[0][order], training[1][order])
    score = kernel_score(validation[:2], training[:2])
    torch.testing.assert_close(kernel_score(validation[:2], shuffled), score, rtol=1e-12, atol=0)


# The oracle: autograd on the whole model.


def sample_of_tokens(seed, length=14):
    """Random tokens; labels in two runs, as a conversation of two turns has them."""
    generator = torch.Generator().manual_seed(seed)
    token_ids = torch.randint(VOCAB, (length,), generator=generator).numpy()
    mask = torch.zeros(length, dtype=torch.bool)
    mask[3:6] = mask[9 : length - seed] = True
    return Encoded(token_ids, mask.numpy())


def own_errors(backbone, sample):
    batch = collate([sample], [0])
    hidden = backbone.hidden_states(batch)
    found = prediction_error(backbone.head, hidden, torch.from_numpy(batch.labels))
    return found, hidden.to(found.error.dtype)


def summed_loss(logits, sample):
    """Cross-entropy, summed over label tokens, from logits [token, vocab] of the sample."""
    at = torch.from_numpy(sample.label_mask)[1:]
    labels = torch.from_numpy(sample.token_ids)[1:]
    return torch.nn.functional.cross_entropy(logits[:-1][at], labels[at], reduction="sum")


def autograd_gradient(model, sample):
    """Minus the gradient for the head alone, from the model's own forward pass, and the loss.

    The head gets a weight of its own, so a tied embedding adds nothing to the gradient.
    """
    layer = model.get_output_embeddings()
    kept, layer.weight = layer.weight, torch.nn.Parameter(layer.weight.detach().clone())
    try:
        token_ids = torch.from_numpy(sample.token_ids)[None]
        loss = summed_loss(model(input_ids=token_ids, use_cache=False).logits[0], sample)
        (found,) = torch.autograd.grad(loss, layer.weight)
    finally:
        layer.weight = kept
    return -found, float(loss.detach())


def tolerances(kind, dtype):
    if dtype == torch.float32:
        return 1e-4
    return 1e-6 if kind in FLOAT32_LOGITS else 1e-10


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_scores_are_those_of_autograd(kind, dtype):
    model = tiny_model(kind, dtype)
    backbone = Backbone(model, tiny_tokenizer())
    samples = [sample_of_tokens(seed) for seed in range(4)]
    tolerance = tolerances(kind, dtype)

    found = [own_errors(backbone, s) for s in samples]
    own = [gradient(f.error, hidden) for f, hidden in found]
    oracle = []
    for sample, mine, (errors, _) in zip(samples, own, found, strict=True):
        theirs, loss = autograd_gradient(model, sample)
        assert relative(mine - theirs, theirs) <= tolerance
        assert float(errors.loss.sum()) == pytest.approx(loss, rel=tolerance)
        oracle.append(theirs)

    for i in range(4):
        for j in range(4):
            expected = (oracle[i] * oracle[j]).sum()
            kernel = kernel_score(
                (found[i][0].error, found[i][1]), (found[j][0].error, found[j][1])
            )
            streamed = streaming_terms(own[i], found[j][0].error, found[j][1]).sum()
            for score in (kernel, streamed, (own[i] * own[j]).sum()):
                assert relative(score - expected, oracle[i], oracle[j]) <= tolerance


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in TIED])
def test_an_untied_head_has_the_gradient_of_plain_backpropagation(kind):
    """Nothing is cut or replaced here: `backward` through the model as it is."""
    model = tiny_model(kind, torch.float64)
    sample = sample_of_tokens(1)
    model.zero_grad()
    summed_loss(
        model(input_ids=torch.from_numpy(sample.token_ids)[None]).logits[0], sample
    ).backward()
    theirs = -model.get_output_embeddings().weight.grad
    errors, hidden = own_errors(Backbone(model, tiny_tokenizer()), sample)
    assert relative(gradient(errors.error, hidden) - theirs, theirs) <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
def test_trunk_and_head_give_the_logits_of_the_model(kind):
    model = tiny_model(kind, torch.float64)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert tied == (kind in TIED)
    sample = sample_of_tokens(0)
    everywhere = Encoded(sample.token_ids, sample.token_ids >= 0)
    everywhere.label_mask[0] = False
    backbone = Backbone(model, tiny_tokenizer())
    own = backbone.head.logits(backbone.hidden_states(collate([everywhere], [0])))
    with torch.inference_mode():
        theirs = model(input_ids=torch.from_numpy(sample.token_ids)[None]).logits[0, :-1]
    assert relative(own - theirs, theirs) <= tolerances(kind, torch.float64)
    assert float(theirs.std()) > 0.5  # a flat softmax would prove little
