import numpy as np
import oracle
import pytest
import torch
from embedders import SAMPLES
from exact_readers import (
    BROKEN,
    CERTAIN,
    DAMPING,
    VALIDATION,
    breakable,  # noqa: F401 - a fixture
    certain_reader,
    geometry,
    prepared,
    reader,
    truth,
)

from forvalue_index.exceptions import BadSampleError
from forvalue_index.gradients.exact_values import exact_values, validation_gradient
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.settings import GEOMETRIES
from forvalue_index.store.records import StoredSample
from forvalue_index.valuation.explain import explanation_of
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import ValidationSet

NO_STATISTICS = SampleStatistics(1, 1, truncated=False, loss=0.0, label_error_mass=0.0, norm=0.0)


def stored(sample, id_=5, **options):
    return StoredSample(id_, sample, NO_STATISTICS, "segment", **options)


def explained(read, name="raw", sample=SAMPLES[1], validation=VALIDATION, **options):
    found = ValidationSet(tuple(prepared(read, validation)), ("a warning",))
    return explanation_of(read, geometry(name, read), stored(sample), found, **options)


def labels(sample):
    """Terms and losses of the tokens that count, by position."""
    return {t.position: (t.term, t.loss) for t in sample.tokens if t.loss is not None}


def sum_of_sizes(sample):
    return sum(abs(token.term) for token in sample.tokens)


ALL = [(name, normalize) for name in GEOMETRIES for normalize in (False, True)]


@pytest.mark.parametrize(("name", "normalize"), ALL)
@pytest.mark.parametrize("kind", ["llama", "gemma2", "phi"])
def test_terms_sum_to_the_exact_score(kind, name, normalize):
    """In float32, from both sides, to 1e-5; and the score is that of autograd."""
    read = reader(kind, torch.float32)
    left, right, expected = truth(kind, name, normalize)
    items, queries = prepared(read), prepared(read, VALIDATION)
    target = validation_gradient(read, geometry(name, read), queries, normalize=normalize)
    scores = exact_values(read, target, items)
    scales = oracle.scales(left, right, normalize=normalize).mean(axis=0)
    for i, sample in enumerate(SAMPLES):
        found = explained(read, name, sample, normalize=normalize, validation_tokens=True)
        terms = [token.term for token in found.training.tokens]
        assert abs(found.score - expected[:, i].mean()) <= 1e-4 * scales[i]
        assert sum(terms) == pytest.approx(found.score, rel=1e-5, abs=1e-12)
        assert abs(found.score - scores[i]) <= 1e-5 * sum_of_sizes(found.training)
        others = sum(one.score for one in found.validation)
        assert abs(others - found.score) <= 1e-5 * sum(map(sum_of_sizes, found.validation))
        assert len(found.validation) == len(VALIDATION)


@pytest.mark.parametrize(("name", "normalize"), ALL)
def test_terms_are_those_of_each_token(name, normalize):
    """e . (M h) for each label, with M the mean gradient of the other side."""
    read = reader("llama")
    left, right, _ = truth("llama", name, normalize)

    def gradient(one):
        return oracle.unit(oracle.gradient(one)) if normalize else oracle.gradient(one)

    def terms(one, other, weight):
        norm = np.linalg.norm(oracle.gradient(one)) if normalize else 1.0
        return np.einsum("tv,vh,th->t", one.error, other, one.hidden) * weight / norm

    mean = np.mean([gradient(one) for one in left], axis=0)
    found = explained(read, name, normalize=normalize, validation_tokens=True)
    sides = [(found.training, right[1], mean, 1.0)]
    sides += [
        (one, seen, gradient(right[1]), 1 / 3)
        for one, seen in zip(found.validation, left, strict=True)
    ]
    samples = [SAMPLES[1], *VALIDATION]
    for (one, seen, other, weight), p in zip(sides, prepared(read, samples), strict=True):
        assert list(labels(one)) == np.flatnonzero(p.encoded.label_mask).tolist()
        values, losses = zip(*labels(one).values(), strict=True)
        np.testing.assert_allclose(values, terms(seen, other, weight), rtol=1e-8, atol=1e-10)
        np.testing.assert_allclose(losses, seen.loss, rtol=1e-9)
        assert [token.position for token in one.tokens] == list(range(len(p.encoded)))
        assert [token.token for token in one.tokens] == p.encoded.token_ids.tolist()
        assert all(token.term == 0 for token in one.tokens if token.loss is None)
        assert "".join(token.text for token in one.tokens) == read.decode(
            p.encoded.token_ids.tolist()
        )
        assert one.sample is p.sample


def test_what_is_explained_is_said():
    read = reader("llama")
    found = explained(read, "fisher", normalize=True)
    assert (found.id, found.scoring) == (5, Scoring("fisher", normalize=True))
    assert found.validation == ()
    assert found.warnings == ("a warning",)
    assert found.validation_samples == 3
    labelled = [p.encoded.n_label_tokens for p in prepared(read, VALIDATION)]
    assert found.validation_label_tokens == sum(labelled)
    assert DAMPING != 1


@pytest.mark.parametrize("hardest", [0.3, 0.6])
def test_tokens_that_do_not_count_have_no_term(hardest):
    read = reader("llama", torch.float64, hardest)
    every = labels(explained(reader("llama")).training)
    count = int(np.ceil(hardest * len(every)))
    hard = sorted(sorted(every, key=lambda position: -every[position][1])[:count])
    found = explained(read, validation_tokens=True)
    assert list(labels(found.training)) == hard
    assert sum(one.score for one in found.validation) == pytest.approx(found.score, rel=1e-9)


def test_the_order_of_terms_is_that_of_their_size():
    found = explained(reader("llama"))
    sizes = [abs(token.term) for token in found.training.strongest(1000)]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == len(labels(found.training))
    assert found.training.largest == sizes[0]
    assert found.training.strongest(3) == found.training.strongest(1000)[:3]


@pytest.mark.parametrize("normalize", [False, True])
def test_a_sample_without_gradient_has_no_score(normalize):
    read = certain_reader()
    found = explained(read, "raw", CERTAIN, normalize=normalize, validation_tokens=True)
    assert found.score == 0
    assert found.training.largest == 0
    assert [one.score for one in found.validation] == [0, 0, 0]


def test_what_cannot_be_explained(breakable):  # noqa: F811
    read = breakable
    usable = ValidationSet(tuple(prepared(read, VALIDATION)))
    raw = geometry("raw", read)
    with pytest.raises(BadSampleError, match=r"^the text of sample \w+ cannot be read.*: gone$"):
        explanation_of(read, raw, stored(SAMPLES[0], text_error="gone"), usable)
    broken = ValidationSet((*usable.prepared, BROKEN))
    with pytest.raises(BadSampleError, match=r"train\.jsonl:7: .* numbers for sample bad one"):
        explanation_of(read, raw, stored(SAMPLES[0]), broken)
    certain = certain_reader()
    zero = ValidationSet(tuple(prepared(certain, [CERTAIN])))
    with pytest.raises(BadSampleError, match="the gradient of the validation set is zero"):
        explanation_of(certain, raw, stored(SAMPLES[0]), zero)
