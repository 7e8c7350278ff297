"""How rows are read for a model or an index, whose weights are not there."""

import gzip
import itertools
import random
import shutil

import pytest
from models import DATED, NO_SYSTEM, save_adapter, save_tiny, tiny_tokenizer
from rows import rows, write_jsonl
from vision_models import save_tiny_vision, tiny_image

from forvalue_index import (
    Data,
    ModelError,
    SettingsMismatchError,
    SourceError,
    TextRun,
    UsageError,
    ValuationIndex,
    peek,
)
from forvalue_index.sources.sample import BadRow

pytest_plugins = ("tiny",)

HELLO = {
    "id": "a",
    "messages": [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Bye"},
    ],
    "topic": "talk",
    "n": 3,
}
# <|im_start|> u s er \n H i <|im_end|> \n <|im_start|> a s s i s t a n t \n, and H e ll o .
ASKED = TextRun("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", False, 20)
ANSWERED = (TextRun("Hello.<|im_end|>", True, 6), TextRun("\n", False, 1))


@pytest.fixture(scope="module")
def weightless(tmp_path_factory, model_dir):
    """A model whose weights are gone."""
    path = shutil.copytree(model_dir, tmp_path_factory.mktemp("weightless") / "model")
    (path / "model.safetensors").unlink()
    return str(path)


@pytest.fixture(scope="module")
def vision_model(tmp_path_factory):
    """A model of images, without weights."""
    path = save_tiny_vision(tmp_path_factory.mktemp("vision"), "llava")
    (path / "model.safetensors").unlink()
    return str(path)


def peeked(rows, model, **options):
    """The rows of one source."""
    (source,) = peek(rows, model=model, **options)
    return source.rows


def one(row, model, **options):
    (found,) = peeked([row], model, **options)
    return found


def said(row):
    """The runs of a row as text, labels in brackets."""
    return "".join(f"[[{run.text}]]" if run.is_label else run.text for run in row.runs)


def test_a_conversation(weightless):
    row = one(HELLO, weightless)
    assert (row.source, row.position, row.reason) == ("<iterable>", 1, None)
    assert row.runs == (ASKED, *ANSWERED)
    assert (row.usable, row.n_tokens, row.n_label_tokens) == (True, 27, 6)
    assert (row.truncated, row.unrendered) == (False, ())
    assert row.sample.key == "a"
    assert row.sample.metadata == {"topic": "talk", "n": 3}
    assert [message.role for message in row.sample.messages] == ["user", "assistant"]
    assert row.sample.cut_turns == 1


def test_the_settings_of_init_are_heeded(weightless, tmp_path):
    turns = [("user", "Hi"), ("assistant", "a"), ("user", "Hi"), ("assistant", "b")]
    talk = {"messages": [{"role": role, "content": text} for role, text in turns]}
    asked = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert said(one(talk, weightless)) == (f"{asked}[[a<|im_end|>]]\n{asked}[[b<|im_end|>]]\n")
    assert said(one(talk, weightless, labels="last")) == (
        f"{asked}a<|im_end|>\n{asked}[[b<|im_end|>]]\n"
    )
    every = said(one(talk, weightless, labels="all"))
    assert every.startswith("<|im_start|>[[user\nHi<|im_end|>\n")
    pair = {"prompt": "Hi.", "response": "Yes"}
    assert said(one(pair, weightless, template="plain")) == "Hi.[[Yes</s>]]"
    cut = one(talk, weightless, max_length=21)
    assert (said(cut), cut.n_tokens, cut.truncated) == (f"{asked}[[a]]", 21, True)
    template = tmp_path / "template.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    shouted = said(one(pair, weightless, chat_template=template))
    assert shouted == "user: Hi.\n[[assistant: Yes\n]]"  # there is no prompt to answer


def test_a_base_model_reads_plain_text(plain_model_dir):
    text = {"text": "the cab"}
    assert said(one(text, str(plain_model_dir))) == "the[[ cab]]"
    assert said(one({"prompt": "Hi", "response": "!"}, str(plain_model_dir))) == "Hi[[!</s>]]"


def test_the_template_of_an_adapter_counts(weightless, tmp_path):
    save_adapter(tmp_path / "lora", "llama")
    tiny_tokenizer("{{ messages[0].content }}->{{ messages[1].content }}").save_pretrained(
        tmp_path / "lora"
    )
    pair = {"prompt": "Hi", "response": "a"}
    assert said(one(pair, weightless, adapter=str(tmp_path / "lora"))) == "Hi->[[a]]"
    with pytest.raises(ModelError, match="none"):
        peek([pair], model=weightless, adapter=str(tmp_path / "none"))


def test_bad_rows_are_told_and_stop_nothing(tmp_path):
    model = str(save_tiny(tmp_path, "llama", chat_template=NO_SYSTEM))
    system = {"messages": [{"role": "system", "content": "S"}, *HELLO["messages"]]}
    deep = {"text": "t", "meta": None}
    for _ in range(60):
        deep["meta"] = {"a": deep["meta"]}
    found = peeked([3, system, {"prompt": "p"}, deep, {"text": "a"}, HELLO], model, count=9)
    reasons = [row.reason for row in found]
    assert reasons[0] == "the row is int, wanted an object"
    assert "no system role here" in reasons[1]
    assert reasons[2].startswith("no messages, no prompt with response")
    assert reasons[3] == "its metadata is nested deeper than 50; flatten it"
    assert reasons[4] == "has 1 token(s) and none to predict, as the first one never is"
    assert reasons[5] is None
    assert [row.position for row in found] == [1, 2, 3, 4, 5, 6]
    # What was read of a row that the template refuses is there all the same.
    assert [row.sample is None for row in found] == [True, False, True, True, False, False]
    assert [row.runs for row in found[:5]] == [()] * 5


def test_tokens_that_the_model_does_not_know(tmp_path):
    """The tokenizer was extended, and the model was not."""
    save_tiny(tmp_path, "llama")
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<new{i}>" for i in range(40)])
    tokenizer.save_pretrained(tmp_path)
    row = one({"text": "a <new39> b"}, str(tmp_path))
    assert row.reason.startswith("it has token 311, and the model knows 288 tokens")


def test_what_is_not_read_is_said(weightless, tmp_path):
    named = [{"role": "user", "content": "Hi", "name": "Bob"}, *HELLO["messages"][1:2]]
    ignored = one({"messages": named, "tools": []}, weightless, ignore="name")
    assert ignored.usable
    template = tmp_path / "dated.jinja"
    template.write_text(DATED)
    row = one({"messages": named}, weightless, chat_template=template)
    assert "leaves out name of turn 1" in row.reason
    beside = one({"prompt": "p", "response": "r", "notes": "long " * 50}, weightless)
    assert beside.sample.unread == ("notes",)


def test_so_many_rows_of_each_source_and_no_more(weightless, tmp_path):
    taken = itertools.count()
    endless = ({"text": f"text {next(taken)}"} for _ in itertools.count())
    assert len(peeked(endless, weightless, count=4)) == 4
    assert next(taken) == 4
    first = write_jsonl(tmp_path / "a.jsonl", rows(5))
    second = write_jsonl(tmp_path / "b.jsonl", rows(1))
    found = peek([first, second], model=weightless, count=2)
    assert [(one.source, len(one.rows)) for one in found] == [(str(first), 2), (str(second), 1)]
    assert len(peek(first, model=weightless)[0].rows) == 3


def test_damage_behind_the_rows_is_not_met(weightless, tmp_path):
    chosen = random.Random(0)
    # What a reader holds at once has to be less than all: numbers that compress little, unread.
    lines = b"".join(
        b'{"text": "the cab", "n": "%d"}\n' % chosen.getrandbits(4000) for _ in range(700)
    )
    path = tmp_path / "cut.jsonl.gz"
    path.write_bytes(gzip.compress(lines)[:-1000])
    (source,) = peek(path, model=weightless, count=2)
    assert (source.usable, source.problem) == (2, None)
    (whole,) = peek(path, model=weightless, count=700)
    assert 0 < len(whole.rows) < 700
    assert whole.problem.startswith(f"{path} cannot be read: ")


def test_one_unreadable_file_among_others(weightless, tmp_path):
    good, bad = write_jsonl(tmp_path / "a.jsonl", rows(1)), tmp_path / "b.json"
    bad.write_text("[1, ")
    found = peek([bad, good], model=weightless)
    assert [(one.usable, one.problem is None) for one in found] == [(0, False), (1, True)]
    with pytest.raises(SourceError, match=r"b\.json cannot be read: .*check the file"):
        peek(bad, model=weightless)


@pytest.mark.parametrize("count", [0, -1])
def test_there_is_something_to_look_at(weightless, tmp_path, count):
    with pytest.raises(UsageError, match=f"--count cannot be {count}; use 1 or more"):
        peek([HELLO], model=weightless, count=count)
    empty = tmp_path / "empty.jsonl"
    empty.touch()
    with pytest.raises(SourceError, match=r"empty\.jsonl: there is no row in it"):
        peek(empty, model=weightless)
    with pytest.raises(SourceError, match="none does not exist"):
        peek(tmp_path / "none", model=weightless)


def test_data_may_say_how_they_are_read(weightless):
    row = {"Q": "Hi", "A": "a"}
    columns = {"prompt": "Q", "response": "A"}
    given = one(row, weightless, columns=columns)
    assert given == peek(Data([row], columns=columns), model=weightless)[0].rows[0]
    assert said(given).endswith("[[a<|im_end|>]]\n")


def test_the_settings_have_to_be_right(weightless, tmp_path):
    for settings, expected in (
        ({"max_length": 513}, "reads 512 tokens at most"),
        ({"labels": "none"}, "--labels cannot be 'none'"),
        ({"chat_template": tmp_path / "none"}, "--chat-template .* cannot be read"),
    ):
        with pytest.raises(UsageError, match=expected):
            peek([HELLO], model=weightless, **settings)
    with pytest.raises(ModelError, match="there is no such model directory"):
        peek([HELLO], model=str(tmp_path / "none"))


def test_rows_that_are_tokenised_already(weightless):
    ids = tiny_tokenizer()("Hi the cab", add_special_tokens=False)["input_ids"]
    labels = [-100] * (len(ids) - 2) + ids[-2:]
    row = one({"input_ids": ids, "labels": labels}, weightless)
    assert said(row) == "Hi the [[cab]]"
    assert (row.n_tokens, row.n_label_tokens) == (len(ids), 2)


class TestAnIndex:
    """Its model, and its settings."""

    @pytest.fixture
    def made(self, tmp_path, model_dir):
        """An index of last turns up to 40 tokens, whose model has lost its weights."""
        model = shutil.copytree(model_dir, tmp_path / "model")
        options = {"dim": 256, "labels": "last", "max_length": 40, "max_label_tokens": 4}
        ValuationIndex.create(tmp_path / "index", str(model), **options).close()
        (model / "model.safetensors").unlink()
        return tmp_path / "index"

    def test_reads_as_it_does(self, made):
        ((row,),) = (one.rows for one in peek([HELLO], index=made))
        # Of H e ll o . the first four are scored.
        assert row.runs == (ASKED, TextRun("Hello", True, 4), TextRun(".<|im_end|>\n", False, 3))

    def test_has_settings_of_its_own(self, made):
        with pytest.raises(UsageError, match=r"--labels, --max-length: .* has settings of its own"):
            peek([HELLO], index=made, labels="all", max_length=3)
        for given in ({}, {"index": made, "model": "m"}):
            with pytest.raises(UsageError, match="give either --model"):
                peek([HELLO], **given)

    def test_is_not_read_with_another_tokenizer(self, made):
        tiny_tokenizer(NO_SYSTEM).save_pretrained(made.parent / "model")
        with pytest.raises(SettingsMismatchError, match="its tokenizer digest is"):
            peek([HELLO], index=made)

    def test_is_trusted_by_whoever_says_so(self, made):
        with pytest.raises(SettingsMismatchError, match="runs no code of its own"):
            peek([HELLO], index=made, trust_remote_code=True)

    def test_adds_what_is_usable_and_nothing_else(self, tmp_path, model_dir):
        """Every row is read to the token as `add` reads it."""
        data = [*rows(8), HELLO, {"text": "a"}, {"prompt": "p " * 600, "response": "r"}]
        with ValuationIndex.create(tmp_path / "index", str(model_dir), dim=256) as index:
            found = peek(data, index=index.path, count=99)[0].rows
            (source,) = Data(data).open(images=False)
            for row, read in zip(found, source.samples(), strict=True):
                prepared = index.model.reader.prepare(read)
                if isinstance(prepared, BadRow):
                    assert row.reason == prepared.reason
                    continue
                encoded = prepared.encoded
                assert (row.n_tokens, row.truncated) == (len(encoded), encoded.truncated)
                text = index.model.reader.decode(encoded.token_ids.tolist())
                assert "".join(run.text for run in row.runs) == text
                mask = [run.is_label for run in row.runs for _ in range(run.n_tokens)]
                assert mask == encoded.label_mask.tolist()
            report = index.add(data, on_bad="skip")
        assert report.added == sum(row.usable for row in found) == 9
        assert report.label_tokens == sum(row.n_label_tokens for row in found)


class TestImages:
    """Vision-language models."""

    @pytest.fixture
    def data(self, tmp_path):
        tiny_image(40, 30, 1).save(tmp_path / "a.png")
        row = {"prompt": "What? <image>", "response": "Red", "image": "a.png"}
        lost = {**row, "image": "lost.png"}
        return write_jsonl(tmp_path / "data.jsonl", [row, {"text": "a text"}, lost, row])

    def test_stand_where_their_tokens_do(self, vision_model, data):
        first, text, lost = peeked(data, vision_model)
        assert said(first) == (
            f"<|im_start|>user\n[image 40 x 30, {data.parent / 'a.png'}]\nWhat? <|im_end|>\n"
            "<|im_start|>assistant\n[[Red<|im_end|>]]\n"
        )
        # 5 tokens before it, 14 x 14 of its 28 x 28 pixels for each of its own, and 20 after it.
        assert (first.n_tokens, first.n_label_tokens) == (5 + 4 + 20 + 5, 4)
        assert said(text) == "a[[ text]]"
        assert "lost.png" in lost.reason

    def test_are_refused_where_they_are_not_read(self, vision_model, data, weightless):
        assert "reads text alone" in peeked(data, weightless)[0].reason
        with pytest.raises(ModelError, match="is not loaded for text alone"):
            peek(data, model=vision_model, media="none")

    def test_held_by_rows_need_copies(self, vision_model, data):
        content = (data.parent / "a.png").read_bytes()
        row = {"prompt": "What?", "response": "Red", "image": content}
        assert "make the index with --media copy" in one(row, vision_model).reason
        assert one(row, vision_model, media="copy").usable
        assert not (data.parent / "index").exists()
