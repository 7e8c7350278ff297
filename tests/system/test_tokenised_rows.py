"""Rows that are tokenised already, from files to rows of an index, and what is shown of them."""

import json
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import document, refused, run
from models import CHATML, GENERATION, save_tiny, tiny_model, tiny_tokenizer
from parsed_pages import Page
from rows import rows, write_jsonl
from stored_rows import assert_identical_rows, stored_rows
from trl import SFTConfig, SFTTrainer

from forvalue_index import ValuationIndex

pytest_plugins = ("tiny",)

PAIRS = rows(12)
PAD = 2


def tokenised(row, length=None):
    """As trainers write it: ChatML, labels of the response with its end token, padding."""
    tokenizer = tiny_tokenizer()

    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    prompt = ids(f"<|im_start|>user\n{row['prompt']}<|im_end|>\n<|im_start|>assistant\n")
    response, after = ids(f"{row['response']}<|im_end|>"), ids("\n")
    gap = max(0, (length or 0) - len(prompt + response + after))
    return {
        "id": row["id"],
        "topic": row["topic"],
        "input_ids": prompt + response + after + [PAD] * gap,
        "labels": [-100] * len(prompt) + response + [-100] * (len(after) + gap),
        "attention_mask": [1] * len(prompt + response + after) + [0] * gap,
    }


def made(path, model_dir, data, **options):
    with ValuationIndex.create(path, str(model_dir), dim=256, geometry="raw") as index:
        assert index.add(data, **options).added == len(PAIRS)
    return path


@pytest.fixture(scope="session")
def of_text(tmp_path_factory, model_dir):
    return stored_rows(made(tmp_path_factory.mktemp("text") / "index", model_dir, PAIRS))


@pytest.fixture
def index(tmp_path, model_dir):
    """With a row of text beside those of tokens."""
    path = made(tmp_path / "index", model_dir, [tokenised(row) for row in PAIRS])
    write_jsonl(tmp_path / "validation.jsonl", rows(3, seed=9, prefix="v"))
    return path


def saved(path, data, form):
    if form == "jsonl":
        return str(write_jsonl(path.with_suffix(".jsonl"), data))
    if form == "parquet":
        pq.write_table(pa.Table.from_pylist(data), path.with_suffix(".parquet"))
        return str(path.with_suffix(".parquet"))
    if form == "saved":
        datasets.Dataset.from_list(data).save_to_disk(path)
        return str(path)
    return datasets.Dataset.from_list(data).with_format(form)


@pytest.mark.parametrize("length", [None, 200], ids=["exact", "padded"])
@pytest.mark.parametrize("form", ["jsonl", "parquet", "saved", "torch", "numpy"])
def test_tokens_have_the_rows_of_their_text(tmp_path, model_dir, of_text, form, length):
    """Equal to the bit: the model reads the same, and the same is a label."""
    data = saved(tmp_path / "data", [tokenised(row, length) for row in PAIRS], form)
    assert_identical_rows(stored_rows(made(tmp_path / "index", model_dir, data)), of_text)


def test_a_chosen_column_of_tokens_counts_before_text(tmp_path, model_dir, of_text):
    data = [{**row, **tokenised(row)} for row in PAIRS]
    columns = {"input_ids": "input_ids"}
    path = made(tmp_path / "index", model_dir, data, columns=columns)
    assert_identical_rows(stored_rows(path), of_text)
    with ValuationIndex.open(path) as index:
        metadata = index.sample("r0").sample.metadata
    assert metadata == {name: PAIRS[0][name] for name in ("prompt", "response", "topic")}


def prepared_by_trl(data, template, **options):
    """What a trainer trains on; its data without the columns that they were made of."""
    with pytest.warns(FutureWarning, match="gradient_checkpointing"):
        config = SFTConfig(report_to="none", use_cpu=True, bf16=False, max_length=200, **options)
    trainer = SFTTrainer(
        model=tiny_model("llama"),
        args=config,
        train_dataset=datasets.Dataset.from_list(data),
        processing_class=tiny_tokenizer(template),
    )
    return trainer.train_dataset


def test_what_trl_prepares_is_read_as_it_trains(tmp_path, model_dir):
    """The template marks what the assistant says; an index with another one reads the tokens."""
    turns = [
        {
            "id": row["id"],
            "messages": [
                {"role": "user", "content": row["prompt"]},
                {"role": "assistant", "content": row["response"]},
            ],
        }
        for row in PAIRS
    ]
    data = prepared_by_trl(turns, GENERATION, assistant_only_loss=True, output_dir=tmp_path / "o")
    assert {"messages", "input_ids", "labels"} < set(data.column_names)
    same_model = save_tiny(tmp_path / "model", "llama", chat_template=GENERATION)
    of_text = stored_rows(made(tmp_path / "text", same_model, data))
    data.remove_columns("messages").save_to_disk(tmp_path / "data")
    of_tokens = stored_rows(made(tmp_path / "tokens", model_dir, str(tmp_path / "data")))
    assert_identical_rows(of_tokens, of_text)


def test_what_trl_packs_is_refused(tmp_path, model_dir):
    pairs = [{"prompt": row["prompt"], "completion": row["response"]} for row in PAIRS]
    data = prepared_by_trl(pairs, CHATML, packing=True, output_dir=tmp_path / "o")
    data.save_to_disk(tmp_path / "data")
    path = tmp_path / "index"
    ValuationIndex.create(path, str(model_dir), dim=256, geometry="raw").close()
    said = refused("add", path, tmp_path / "data")
    assert "data:1: 'seq_lengths' has " in said
    assert "lengths, so the row packs several samples; write each as a row of its own" in said


def test_everything_that_works_for_text_works(tmp_path, index):
    validation = tmp_path / "validation.jsonl"
    again = document("add", index, write_jsonl(tmp_path / "a.jsonl", map(tokenised, PAIRS)))
    assert (again["added"], again["known"]) == (0, len(PAIRS))
    found = document("query", index, validation, "--rerank", 5, "--top", 3)
    assert len(found["helpful"]) == 3
    told = document("explain", index, "r1", validation)
    text = "".join(token["text"] for token in told["tokens"])
    assert text.startswith(f"<|im_start|>user\n{PAIRS[1]['prompt']}<|im_end|>\n")
    assert sum(token["term"] for token in told["tokens"]) == pytest.approx(told["score"])
    alike = document("query", index, write_jsonl(tmp_path / "t.jsonl", [tokenised(PAIRS[1])]))
    assert alike["validation"]["samples"] == 1
    assert document("check", index)["sound"]


def test_what_is_shown_of_tokens(tmp_path, index):
    row = tokenised(PAIRS[0])
    ids = " ".join(map(str, row["input_ids"]))
    page = tmp_path / "page.html"
    said = run("show", index, "r0", "-o", page)
    assert said.exit_code == 0
    assert f"tokens {ids}\n" in said.stdout
    assert Page(page.read_text()).texts("div", **{"class": "text"}) == [ids]
    starts = row["labels"].index(next(label for label in row["labels"] if label != -100))
    message = {"role": "tokens", "content": ids, "labels": [[starts, len(row["labels"]) - 1]]}
    assert document("show", index, "r0")["messages"] == [message]
    assert ids[:20] in run("list", index).stdout


def test_an_index_of_references_reads_tokens_again(tmp_path, model_dir):
    data = write_jsonl(tmp_path / "data.jsonl", map(tokenised, PAIRS))
    path = tmp_path / "index"
    with ValuationIndex.create(
        path, str(model_dir), dim=256, geometry="raw", payload="reference"
    ) as index:
        index.add(str(data))
        expected = " ".join(map(str, tokenised(PAIRS[3])["input_ids"]))
        assert index.sample("r3").sample.response == expected


def test_a_token_of_another_model_is_named_with_its_row(tmp_path, model_dir):
    path = tmp_path / "index"
    ValuationIndex.create(path, str(model_dir), dim=256, geometry="raw").close()
    data = write_jsonl(tmp_path / "d.jsonl", [{"input_ids": [5, 6]}, {"input_ids": [5, 32000]}])
    assert refused("add", path, data).startswith(
        f"{data}:2: it has token 32,000, and the model knows 288 tokens;"
    )
    done = document("add", path, data, "--on-bad", "skip")
    assert (done["added"], done["rejected"]) == (1, 1)
    (rejected,) = map(json.loads, Path(done["rejected_file"]).read_text("utf-8").splitlines())
    assert rejected["row"]["messages"] == [{"role": "tokens", "content": "5 32000"}]
