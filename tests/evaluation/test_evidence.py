"""What evaluations look at, against what queries say; and what they refuse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.evaluation.evidence import EvaluationData, gather, warned
from forvalue_index.evaluation.fields import class_names, field_values
from forvalue_index.evaluation.scores import (
    BM25,
    BM25_RESPONSE,
    HIDDEN_STATE,
    scorings,
    sketched_scores,
)
from forvalue_index.exceptions import BadSampleError, SourceError, UsageError
from forvalue_index.sources.data import Data
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.valuation.scorers.bm25 import bm25_scores
from forvalue_index.valuation.scorers.self_influence import self_influences
from forvalue_index.valuation.scoring import Scoring

pytest_plugins = ("tiny",)

VALIDATION = rows(4, seed=2, prefix="v")


RAW, COSINE = "for-value raw", "for-value raw, cosine"


@pytest.fixture(scope="module")
def geometries(tmp_path_factory, model_dir):
    """An index of all geometries, in two segments of float32."""
    path = tmp_path_factory.mktemp("geometries") / "index"
    settings = {"dim": 256, "geometry": "fisher,raw,centered,kfac", "row_dtype": "float32"}
    with ValuationIndex.create(path, str(model_dir), **settings) as created:
        created.add(rows(12))
        created.add(rows(5, seed=1, prefix="s"))
        yield created


def gathered(index, data=VALIDATION, *, reading=None, **options):
    return gather(index, EvaluationData(Data.of(data, reading), **options))


def sample(key, **metadata):
    turns = (Message("user", "p"), Message("assistant", "r"))
    return Sample(turns, source="x.jsonl", position=3, own_id=key, metadata=metadata)


def test_scores_are_those_of_queries(filled):
    filled.remove(["r3", "s0"])
    evidence = gathered(filled)
    keys = [one.key for one in evidence.training_samples]
    assert keys == [f"r{i}" for i in range(20) if i != 3] + [f"s{i}" for i in range(1, 10)]
    assert [one.key for one in evidence.validation_samples] == ["v0", "v1", "v2", "v3"]
    found = filled.query(VALIDATION, top=28, per_sample=True)
    for one, scores in zip(found.per_sample, evidence.scores[RAW], strict=True):
        expected = {hit.sample.key: hit.score for hit in one.helpful}
        assert dict(zip(keys, scores.tolist(), strict=True)) == pytest.approx(expected, rel=1e-4)
    assert list(evidence.scores) == [RAW, COSINE, BM25, BM25_RESPONSE, HIDDEN_STATE]
    assert (list(evidence.sketched), evidence.exact) == ([RAW, COSINE], {})
    assert list(evidence.baselines) == [BM25, BM25_RESPONSE, HIDDEN_STATE]
    assert {scores.shape for scores in evidence.scores.values()} == {(4, 28)}
    with filled.storage.catalog.snapshot() as snapshot:
        losses = [snapshot.sample(key).statistics.loss for key in keys]
    assert evidence.loss.tolist() == losses
    evaluated = evidence.evaluated
    assert (evaluated.index, evaluated.fingerprint) == (str(filled.path), found.fingerprint)
    assert (evaluated.index_version, evaluated.labels) == (found.index_version, "response")
    assert (evaluated.training_samples, evaluated.validation_samples) == (28, 4)
    assert list(evaluated.seconds) == ["load", "score", "baselines"]
    assert evaluated.warnings == ()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("geometry", ["raw", "centered", "fisher", "kfac"])
def test_each_geometry_is_that_of_queries(geometries, geometry, normalize):
    """Scores and their standard errors; with `exact`, those of a query re-scored whole."""
    evidence = gathered(geometries, exact=True)
    keys = [one.key for one in evidence.training_samples]
    name = f"for-value {geometry}{', cosine' if normalize else ''}"
    asked = {"top": 17, "per_sample": True, "geometry": geometry, "normalize": normalize}
    found = geometries.query(VALIDATION, **asked)
    for place, one in enumerate(found.per_sample):
        for matrix, what in ((evidence.sketched, "score"), (evidence.stderrs, "stderr")):
            expected = {hit.sample.key: getattr(hit, what) for hit in one.helpful}
            mine = dict(zip(keys, matrix[name][place].tolist(), strict=True))
            assert mine == pytest.approx(expected, rel=1e-3, abs=1e-6)
    exact = geometries.query(VALIDATION, **(asked | {"per_sample": False}), rerank=17)
    assert all(hit.exact for hit in exact.helpful)
    mean = evidence.exact[name].mean(axis=0)
    expected = {hit.sample.key: hit.score for hit in exact.helpful}
    scale = max(map(abs, expected.values()))
    mine = dict(zip(keys, mean.tolist(), strict=True))
    assert mine == pytest.approx(expected, abs=1e-4 * scale)
    assert np.abs(evidence.exact[name] - evidence.sketched[name]).max() > 1e-2 * scale


def test_names_say_how_scores_are_taken(geometries):
    evidence = gathered(geometries, exact=True)
    ours = [
        f"for-value {geometry}{cosine}"
        for geometry in ("fisher", "raw", "centered", "kfac")
        for cosine in ("", ", cosine")
    ]
    assert list(evidence.sketched) == list(evidence.stderrs) == list(evidence.exact) == ours
    assert list(scorings(geometries)) == ours
    exact = [f"{name}, exact" for name in ours]
    assert list(evidence.scores) == [*ours, *exact, BM25, BM25_RESPONSE, HIDDEN_STATE]
    assert np.array_equal(evidence.scores[exact[0]], evidence.exact[ours[0]])
    for scores in evidence.scores.values():
        assert (scores.shape, scores.dtype) == ((4, 17), np.float32)


def test_warnings_are_added_to_those_there_are(filled):
    evaluated = gathered(filled, limit=31).evaluated
    (first,) = evaluated.warnings
    assert warned(evaluated, ["a", "b"]) == replace(evaluated, warnings=(first, "a", "b"))
    assert warned(evaluated, ()) == evaluated


def test_bm25_reads_prompts_and_responses(filled):
    evidence = gathered(filled)
    texts = [f"{row['prompt']} {row['response']}" for row in rows(20) + rows(10, seed=1)]
    queries = [f"{row['prompt']} {row['response']}" for row in VALIDATION]
    assert np.array_equal(evidence.scores[BM25], bm25_scores(queries, texts))
    said = [row["response"] for row in rows(20) + rows(10, seed=1)]
    queries = [row["response"] for row in VALIDATION]
    assert np.array_equal(evidence.scores[BM25_RESPONSE], bm25_scores(queries, said))


def test_a_sample_is_most_like_itself(filled):
    """Training samples asked for themselves, in another order."""
    asked = rows(20)[::-1]
    scores = gathered(filled, asked).scores
    assert scores[HIDDEN_STATE].argmax(axis=1).tolist() == list(range(19, -1, -1))
    assert scores[HIDDEN_STATE].max(axis=1) == pytest.approx(np.ones(20), abs=1e-4)
    assert scores[BM25].argmax(axis=1).tolist() == list(range(19, -1, -1))


def test_a_limit_draws_samples_by_seed(filled):
    everything = gathered(filled)
    some = gathered(filled, limit=12)
    keys = [one.key for one in everything.training_samples]
    drawn = [one.key for one in some.training_samples]
    assert len(drawn) == 12
    assert drawn == [key for key in keys if key in drawn]
    at = [keys.index(key) for key in drawn]
    for name in (RAW, BM25):  # of these BM25 counts words in the drawn ones alone
        assert some.scores[name].shape == (4, 12)
    assert some.scores[RAW] == pytest.approx(everything.scores[RAW][:, at], rel=1e-4)
    assert some.loss.tolist() == everything.loss[at].tolist()
    assert [one.key for one in gathered(filled, limit=12).training_samples] == drawn
    assert [one.key for one in gathered(filled, limit=12, seed=1).training_samples] != drawn
    assert gathered(filled, limit=30).evaluated.warnings == ()


def test_a_limit_above_what_there_is_warns(filled):
    evidence = gathered(filled, limit=31)
    assert len(evidence.training) == 30
    assert evidence.evaluated.warnings == (
        "--limit is 31 and the index holds 30 samples; all are used",
    )


@pytest.mark.parametrize(("option", "value"), [("limit", 1), ("limit", -5)])
def test_settings_that_cannot_work_are_refused(option, value):
    with pytest.raises(UsageError, match=f"--{option} .*{value}"):
        EvaluationData([], **{option: value})


@pytest.mark.parametrize("count", [0, 1])
def test_an_index_must_hold_something(index, count):
    if count:
        index.add(rows(count))
    with pytest.raises(UsageError, match=f"there are {count} training samples .*forvalue add"):
        gathered(index)


def test_the_check_comes_before_the_model(built_index):
    """It is given all samples, and what it raises stops everything."""

    def check(training, validation):
        raise UsageError(f"{len(training)} and {len(validation)}")

    with (
        ValuationIndex.open(built_index, model="no such model") as opened,
        pytest.raises(UsageError, match="30 and 4"),
    ):
        gather(opened, EvaluationData(VALIDATION), check=check)


def test_lost_texts_are_left_out(tmp_path, model_dir):
    train = write_jsonl(tmp_path / "train.jsonl", rows(6))
    with ValuationIndex.create(tmp_path / "i", str(model_dir), dim=64, payload="reference") as made:
        made.add(train)
        lines = train.read_text("utf-8").splitlines()
        lines[2] = lines[2].replace('"response": "2 ', '"response": "7 ')
        train.write_text("\n".join(lines) + "\n", "utf-8")
        evidence = gathered(made)
        assert [one.key for one in evidence.training_samples] == ["r0", "r1", "r3", "r4", "r5"]
        (warning,) = evidence.evaluated.warnings
        assert "1 training sample(s) are left out, as their texts cannot be read" in warning
        assert "train.jsonl" in warning
        train.unlink()
        with pytest.raises(
            UsageError, match=r"0 training samples with texts .* lost text: .*train"
        ):
            gathered(made)


def test_bad_validation_rows(filled, tmp_path):
    bad = write_jsonl(tmp_path / "v.jsonl", [*VALIDATION[:2], {"prompt": "p", "response": ""}])
    with pytest.raises(BadSampleError, match=r"v\.jsonl:3: .*--on-bad skip"):
        gathered(filled, bad)
    evidence = gathered(filled, bad, reading={"on_bad": "skip"})
    assert len(evidence.validation) == 2
    assert "1 validation row(s) were left out, the first one: " in evidence.evaluated.warnings[0]
    nothing = write_jsonl(tmp_path / "w.jsonl", [{"prompt": "p", "response": ""}])
    with pytest.raises(SourceError, match=r"w\.jsonl has no usable row"):
        gathered(filled, nothing, reading={"on_bad": "skip"})


def test_rows_that_the_tokenizer_refuses(filled):
    """Its prompt alone is longer than the context."""
    long = {"prompt": "z" * 600, "response": "r"}
    with pytest.raises(BadSampleError, match="its prompt alone has"):
        gathered(filled, [*VALIDATION, long])
    evidence = gathered(filled, [*VALIDATION, long], reading={"on_bad": "skip"})
    assert len(evidence.validation) == 4
    with pytest.raises(SourceError, match=r"no usable row .*1 bad, first .*prompt alone"):
        gathered(filled, [long], reading={"on_bad": "skip"})
    cut = gathered(filled, [{"prompt": "p", "response": "z" * 600}])
    assert "1 validation sample(s) are longer than the context" in cut.evaluated.warnings[0]


def test_columns_are_mapped(filled):
    data = [{"Q": row["prompt"], "A": row["response"]} for row in VALIDATION]
    columns = {"prompt": "Q", "response": "A"}
    found = gathered(filled, data, reading={"columns": columns}).scores[RAW]
    assert found == pytest.approx(gathered(filled).scores[RAW])


def test_sketched_scores_over_several_segments(filled):
    with filled.storage.view() as view:
        blocks = list(view.blocks("raw"))
        every, errors = {}, filled.storage.frozen.sketch_error("raw")
        for block in blocks:
            every |= dict(pairs(block))
        queries = np.random.default_rng(0).normal(size=(3, 256)).astype(np.float32)
        for ids in ([0], [29], [3, 19, 20, 28], sorted(every)):
            slow = np.array([[sum(q * every[i]) for i in ids] for q in queries])
            given = (view, torch.from_numpy(queries), ids, Scoring(), errors)
            scores, stderrs = sketched_scores(*given)
            assert scores == pytest.approx(slow, rel=1e-4, abs=1e-3)
            lengths = np.array([np.linalg.norm(every[i]) for i in ids])
            noise = errors.scale.noise * np.linalg.norm(queries, axis=1)[:, None] * lengths / 16
            expected = np.hypot(noise, errors.scale.relative * slow)
            assert stderrs == pytest.approx(expected, rel=1e-4)


def pairs(block):
    return zip(block.ids.tolist(), block.rows.numpy(), strict=True)


@pytest.mark.parametrize("ids", [[0], [3, 19, 20, 28], list(range(30))])
def test_self_influences_are_squared_norms_of_rows(filled, ids):
    with filled.storage.view() as view:
        found = self_influences(view, ids)
        every = {i: row for block in view.blocks("raw") for i, row in pairs(block)}
        stored = view.catalog.samples(ids)
    assert list(found) == ["raw"]
    assert found["raw"] == pytest.approx([float(every[i] @ every[i]) for i in ids], rel=1e-5)
    norms = np.array([stored[i].statistics.norm for i in ids])
    assert found["raw"] == pytest.approx(norms**2, rel=1e-2)  # taken before rows were rounded


def test_fields():
    samples = [sample("a", topic="x"), sample("b", topic=3), sample("c", topic="3")]
    assert field_values(samples, "topic", role="training") == ["x", 3, "3"]
    assert class_names(samples, "topic", role="training") == ["x", "3", "3"]
    others = [sample("a", t=True), sample("b", t=[2, "ü"]), sample("c", t={"b": 1, "a": 2})]
    assert class_names(others, "t", role="training") == [
        "true",
        '[2, "\\u00fc"]',
        '{"a": 2, "b": 1}',
    ]


@pytest.mark.parametrize(
    ("metadata", "there"),
    [({"b": 1, "a": 2}, "it has a, b"), ({}, "none at all"), ({"topic": None, "z": 1}, "topic, z")],
)
def test_a_missing_field_is_named_with_what_is_there(metadata, there):
    samples = [sample("first", topic="x"), sample("second", **metadata)]
    with pytest.raises(
        UsageError,
        match=rf"the validation sample second \(x\.jsonl:3\) has no field 'topic'; .*{there}",
    ):
        field_values(samples, "topic", role="validation")
