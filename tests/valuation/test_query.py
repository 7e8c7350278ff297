import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from rows import rows, write_jsonl

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BadSampleError, SourceError, UsageError
from forvalue_index.sources.columns import to_sample
from forvalue_index.store.store import Storage

pytest_plugins = ("tiny",)

TRAINING = [*rows(20), *rows(10, seed=1, prefix="s")]
VALIDATION = rows(4, seed=2, prefix="v")


def stored_rows(path):
    storage = Storage.open(path)
    with storage.view() as view:
        blocks = list(view.blocks("raw"))
    storage.close()
    ids = np.concatenate([block.ids for block in blocks])
    return ids, torch.cat([block.rows for block in blocks]).numpy()


def query_rows(index, data=VALIDATION):
    """Rows of validation samples, each embedded alone."""
    prepared = [index.model.embedder().prepare(to_sample(row)) for row in data]
    return torch.cat([index.model.embedder().embed([one]).rows["raw"] for one in prepared]).numpy()


def ids_of(hits):
    return [hit.id for hit in hits]


def scores_of(hits):
    return np.array([hit.score for hit in hits])


def test_scores_are_inner_products_of_stored_rows(filled, built_index):
    ids, stored = stored_rows(built_index)
    mean = query_rows(filled).mean(axis=0)
    expected = stored @ mean
    result = filled.query(VALIDATION, top=30)
    order = np.argsort(-expected)
    assert ids_of(result.helpful) == ids[order].tolist()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(scores_of(result.helpful), expected[order], atol=1e-5 * scale)
    assert [hit.rank for hit in result.helpful] == list(range(1, 31))


def test_harmful_is_most_negative_first(filled, built_index):
    ids, stored = stored_rows(built_index)
    contrary = [{"text": "→" * 9}]  # of bytes that this model never expects after each other
    expected = stored @ query_rows(filled, contrary).mean(axis=0)
    assert (expected < 0).sum() > 5, "the data has no harmful samples, so this shows nothing"
    result = filled.query(contrary, top=2, bottom=5)
    worst = np.argsort(expected)[:5]
    assert ids_of(result.harmful) == ids[worst].tolist()
    np.testing.assert_allclose(scores_of(result.harmful), expected[worst], rtol=1e-4)
    assert result.harmful[0].score < 0
    assert len(result.helpful) == 2


def test_a_result_says_what_it_is_of(filled):
    result = filled.query(VALIDATION, top=3)
    assert result.index == str(filled.storage.path)
    assert result.fingerprint == filled.manifest.fingerprint
    assert (result.index_version, result.scoring.geometry, result.searched) == (2, "raw", 30)
    assert result.validation_samples == 4
    assert result.validation_label_tokens > 4
    assert result.per_sample == ()
    assert (result.harmful[0].score < 0) == (result.warnings == ())
    assert set(result.seconds) == {"load", "embed", "open", "search"}
    assert result.helpful[0].sample == filled.sample(result.helpful[0].id).sample
    assert len(result.harmful) == 3, "as many as top where bottom is not given"


def test_the_score_of_a_set_is_the_mean_over_its_samples(filled):
    result = filled.query(VALIDATION, top=30, per_sample=True)
    assert [one.validation for one in result.per_sample] == [0, 1, 2, 3]
    by_id = [
        dict(zip(ids_of(o.helpful), scores_of(o.helpful), strict=True)) for o in result.per_sample
    ]
    means = np.array([np.mean([one[hit.id] for one in by_id]) for hit in result.helpful])
    scale = max(np.abs(list(one.values())).max() for one in by_id)
    np.testing.assert_allclose(scores_of(result.helpful), means, atol=1e-5 * scale)


def test_each_validation_sample_is_answered_as_if_it_were_alone(filled):
    """To rounding: a sample alone has a batch of another shape."""
    together = filled.query(VALIDATION, top=5, per_sample=True)
    for one, row in zip(together.per_sample, VALIDATION, strict=True):
        alone = filled.query([row], top=5)
        assert ids_of(one.helpful) == ids_of(alone.helpful)
        assert ids_of(one.harmful) == ids_of(alone.harmful)
        np.testing.assert_allclose(scores_of(one.helpful), scores_of(alone.helpful), rtol=1e-4)
        errors = [[hit.stderr for hit in hits] for hits in (one.helpful, alone.helpful)]
        np.testing.assert_allclose(*errors, rtol=1e-4)


def test_the_order_of_the_validation_set_does_not_matter(filled):
    one, other = filled.query(VALIDATION), filled.query(VALIDATION[::-1])
    assert ids_of(one.helpful) == ids_of(other.helpful)
    np.testing.assert_allclose(scores_of(one.helpful), scores_of(other.helpful), rtol=1e-4)


def test_more_than_there_is_gives_all_there_is(filled):
    result = filled.query(VALIDATION, top=1000, bottom=31)
    assert len(result.helpful) == len(result.harmful) == 30
    assert ids_of(result.helpful) == ids_of(result.harmful)[::-1]


def test_the_standard_error_is_that_of_the_sketch(filled, built_index):
    _, stored = stored_rows(built_index)
    mean = query_rows(filled).mean(axis=0)
    noise, relative = filled.storage.frozen.calibration().error_scale["raw"]
    assert 0.5 < noise < 2, "the formula is about right"
    assert relative < 0.3, "nothing is dropped"
    for hit in filled.query(VALIDATION, top=30).helpful:
        assert not hit.exact
        formula = np.linalg.norm(mean) * np.linalg.norm(stored[hit.id]) / np.sqrt(256)
        expected = np.hypot(noise * formula, relative * hit.score)
        assert hit.stderr == pytest.approx(expected, rel=5e-3)  # rows are stored in bfloat16


def test_a_removed_sample_is_no_answer(filled):
    best = filled.query(VALIDATION, top=1).helpful[0].id
    filled.storage.catalog.remove([best])
    result = filled.query(VALIDATION, top=30)
    assert result.searched == 29
    assert best not in ids_of(result.helpful)
    assert best not in filled.values(VALIDATION).ids


def test_what_is_added_is_found_by_the_next_query(filled):
    filled.query(VALIDATION)
    filled.add(VALIDATION[:1])
    result = filled.query(VALIDATION[:1], top=1)
    assert (result.searched, result.index_version) == (31, 3)
    assert result.helpful[0].sample.key == "v0"


def test_values_are_the_scores_of_a_query(filled):
    result = filled.query(VALIDATION, top=30)
    scored = filled.values(VALIDATION)
    assert scored.ids.tolist() == list(range(30))
    assert scored.scores.dtype == scored.stderrs.dtype == np.float32
    scale = float(np.abs(scored.scores).max())
    for hit in result.helpful:
        assert scored.scores[hit.id] == pytest.approx(hit.score, abs=1e-5 * scale)
        assert scored.stderrs[hit.id] == pytest.approx(hit.stderr, rel=5e-3)


def test_values_go_to_a_file(filled, tmp_path):
    filled.storage.catalog.remove([4])
    path = tmp_path / "values.jsonl"
    scored = filled.values(VALIDATION, output=path)
    found = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    assert [row["id"] for row in found] == scored.ids.tolist()
    assert [row["key"] for row in found] == [r["id"] for r in TRAINING if r["id"] != "r4"]
    assert {row["source"] for row in found} == {"<iterable>"}
    np.testing.assert_allclose([row["score"] for row in found], scored.scores, rtol=1e-6)
    np.testing.assert_allclose([row["stderr"] for row in found], scored.stderrs, rtol=1e-6)


def test_values_are_written_in_chunks(filled, tmp_path, monkeypatch):
    monkeypatch.setattr("forvalue_index.valuation.values.EXPORTED_ROWS", 7)
    filled.values(VALIDATION, output=tmp_path / "values.csv")
    assert len((tmp_path / "values.csv").read_text("utf-8").splitlines()) == 31


def test_an_empty_index_has_no_answer(index, tmp_path):
    result = index.query(VALIDATION, per_sample=True)
    assert (result.searched, result.helpful, result.harmful) == (0, (), ())
    assert [one.helpful for one in result.per_sample] == [()] * 4
    scored = index.values(VALIDATION, output=tmp_path / "values.jsonl")
    assert len(scored.ids) == len(scored.scores) == len(scored.stderrs) == 0
    assert (tmp_path / "values.jsonl").read_text() == ""


@pytest.mark.parametrize(("top", "bottom", "said"), [(0, None, "--top is 0"), (3, -1, "--bottom")])
def test_fewer_than_one_sample_is_refused_before_the_model_is_loaded(filled, top, bottom, said):
    with pytest.raises(UsageError, match=f"{said}.*; ask for at least 1 sample"):
        filled.query(VALIDATION, top=top, bottom=bottom)
    assert filled.model._reader is None


def test_bad_validation_rows(filled, tmp_path):
    path = write_jsonl(tmp_path / "v.jsonl", [*VALIDATION, {"text": 5}])
    with pytest.raises(BadSampleError, match=r"v\.jsonl:5: 'text' is int.*use --on-bad skip"):
        filled.query(path)
    result = filled.query(path, on_bad="skip")
    assert result.validation_samples == 4
    assert "1 validation row(s) were left out" in result.warnings[0]
    assert "1 validation row(s) were left out" in result.warnings[0]
    assert "v.jsonl:5: 'text' is int" in result.warnings[0]
    assert ids_of(result.helpful) == ids_of(filled.query(VALIDATION).helpful)


@pytest.mark.parametrize("on_bad", ["fail", "skip"])
def test_a_validation_set_without_rows(filled, on_bad):
    with pytest.raises(SourceError, match=r"no usable row to validate with \(none at all\)"):
        filled.query([], on_bad=on_bad)


def test_a_validation_set_of_bad_rows(filled):
    with pytest.raises(SourceError, match=r"\(2 bad, first <iterable>:1: 'text' is int"):
        filled.query([{"text": 5}, {"text": 6}], on_bad="skip")


def test_validation_samples_that_were_cut_are_told(tmp_path, model_dir):
    with ValuationIndex.create(tmp_path / "ix", str(model_dir), dim=64, max_length=24) as index:
        index.add([{"text": "red green"}])
        result = index.query([{"text": "ab " * 40}, {"text": "short"}])
    assert result.warnings == ("1 validation sample(s) are longer than the context and were cut",)


@pytest.fixture(scope="module")
def truth(model_dir):
    """<G_v, G_i> [validation, training], by autograd through the whole model's own forward."""
    model = transformers.AutoModelForCausalLM.from_pretrained(model_dir).double()
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_dir)
    start = "<|im_start|>assistant\n"

    def gradient(row):
        turns = [
            {"role": "user", "content": row["prompt"]},
            {"role": "assistant", "content": row["response"]},
        ]
        text = tokenizer.apply_chat_template(turns, tokenize=False)
        prompt, response = text.split(start)
        response = response.rstrip("\n")
        ids = [
            tokenizer(part, add_special_tokens=False)["input_ids"]
            for part in (prompt + start, response)
        ]
        labels = [-100] * len(ids[0]) + ids[1]
        model.zero_grad()
        logits = model(input_ids=torch.tensor([ids[0] + ids[1]])).logits[0]
        loss = torch.nn.functional.cross_entropy(
            logits[:-1], torch.tensor(labels[1:]), ignore_index=-100, reduction="sum"
        )
        loss.backward()
        return model.lm_head.weight.grad.flatten().clone()

    training = torch.stack([gradient(row) for row in TRAINING])
    validation = torch.stack([gradient(row) for row in VALIDATION])
    return (validation @ training.T).numpy()


@pytest.fixture
def exact_index(tmp_path, model_dir):
    """Rows hold the gradient itself: 288 tokens times 32 dimensions fit into 16,384 floats."""
    path = tmp_path / "exact"
    settings = {"dim": 16_384, "row_dtype": "float32", "dtype": "float32", "geometry": "raw"}
    with ValuationIndex.create(path, str(model_dir), **settings) as index:
        index.add(TRAINING)
        yield index


def test_exact_scores_are_those_of_autograd(exact_index, truth):
    assert exact_index.manifest.exact_rows
    assert exact_index.manifest.row_width == 288 * 32
    expected = truth.mean(axis=0)
    scale = np.abs(expected).max()
    result = exact_index.query(VALIDATION, top=10, bottom=10, per_sample=True)
    answers = [(result, expected), *zip(result.per_sample, truth, strict=True)]
    for answer, wanted in answers:
        scale = np.abs(wanted).max()
        assert ids_of(answer.helpful) == np.argsort(-wanted)[:10].tolist()
        assert ids_of(answer.harmful) == np.argsort(wanted)[:10].tolist()
        for hit in (*answer.helpful, *answer.harmful):
            assert hit.score == pytest.approx(wanted[hit.id], rel=1e-4, abs=1e-6 * scale)
            assert (hit.exact, hit.stderr) == (True, 0.0)


def test_exact_values_have_no_standard_error(exact_index, truth):
    scored = exact_index.values(VALIDATION)
    expected = truth.mean(axis=0)
    atol = 1e-6 * np.abs(expected).max()
    np.testing.assert_allclose(scored.scores, expected, rtol=1e-4, atol=atol)
    assert not scored.stderrs.any()


def test_sketched_scores_are_as_far_from_exact_as_they_say(tmp_path, model_dir, truth):
    """Over many pairs: unbiased, and spread as the standard error says."""
    with ValuationIndex.create(tmp_path / "ix", str(model_dir), dim=1024, geometry="raw") as index:
        index.add(TRAINING)
        result = index.query(VALIDATION, top=30, per_sample=True)
    deviations = np.array(
        [
            (hit.score - wanted[hit.id]) / hit.stderr
            for one, wanted in zip(result.per_sample, truth, strict=True)
            for hit in one.helpful
        ]
    )
    assert deviations.shape == (120,)
    assert (np.abs(deviations) < 5).all()
    assert np.abs(deviations).mean() > 0.1, "the error would be stated far too large"
    mean = {hit.id: hit for hit in result.helpful}
    expected = truth.mean(axis=0)
    assert all(abs(mean[i].score - expected[i]) < 5 * mean[i].stderr for i in range(30))


def test_a_copy_of_an_index_answers_as_the_index(filled, built_index, tmp_path):
    copy = shutil.copytree(built_index, tmp_path / "copy")
    with ValuationIndex.open(copy) as other:
        assert filled.query(VALIDATION).helpful == other.query(VALIDATION).helpful


def test_an_empty_index_says_so(index):
    result = index.query(VALIDATION)
    assert result.warnings == (
        "the index holds no samples yet; add some with: forvalue add INDEX DATA",
    )
