import json
import shutil

import numpy as np
import oracle
import pytest
import torch
import transformers
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BadSampleError, BrokenIndexError, UsageError
from forvalue_index.progress import Progress
from forvalue_index.settings import GEOMETRIES
from forvalue_index.sources.source import open_sources
from forvalue_index.valuation import rerank as reranking
from forvalue_index.valuation import values
from forvalue_index.valuation.rerank import prepare_stored, rescorer
from forvalue_index.valuation.results import Values
from forvalue_index.valuation.scoring import Scoring
from forvalue_index.valuation.validation import read_samples, tokenised
from forvalue_index.valuation.values import named_values, streamed_values

pytest_plugins = ("tiny",)

TRAINING = rows(14)
VALIDATION = rows(3, seed=2, prefix="v")


@pytest.fixture(scope="module")
def all_geometries(tmp_path_factory, model_dir):
    """The directory of an index with rows of every geometry."""
    path = tmp_path_factory.mktemp("all") / "index"
    settings = {"dim": 512, "geometry": ",".join(GEOMETRIES), "dtype": "float32"}
    with ValuationIndex.create(path, str(model_dir), **settings) as created:
        created.add(TRAINING[:9])
        created.add(TRAINING[9:])
    return path


@pytest.fixture
def index(all_geometries, tmp_path):
    path = shutil.copytree(all_geometries, tmp_path / "index")
    with ValuationIndex.open(path) as opened:
        yield opened


@pytest.fixture(scope="module")
def model(model_dir):
    return transformers.AutoModelForCausalLM.from_pretrained(model_dir).double()


def read(index, data=VALIDATION):
    return tokenised(index.model.reader, read_samples(open_sources(data)))


def truth(index, model, name, *, normalize=False):
    """Exact values [validation, training] in the geometry that the first `add` calibrated."""

    def seen(data):
        encoded = [p.encoded for p in read(index, data).prepared]
        return [oracle.seen(model, e.token_ids, e.label_mask) for e in encoded]

    known = oracle.moments(seen(TRAINING[:9]))
    damping = index.manifest.settings.damping
    sides = [
        [oracle.mapped(one, name, known, damping) for one in seen(data)]
        for data in (VALIDATION, TRAINING)
    ]
    scales = oracle.scales(*sides, normalize=normalize)
    return oracle.value_matrix(*sides, normalize=normalize), scales


ALL = [(name, normalize) for name in GEOMETRIES for normalize in (False, True)]


@pytest.mark.parametrize(("name", "normalize"), ALL)
def test_all_samples_are_scored_exactly(index, model, name, normalize):
    matrix, scales = truth(index, model, name, normalize=normalize)
    found = index.values(VALIDATION, exact=True, geometry=name, normalize=normalize)
    assert found.ids.tolist() == list(range(14))
    assert found.scores.dtype == found.stderrs.dtype == np.float32
    assert not found.stderrs.any()
    gaps = np.abs(found.scores - matrix.mean(axis=0))
    assert (gaps <= 1e-4 * scales.mean(axis=0)).all()


@pytest.mark.parametrize(("name", "normalize"), ALL)
def test_sketched_scores_are_near_exact_ones(index, model, name, normalize):
    """As near as they say: this binds the rows of a geometry to its exact scores."""
    matrix, _ = truth(index, model, name, normalize=normalize)
    found = index.values(VALIDATION, geometry=name, normalize=normalize)
    deviations = (found.scores - matrix.mean(axis=0)) / found.stderrs
    assert (np.abs(deviations) < 5).all()
    assert 0.1 < np.sqrt(np.mean(deviations**2)) < 2.5


@pytest.mark.parametrize(("name", "normalize"), ALL)
def test_rescoring_everything_for_each_sample_is_exact(index, model, name, normalize):
    """One validation sample alone gives the values that it has among others."""
    matrix, scales = truth(index, model, name, normalize=normalize)
    result = index.query(
        VALIDATION, top=14, rerank=14, per_sample=True, geometry=name, normalize=normalize
    )
    answers = [(result, matrix.mean(axis=0), scales.mean(axis=0))]
    answers += zip(result.per_sample, matrix, scales, strict=True)
    for answer, expected, scale in answers:
        for hits, order in ((answer.helpful, -expected), (answer.harmful, expected)):
            assert [hit.id for hit in hits] == np.argsort(order).tolist()
            assert all(hit.exact and hit.stderr == 0 for hit in hits)
            for hit in hits:
                assert abs(hit.score - expected[hit.id]) <= 1e-4 * scale[hit.id]
    for row, one in zip(VALIDATION, result.per_sample, strict=True):
        alone = index.values([row], exact=True, geometry=name, normalize=normalize)
        scores = np.array([h.score for h in sorted(one.helpful, key=lambda h: h.id)])
        size = np.abs(scores).max()
        np.testing.assert_allclose(alone.scores, scores, rtol=1e-4, atol=1e-5 * size)


def test_texts_are_read_a_bounded_number_at_a_time(index, monkeypatch):
    expected = index.values(VALIDATION, exact=True).scores
    asked = []
    target = reranking.validation_gradient(
        index.model.reader, index.model.geometry("raw"), read(index).prepared
    )
    monkeypatch.setattr(values, "EXACT_SAMPLES", 4)
    with index.storage.catalog.snapshot() as snapshot:
        found = streamed_values(snapshot, index.model.reader, target, on_progress=asked.append)
    np.testing.assert_allclose(found.scores, expected, rtol=1e-4)
    assert asked == [Progress("scoring", done, 14) for done in (4, 8, 12, 14)]


def test_removed_samples_have_no_exact_value(index):
    before = index.values(VALIDATION, exact=True)
    index.storage.catalog.remove([3, 9])
    found = index.values(VALIDATION, exact=True)
    left = [i for i in range(14) if i not in (3, 9)]
    assert found.ids.tolist() == left
    np.testing.assert_allclose(found.scores, before.scores[left], rtol=1e-4)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_whitening_is_the_dense_map(index, name):
    """The query times L (R + L I)^-1, with L the damping times the mean diagonal of R."""
    with index.storage.view() as view:
        stored = np.concatenate([b.rows.numpy() for b in view.blocks(name)]).astype(np.float64)
    embedder = index.model.embedder([name])
    query = embedder.embed(list(read(index).prepared)).rows[name].double().numpy().mean(axis=0)
    second = stored.T @ stored / len(stored)
    ridge = index.manifest.settings.damping * np.diag(second).mean()
    mapped = ridge * np.linalg.solve(second + ridge * np.eye(512), query)
    found = index.values(VALIDATION, geometry=name, whiten=True)
    expected = stored @ mapped
    np.testing.assert_allclose(
        found.scores, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
    assert np.isnan(found.stderrs).all()
    plain = index.values(VALIDATION, geometry=name).scores
    assert np.abs(plain - found.scores).max() > 0.01 * np.abs(plain).max(), "it has an effect"
    result = index.query(VALIDATION, top=14, geometry=name, whiten=True)
    assert [hit.id for hit in result.helpful] == np.argsort(-found.scores).tolist()
    assert {(hit.stderr, hit.exact) for hit in result.helpful} == {(None, False)}
    assert result.scoring == Scoring(name, whiten=True)


def test_values_without_an_error_are_null(index):
    values = Values(
        np.arange(14), np.ones(14, np.float32), np.array([np.nan, *[0.5] * 13], np.float32)
    )
    with index.storage.catalog.snapshot() as snapshot:
        (columns,) = named_values(snapshot, values)
    assert columns["stderr"] == [None, *[0.5] * 13]
    assert columns["key"] == [row["id"] for row in TRAINING]


def test_values_of_other_samples_are_refused(index):
    other = Values(np.arange(1, 15), np.ones(14, np.float32), np.ones(14, np.float32))
    with index.storage.catalog.snapshot() as snapshot, pytest.raises(BrokenIndexError):
        list(named_values(snapshot, other))


# Texts that are lost.


@pytest.fixture
def referring(tmp_path, model_dir):
    """An index that refers to its texts, of which the one of r3 has changed since."""
    path = tmp_path / "train.jsonl"
    lines = [json.dumps(row) + "\n" for row in TRAINING]
    path.write_text("".join(lines))
    settings = {"dim": 512, "payload": "reference", "dtype": "float32"}
    with ValuationIndex.create(tmp_path / "ref", str(model_dir), **settings) as created:
        created.add(path)
        lines[3] = lines[3].replace('"3 ', '"4 ')
        path.write_text("".join(lines))
        yield created


def stored(index, ids):
    with index.storage.catalog.snapshot() as snapshot:
        return snapshot.samples(ids)


def test_a_stored_sample_is_read_as_it_was_added(referring):
    found = stored(referring, [0, 3])
    (wanted,) = read(referring, TRAINING[:1]).prepared
    encoded = prepare_stored(referring.model.reader, found[0]).encoded
    assert encoded.token_ids.tolist() == wanted.encoded.token_ids.tolist()
    assert encoded.label_mask.tolist() == wanted.encoded.label_mask.tolist()
    said = (
        "the text of sample r3 cannot be read, and exact scores need it: train.jsonl:4 has "
        "changed since it was added; restore the file or add it again"
    )
    with pytest.raises(BadSampleError) as error:
        prepare_stored(referring.model.reader, found[3])
    assert str(error.value) == said
    with pytest.raises(BadSampleError, match="the text of sample r3 cannot be read"):
        referring.values(VALIDATION, exact=True)


@pytest.mark.parametrize("per_sample", [False, True])
def test_what_cannot_be_rescored_is_left_out_and_named(referring, per_sample):
    raw = referring.model.geometry("raw")
    rescore = rescorer(referring.model.reader, raw, read(referring), per_sample=per_sample)
    found = rescore(stored(referring, [5, 3, 1]))
    assert found.ids.tolist() == [1, 5]
    assert found.scores.shape == (4 if per_sample else 1, 2)
    assert len(found.failures) == 1
    assert found.failures[0].startswith("the text of sample r3 cannot be read")
    assert found.failures[0].endswith("; its score is sketched")
    nothing = rescore(stored(referring, [3]))
    assert nothing.ids.tolist() == []
    assert len(nothing.failures) == 1


def test_candidates_without_text_keep_their_sketched_scores(referring):
    sketched = referring.query(VALIDATION, top=14)
    result = referring.query(VALIDATION, top=14, rerank=14)
    assert result.reranked == 13
    by_id = {hit.id: hit for hit in result.helpful}
    before = {hit.id: hit for hit in sketched.helpful}
    assert not by_id[3].exact
    assert (by_id[3].score, by_id[3].stderr) == (before[3].score, before[3].stderr)
    assert all(hit.exact for hit in result.helpful if hit.id != 3)
    scores = [hit.score for hit in result.helpful]
    assert scores == sorted(scores, reverse=True)
    assert any("the text of sample r3 cannot be read" in said for said in result.warnings)


def test_no_text_at_all_leaves_a_sketched_answer(referring, tmp_path):
    (tmp_path / "train.jsonl").unlink()
    sketched = referring.query(VALIDATION, top=5)
    result = referring.query(VALIDATION, top=5, rerank=14, per_sample=True)
    assert result.reranked == 0
    assert [h.id for h in result.helpful] == [h.id for h in sketched.helpful]
    assert not any(hit.exact for hit in result.helpful)
    (said,) = [said for said in result.warnings if "keep sketched scores" in said]
    assert said.startswith("14 candidates keep sketched scores; the first: the text of sample r0 ")


# Which tokens count is for exact scores what it was for rows.


@pytest.mark.parametrize("settings", [{"hardest": 0.5}, {"max_label_tokens": 3}])
def test_exact_scores_are_of_the_tokens_that_rows_are_of(tmp_path, model_dir, model, settings):
    with ValuationIndex.create(
        tmp_path / "some",
        str(model_dir),
        dim=16_384,
        row_dtype="float32",
        geometry="raw",
        **settings,
    ) as index:
        index.add(TRAINING)
        sketch_free = index.values(VALIDATION)
        exact = index.values(VALIDATION, exact=True)
        with ValuationIndex.create(tmp_path / "all", str(model_dir), dim=64) as plain:
            whole = [[p.encoded for p in read(plain, d).prepared] for d in (VALIDATION, TRAINING)]
        explained = index.explain("r1", VALIDATION)
    sides = []
    for side in whole:
        kept = []
        for encoded in side:
            one = oracle.seen(model, encoded.token_ids, encoded.label_mask)
            if "hardest" in settings:
                count = int(np.ceil(0.5 * len(one.loss)))
                at = np.sort(np.argsort(-one.loss, kind="stable")[:count])
            else:
                at = np.arange(min(3, len(one.loss)))
            kept.append(oracle.Seen(*(part[at] for part in one)))
        sides.append(kept)
    expected = oracle.value_matrix(*sides).mean(axis=0)
    scale = oracle.scales(*sides).mean(axis=0)
    assert (np.abs(exact.scores - expected) <= 1e-4 * scale).all()
    assert (np.abs(sketch_free.scores - expected) <= 1e-4 * scale).all()
    count = sum(token.loss is not None for token in explained.training.tokens)
    assert count == len(sides[1][1].loss)
    assert explained.score == pytest.approx(float(exact.scores[1]), rel=1e-4)


# What is asked for.


def test_an_index_without_the_rows_of_a_geometry(filled):
    with pytest.raises(UsageError, match=r"kfac: .* has rows of raw; use one of these"):
        filled.query(VALIDATION, geometry="kfac")
    with pytest.raises(UsageError, match=r"kfac: .* has rows of raw; use one of these"):
        filled.values(VALIDATION, geometry="kfac")
    assert filled.model._reader is None, "nothing was loaded"
    assert len(filled.values(VALIDATION, geometry="kfac", exact=True).ids) == 30
    assert filled.explain("r1", VALIDATION, geometry="kfac").scoring.geometry == "kfac"


def test_an_unknown_geometry_is_refused(filled):
    for call in (filled.query, filled.values):
        with pytest.raises(UsageError, match="--geometry"):
            call(VALIDATION, geometry="flat")
    with pytest.raises(UsageError, match="--geometry cannot be 'flat'; use one of raw, centered"):
        filled.values(VALIDATION, geometry="flat", exact=True)
    with pytest.raises(UsageError, match="--geometry cannot be 'flat'; use one of raw, centered"):
        filled.explain("r1", VALIDATION, geometry="flat")


def test_whitening_and_exact_scores_exclude_each_other(filled):
    calls = [
        lambda: filled.query(VALIDATION, rerank=20, whiten=True),
        lambda: filled.values(VALIDATION, exact=True, whiten=True),
        lambda: filled.explain("r1", VALIDATION, whiten=True),
    ]
    for call in calls:
        with pytest.raises(UsageError, match="--whiten changes a query in the space of rows"):
            call()
    assert filled.model._reader is None


@pytest.mark.parametrize("rerank", [9, 1, 0, -3])
def test_fewer_candidates_than_answers_are_refused(filled, rerank):
    said = f"--rerank {rerank} is less than the 10 samples asked for; use at least 10, better"
    with pytest.raises(UsageError, match=said):
        filled.query(VALIDATION, top=4, bottom=10, rerank=rerank)
    assert filled.model._reader is None


def test_more_candidates_than_samples_are_all_of_them(filled):
    result = filled.query(VALIDATION, rerank=1000)
    assert result.reranked == 30
    assert "--rerank 1,000: the index holds 30 samples, so all were taken" in result.warnings
    assert not any("--rerank" in said for said in filled.query(VALIDATION, rerank=30).warnings)


@pytest.mark.parametrize("geometry", GEOMETRIES)
def test_an_empty_index_has_nothing_to_score(tmp_path, model_dir, geometry):
    """Whether it is calibrated yet or not."""
    settings = {"dim": 64, "geometry": geometry}
    with ValuationIndex.create(tmp_path / "ix", str(model_dir), **settings) as index:
        for calibrated in (False, True):
            if calibrated:
                index.calibrate(TRAINING)
            result = index.query(VALIDATION, rerank=100, per_sample=True)
            assert (result.reranked, result.helpful, len(result.per_sample)) == (0, (), 3)
            assert index.query(VALIDATION, whiten=True).helpful == ()
            # Of another geometry, too, which exact scores can have.
            other = {"exact": True, "geometry": GEOMETRIES[GEOMETRIES.index(geometry) - 1]}
            for how in ({}, {"exact": True}, other, {"whiten": True}, {"normalize": True}):
                output = tmp_path / "v.csv"
                assert len(index.values(VALIDATION, output=output, **how).ids) == 0
                assert len(output.read_text("utf-8").splitlines()) <= 1


def test_rescoring_is_timed_apart(filled):
    assert "rerank" not in filled.query(VALIDATION).seconds
    result = filled.query(VALIDATION, rerank=12)
    assert list(result.seconds) == ["load", "embed", "open", "search", "rerank"]
    assert result.seconds["rerank"] > 0
    assert torch.is_inference_mode_enabled() is False
