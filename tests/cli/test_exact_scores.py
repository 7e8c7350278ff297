"""Exact scores through the whole command line, against autograd.

The truth is made from the transformers model and its tokenizer alone.
"""

import csv
import json
from types import SimpleNamespace

import numpy as np
import oracle
import pyarrow.parquet
import pytest
import transformers
from commands import document, refused, run
from exact_data import TRAINING, VALIDATION, N, values_of
from models import save_adapter, save_tiny, tiny_tokenizer
from parsed_pages import Page
from rows import write_jsonl

from forvalue_index import ValuationIndex

pytest_plugins = ("tiny",)

# Each geometry once, with products or cosines.
KINDS = [("raw", False), ("centered", True), ("fisher", True), ("kfac", False)]
KINDS += [pytest.param(g, not n, marks=pytest.mark.thorough) for g, n in KINDS]

DAMPING = 0.4
START = "<|im_start|>assistant\n"


def encode(tokenizer, row):
    """Token ids, and which of them are labels: the response and its end."""
    turns = [
        {"role": "user", "content": row["prompt"]},
        {"role": "assistant", "content": row["response"]},
    ]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt, response = text.split(START)
    parts = (prompt + START, response.removesuffix("\n"), "\n")
    ids = [tokenizer(part, add_special_tokens=False)["input_ids"] for part in parts]
    mask = np.repeat([False, True, False], [len(part) for part in ids])
    return np.concatenate(ids).astype(np.int64), mask


def save_case(kind, directory):
    """A model on disk, its options for `init`, and the model as transformers has it, in float64."""
    model_dir = save_tiny(directory / "model", kind.removesuffix("+lora"))
    options = ("--model", model_dir)
    if kind.endswith("+lora"):
        model = save_adapter(directory / "adapter", "llama")
        options += ("--adapter", directory / "adapter")
    else:
        model = transformers.AutoModelForCausalLM.from_pretrained(model_dir)
    return options, model.double().eval()


@pytest.fixture(scope="module", params=["llama", "gemma2", "llama+lora"])
def case(request, tmp_path_factory):
    """An index with rows of raw and fisher, and its model's view of all samples."""
    directory = tmp_path_factory.mktemp(request.param.replace("+", "-"))
    options, model = save_case(request.param, directory)
    index = directory / "index"
    train = write_jsonl(directory / "train.jsonl", TRAINING)
    validation = write_jsonl(directory / "validation.jsonl", VALIDATION)
    settings = ("--dim", 256, "--geometry", "raw,fisher", "--damping", DAMPING)
    document("init", index, *options, *settings)
    assert document("add", index, train)["added"] == N
    encoded = [[encode(tiny_tokenizer(), row) for row in side] for side in (VALIDATION, TRAINING)]
    sides = [[oracle.seen(model, *one) for one in side] for side in encoded]
    gradients = [np.stack([oracle.head_gradient(model, *o) for o in side]) for side in encoded]
    return SimpleNamespace(
        index=index,
        train=train,
        validation=validation,
        sides=sides,
        gradients=gradients,
        encoded=encoded,
        known=oracle.moments(sides[1]),
    )


def truth(case, geometry="raw", *, normalize=False):
    """Exact values, and the products of norms that errors are measured against."""
    sides = [
        [oracle.mapped(one, geometry, case.known, DAMPING) for one in side] for side in case.sides
    ]
    scales = oracle.scales(*sides, normalize=normalize)
    return oracle.value_matrix(*sides, normalize=normalize), scales


def exactly(hits, expected, scale):
    """Whether these hits have the exact scores, by their ids, and say so."""
    for hit in hits:
        assert abs(hit["score"] - expected[hit["id"]]) <= 1e-4 * scale[hit["id"]]
        assert (hit["exact"], hit["stderr"]) == (True, 0)


def ids(hits):
    return [hit["id"] for hit in hits]


def test_the_ranking_is_that_of_autograd(case):
    """Gradients for the head's weight, in float64; nothing of the package takes part."""
    flat = [side.reshape(len(side), -1) for side in case.gradients]
    matrix, scales = truth(case)
    np.testing.assert_allclose(flat[0] @ flat[1].T, matrix, rtol=1e-6, atol=1e-8 * scales.max())
    expected, scale = matrix.mean(axis=0), scales.mean(axis=0)
    found = document("query", case.index, case.validation, "--top", N, "--rerank", N + 5)
    assert found["reranked"] == found["searched"] == N
    assert ids(found["helpful"]) == np.argsort(-expected).tolist()
    assert ids(found["harmful"]) == np.argsort(expected).tolist()
    exactly(found["helpful"] + found["harmful"], expected, scale)
    assert f"--rerank {N + 5}: the index holds {N} samples, so all were taken" in found["warnings"]
    relative = [abs(h["score"] / expected[h["id"]] - 1) for h in found["helpful"][:5]]
    assert max(relative) < 1e-4


@pytest.mark.parametrize(("geometry", "normalize"), KINDS)
def test_values_are_exact_in_every_geometry(case, tmp_path, geometry, normalize):
    """Also in those that the index has no rows of."""
    options = ["--geometry", geometry] + ["--normalize"] * normalize
    output = tmp_path / "v.csv"
    command = ("values", case.index, case.validation, "--exact", "-o", output)
    assert document(*command, *options)["samples"] == N
    matrix, scales = truth(case, geometry, normalize=normalize)
    gaps = np.abs(values_of(output) - matrix.mean(axis=0))
    assert (gaps <= 1e-4 * scales.mean(axis=0)).all()


@pytest.mark.parametrize("normalize", [False, True], ids=["products", "cosines"])
@pytest.mark.parametrize("geometry", ["raw", "fisher"])
def test_each_validation_sample_is_answered_exactly(case, geometry, normalize):
    options = ["--geometry", geometry] + ["--normalize"] * normalize
    command = ("query", case.index, case.validation, "--per-sample", "--rerank", N, "--top", N)
    found = document(*command, *options)
    assert (found["geometry"], found["normalized"]) == (geometry, normalize)
    matrix, scales = truth(case, geometry, normalize=normalize)
    answers = [(found, matrix.mean(axis=0), scales.mean(axis=0))]
    answers += zip(found["per_sample"], matrix, scales, strict=True)
    for answer, expected, scale in answers:
        assert ids(answer["helpful"]) == np.argsort(-expected).tolist()
        assert ids(answer["harmful"]) == np.argsort(expected).tolist()
        exactly(answer["helpful"] + answer["harmful"], expected, scale)


def test_few_candidates_have_exact_scores_in_order(case):
    matrix, scales = truth(case)
    expected, scale = matrix.mean(axis=0), scales.mean(axis=0)
    sketched = document("query", case.index, case.validation, "--top", 6)
    found = document("query", case.index, case.validation, "--top", 2, "--rerank", 6)
    candidates = {*ids(sketched["helpful"]), *ids(sketched["harmful"])}
    assert found["reranked"] == len(candidates)
    exactly(found["helpful"] + found["harmful"], expected, scale)
    best = sorted(candidates, key=lambda i: -expected[i])
    assert ids(found["helpful"]) == best[:2]
    assert ids(found["harmful"]) == best[: -2 - 1 : -1]
    assert not any(hit["exact"] for hit in sketched["helpful"])
    assert all(hit["stderr"] > 0 for hit in sketched["helpful"])
    # A person is told the same.
    command = ("query", case.index, case.validation, "--top", 2)
    assert "exact" in run(*command, "--rerank", 6).stdout
    assert "exact" not in run(*command).stdout


@pytest.mark.parametrize(("geometry", "normalize"), KINDS)
def test_an_explanation_sums_to_the_exact_score(case, tmp_path, geometry, normalize):
    matrix, scales = truth(case, geometry, normalize=normalize)
    page = tmp_path / "x.html"
    options = ["--geometry", geometry, "-o", page] + ["--normalize"] * normalize
    for number in (0, 7):
        found = document(
            "explain", case.index, f"r{number}", case.validation, "--validation-tokens", *options
        )
        assert (found["id"], found["key"], found["geometry"]) == (number, f"r{number}", geometry)
        assert found["normalized"] is normalize
        scale = scales.mean(axis=0)[number]
        assert abs(found["score"] - matrix.mean(axis=0)[number]) <= 1e-4 * scale
        terms = [token["term"] for token in found["tokens"]]
        assert sum(terms) == pytest.approx(found["score"], rel=1e-5)
        other = sum(token["term"] for one in found["validation"] for token in one["tokens"])
        assert abs(other - found["score"]) <= 1e-5 * scale
        token_ids, mask = case.encoded[1][number]
        assert [token["token"] for token in found["tokens"]] == token_ids.tolist()
        assert [token["loss"] is not None for token in found["tokens"]] == mask.tolist()
        text = "".join(token["text"] for token in found["tokens"])
        assert text == tiny_tokenizer().decode(token_ids)
        assert [one["key"] for one in found["validation"]] == ["v0", "v1", "v2"]
        assert Page(page.read_text("utf-8")).texts("div")[0] == text


def test_a_person_reads_an_explanation(case, tmp_path):
    page = tmp_path / "x.html"
    done = run("explain", case.index, "r2", case.validation, "-o", page, "--validation-tokens")
    assert done.exit_code == 0
    assert TRAINING[2]["response"] in done.stdout
    assert all(row["response"] in done.stdout for row in VALIDATION)
    assert "r2 (number 2): exact score " in done.stdout
    assert "Strongest tokens" in done.stdout
    assert "written to" in done.stdout
    assert run("explain", case.index, 2, case.validation).stdout.startswith("r2 (number 2)")


@pytest.mark.parametrize("geometry", ["raw", "fisher"])
def test_a_whitened_query_has_no_standard_error(case, tmp_path, geometry):
    """And its scores are those of the dense map in the space of rows."""
    options = ("--whiten", "--geometry", geometry)
    found = document("query", case.index, case.validation, *options, "--top", N)
    assert (found["whitened"], found["reranked"]) == (True, 0)
    assert {(h["stderr"], h["exact"]) for h in found["helpful"]} == {(None, False)}
    with ValuationIndex.open(case.index) as opened:
        with opened.storage.view() as view:
            blocks = [b.rows.numpy().astype(np.float64) for b in view.blocks(geometry)]
        embedder = opened.model.embedder([geometry])
        prepared = [opened.model.reader.prepare(stored.sample) for stored in samples(opened)]
        query = embedder.embed(prepared).rows[geometry].double().numpy().mean(axis=0)
    stored = np.concatenate(blocks)
    second = stored.T @ stored / N
    ridge = DAMPING * np.diag(second).mean()
    expected = stored @ (ridge * np.linalg.solve(second + ridge * np.eye(256), query))
    size = np.abs(expected).max()
    for hit in found["helpful"]:
        assert abs(hit["score"] - expected[hit["id"]]) <= 1e-3 * size
    for suffix in ("csv", "jsonl", "parquet"):
        output = tmp_path / f"v.{suffix}"
        document("values", case.index, case.validation, *options, "-o", output)
    with (tmp_path / "v.csv").open(newline="") as file:
        assert {row["stderr"] for row in csv.DictReader(file)} == {""}
    lines = (tmp_path / "v.jsonl").read_text("utf-8").splitlines()
    assert {json.loads(line)["stderr"] for line in lines} == {None}
    table = pyarrow.parquet.read_table(tmp_path / "v.parquet")
    assert table["stderr"].null_count == N
    np.testing.assert_allclose(values_of(tmp_path / "v.csv"), expected, atol=1e-3 * size)
    assert "unknown" in run("query", case.index, case.validation, *options).stdout


def samples(opened):
    """The validation samples as an index would hold them."""
    from forvalue_index.sources.columns import to_sample

    return [SimpleNamespace(sample=to_sample(row)) for row in VALIDATION]


def test_rows_of_other_geometries_are_not_there(case, tmp_path):
    said = "use one of these, exact scores, or build an index with it"
    options = ("--geometry", "kfac")
    for command in (
        ("query", case.index, case.validation, *options),
        ("query", case.index, case.validation, *options, "--rerank", 20),
        ("values", case.index, case.validation, *options, "-o", tmp_path / "v.csv"),
    ):
        message = refused(*command, code=2)
        assert message == f"--geometry kfac: {case.index} has rows of raw, fisher; {said}"
    assert not (tmp_path / "v.csv").exists()
