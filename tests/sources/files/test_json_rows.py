"""JSON in all its forms: what holds rows is read, what may be a row itself is asked back."""

import json

import pandas
import pytest
from reading import bad, pairs, raw, read

from forvalue_index.exceptions import SourceError

PAIR, OTHER = {"prompt": "q", "response": "a"}, {"prompt": "q2", "response": "a2"}
BOTH = [("q", "a"), ("q2", "a2")]


@pytest.fixture
def write(tmp_path):
    def write(content, name="d.json"):
        path = tmp_path / name
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    "document",
    [
        [PAIR, OTHER],
        {"data": [PAIR, OTHER]},
        {"version": 1, "questions": [PAIR, OTHER], "tags": ["a"]},
        {"id": 7, "rows": [PAIR, OTHER]},
        {"train": [PAIR, OTHER], "test": []},
    ],
)
def test_rows_in_an_array(write, document):
    assert pairs(write(document)) == BOTH


def test_what_pandas_writes(write):
    frame = pandas.DataFrame([PAIR, OTHER])
    assert pairs(write(frame.to_json(orient="records"))) == BOTH
    assert pairs(write(frame.to_json(orient="table"))) == BOTH
    assert pairs(write(frame.to_json(orient="records", lines=True), "d.jsonl")) == BOTH
    assert bad(write(frame.to_json())) == ["d.json:1: 'prompt' is object, wanted text"]
    with pytest.raises(SourceError, match="wanted an array of objects"):
        read(write(frame.to_json(orient="split")))


def test_a_description_beside_rows_is_ambiguous(write):
    """{"text": "A set of two samples", "data": [...]} was read as one text."""
    path = write({"text": "A set of two samples", "data": [PAIR, OTHER]})
    with pytest.raises(SourceError, match=r"either .* one row \(text, data\) or .* under 'data'"):
        read(path)
    assert pairs(path, {"prompt": "prompt", "response": "response"}) == BOTH


@pytest.mark.parametrize(
    "document",
    [
        {"conversation_id": 3, "exchanges": [PAIR, OTHER]},
        {"title": "T", "sections": [{"heading": "H", "text": "one"}]},
    ],
)
def test_parts_of_one_row_are_no_rows(write, document):
    with pytest.raises(SourceError, match="may be parts of one row"):
        read(write(document))


@pytest.mark.parametrize("name", ["turns", "dialogue"])
def test_turns_of_a_dialogue_are_no_documents(write, name):
    """Each turn was a sample of its own."""
    turns = [{"speaker": "A", "text": "hello there"}, {"speaker": "B", "text": "hi you too"}]
    (reason,) = bad(write({"id": 1, name: turns}))
    assert reason.startswith(f"d.json:1: turn 1 of '{name}' has the speaker 'A' and no role; give")


def test_several_arrays_are_named(write):
    with pytest.raises(SourceError, match="with one such array, not 2: train, test; check"):
        read(write({"train": [PAIR], "test": [OTHER]}))


def test_a_file_of_one_row(write):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert pairs(write({"id": 1, "messages": turns})) == BOTH[:1]
    mapped = {"prompt": "Q", "response": "A"}
    assert pairs(write({"Q": "q", "A": "a"}), mapped) == BOTH[:1]
    assert pairs(write({**PAIR, "parts": [{"n": 1}]})) == BOTH[:1]


def test_documents_one_after_another(write):
    text = "\n\n".join(json.dumps(row, indent=2) for row in (PAIR, OTHER))
    assert [(row.position, row.prompt) for row in read(write(text))] == [(1, "q"), (6, "q2")]
    with pytest.raises(SourceError, match="property name enclosed in double quotes: line 5"):
        read(write(json.dumps(PAIR, indent=2) + "\n{oops"))


def test_lines_in_a_file_called_json(write):
    lines = "\n".join(map(json.dumps, (PAIR, OTHER))).encode()
    path = write(lines + b'\n{bad\n{"text": "\xff"}\n')
    assert pairs(path) == BOTH
    assert [row.partition(": ")[0] for row in bad(path)] == ["d.json:3", "d.json:4"]


TWICE = '{"prompt": "a", "prompt": "b", "response": "c"}'


def test_a_key_twice_is_refused(write):
    path = write(f"{TWICE}\n{json.dumps(PAIR)}\n", "d.jsonl")
    told = "the key 'prompt' comes twice in one object; keep one of them"
    assert bad(path) == [f"d.jsonl:1: {told}"]
    assert (pairs(path), raw(path)) == (BOTH[:1], [TWICE])
    assert bad(write(f"{TWICE}\n{json.dumps(PAIR)}\n")) == [f"d.json:1: {told}"]
    assert bad(write('{"text": "T", "m": {"k": 1, "k": 2}}', "d.jsonl"))
    with pytest.raises(SourceError, match=told):
        read(write(f"[{TWICE}]"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_a_byte_order_mark_tells_the_encoding(write, encoding):
    lines = "".join(json.dumps(row) + "\r\n" for row in (PAIR, OTHER))
    for content, name in ((lines, "d.jsonl"), (lines, "d.json"), (json.dumps([PAIR]), "e.json")):
        rows = read(write(content.encode(encoding), name))
        assert [(row.prompt, row.response) for row in rows] == BOTH[: len(rows)]
        assert [row.position for row in rows] == [1, 2][: len(rows)]


def test_what_json_of_python_holds_beside_json(write):
    lines = ['{"text": "T", "x": NaN, "y": -Infinity}', '{"text": NaN}', '{"text": "\\ud800"}']
    path = write("\n".join([*lines, '{"text": "a\\u0000"}']), "d.jsonl")
    assert [dict(row.metadata) for row in read(path)[:1]] == [{"x": None, "y": None}]
    assert bad(path) == [
        "d.jsonl:2: 'text' is float, wanted text",
        "d.jsonl:3: 'text' holds a NUL or something that is not UTF-8; clean it",
        "d.jsonl:4: 'text' holds a NUL or something that is not UTF-8; clean it",
    ]


def test_an_empty_file_of_lines_has_no_rows(write):
    assert read(write("", "d.jsonl")) == read(write("\n \r\n", "d.jsonl")) == []
