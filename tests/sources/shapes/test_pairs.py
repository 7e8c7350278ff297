"""Prompt and response with passages, choices, earlier turns and several answers."""

import json

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import parse_columns, to_sample


def read(row, columns=None):
    return [(m.role, m.content) for m in to_sample(row, columns).messages]


def pair(prompt, response="A"):
    return [("user", prompt), ("assistant", response)]


ROWS = {
    "Alpaca": ({"instruction": "Q", "input": "I", "output": "A"}, pair("Q\n\nI")),
    "Dolly": (
        {"instruction": "Q", "context": "C", "response": "A", "category": "closed_qa"},
        pair("Q\n\nC"),
    ),
    "Dolly without context": (
        {"instruction": "Q", "context": "", "response": "A", "category": "open_qa"},
        pair("Q"),
    ),
    "OpenOrca": (
        {"id": "o.1", "system_prompt": "S", "question": "Q", "response": "A"},
        [("system", "S"), *pair("Q")],
    ),
    "FLAN": ({"inputs": "Q", "targets": "A", "task": "t"}, pair("Q")),
    "query and answer": ({"query": "Q", "answer": "A"}, pair("Q")),
    "query and response": ({"query": "Q", "response": "A"}, pair("Q")),
    "problem and solution": ({"problem": "Q", "solution": "A", "level": 5}, pair("Q")),
    "input and output": ({"input": "Q", "output": "A"}, pair("Q")),
    "a passage": ({"question": "Q", "context": "C", "answer": "A"}, pair("Q\n\nC")),
    "passages": ({"question": "Q", "context": ["C", "D"], "answer": "A"}, pair("Q\n\nC\n\nD")),
    "SQuAD": (
        {
            "id": "5",
            "title": "T",
            "context": "C",
            "question": "Q",
            "answers": {"text": ["A", "B"], "answer_start": [1, 2]},
        },
        pair("Q\n\nC"),
    ),
    "NQ": ({"question": "Q", "answer": ["A", "B"]}, pair("Q")),
    "TriviaQA": ({"question": "Q", "answer": {"value": "A", "aliases": ["B"]}}, pair("Q")),
    "Magpie": ({"uuid": "u", "instruction": "Q", "response": "A"}, pair("Q")),
    "nulls": (
        {"instruction": "Q", "input": None, "output": "A", "system": None, "history": None},
        pair("Q"),
    ),
    "not a number": (
        {"instruction": "Q", "input": float("nan"), "output": "A", "system": float("nan")},
        pair("Q"),
    ),
    "a system turn": (
        {"system": "S", "prompt": "Q", "response": "A"},
        [("system", "S"), *pair("Q")],
    ),
    "history": (
        {
            "instruction": "Q",
            "input": "",
            "output": "A",
            "system": "S",
            "history": [["q", "a"], ("r", "b")],
        },
        [("system", "S"), *pair("q", "a"), *pair("r", "b"), *pair("Q")],
    ),
    "history as text": (
        {"query": "Q", "response": "A", "history": '[["q", "a"]]'},
        [*pair("q", "a"), *pair("Q")],
    ),
    "history of messages": (
        {"query": "Q", "response": "A", "history": [{"role": "user", "content": "q"}]},
        [("user", "q"), *pair("Q")],
    ),
}


SYSTEM, ASKED = {"role": "system", "content": "S"}, {"role": "user", "content": "Q"}
ROWS |= {
    "history before a list with a system turn": (
        {"prompt": [SYSTEM, ASKED], "response": "A", "history": [["q", "a"]]},
        [("system", "S"), *pair("q", "a"), *pair("Q")],
    ),
    "history with the system turn of the list": (
        {"prompt": [SYSTEM, ASKED], "response": "A", "history": [SYSTEM, ASKED]},
        [("system", "S"), ("user", "Q"), *pair("Q")],
    ),
}


@pytest.mark.parametrize("case", ROWS)
def test_pairs_and_what_goes_with_them(case):
    row, expected = ROWS[case]
    assert read(row) == expected
    assert to_sample(row).unread == ()


def test_answers_of_a_history_are_trained():
    """As LLaMA-Factory does, unless it is told to mask the history."""
    found = to_sample(ROWS["history"][0])
    assert [m.content for m in found.messages if m.is_trained] == ["a", "b", "A"]


def test_further_right_answers_are_metadata():
    row = ROWS["SQuAD"][0]
    assert to_sample(row).metadata == {"title": "T", "answers": row["answers"]}


LISTED = "Q\n\nA. x\nB. y\nC. z"


@pytest.mark.parametrize(
    ("answer", "response"),
    [
        *[(given, "B. y") for given in (1, "B", "y", " B ", "1")],
        (0, "A. x"),
        ("We see that it is y.", "We see that it is y."),
    ],
)
def test_choices(answer, response):
    """MMLU has an index, MMLU-Pro a letter, others the text; all are rendered alike."""
    row = {"question": "Q", "answer": answer, "subject": "s"}
    for column in ("choices", "options"):
        for listed in (["x", "y", "z"], '["x", "y", "z"]', {"A": "x", "B": "y", "C": "z"}):
            assert read({**row, column: listed}) == pair(LISTED, response)
    assert to_sample({**row, "choices": ["x", "y", "z"]}).metadata == {"subject": "s"}


@pytest.mark.parametrize("labels", ["ABC", "123"])
def test_choices_of_arc(labels):
    listed = "\n".join(f"{n}. {text}" for n, text in zip(labels, "xyz", strict=True))
    row = {"question": "Q", "choices": {"text": list("xyz"), "label": list(labels)}}
    assert read({**row, "answerKey": labels[2]}) == pair(f"Q\n\n{listed}", f"{labels[2]}. z")


def test_choices_that_are_numbers():
    assert read({"question": "Q", "choices": ["3", "4"], "answer": "4"})[1][1] == "B. 4"


@pytest.mark.parametrize(
    ("choices", "answer", "told"),
    [
        (["2", "1", "0"], "0", "'answer' is '0', which is the text of choice C and stands for A, "),
        (["1", "2"], "1", "'answer' is '1', which is the text of choice A and stands for B, too;"),
        ({"A": "B", "B": "x"}, "B", "'answer' is 'B', which is the text of choice A and stands fo"),
    ],
)
def test_an_answer_that_means_two_choices_is_refused(choices, answer, told):
    with pytest.raises(BadSampleError) as error:
        to_sample({"question": "Q", "choices": choices, "answer": answer})
    assert str(error.value).startswith(told)


def test_an_answer_that_is_text_and_index_of_one_choice():
    """A number is an index, and text may be either."""
    row = {"question": "Q", "choices": ["0", "1", "3"]}
    for answer, response in (("0", "A. 0"), ("1", "B. 1"), ("3", "C. 3"), (2, "C. 3")):
        assert read({**row, "answer": answer})[1][1] == response
    assert read({**row, "choices": ["2", "1", "0"], "answer": 0})[1][1] == "A. 2"


@pytest.mark.parametrize("empty", [None, [], "", {}])
def test_no_choices(empty):
    assert read({"question": "Q", "choices": empty, "answer": "A"}) == pair("Q")


def test_a_passage_comes_before_choices():
    row = {"question": "Q", "context": "C", "choices": ["x"], "answer": 0}
    assert read(row) == pair("Q\n\nC\n\nA. x", "A. x")


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": "Q", "choices": ["x"], "answer": 1}, "'answer' is 1, and the choices are A;"),
        (
            {"question": "Q", "choices": ["x"], "answer": "E"},
            "'answer' is 'E', and the choices are",
        ),
        ({"question": "Q", "choices": ["x"], "answer": None}, "'answer' is None, and the choices"),
        (
            {"question": "Q", "choices": {"text": ["x"], "label": ["A", "B"]}, "answer": "A"},
            "'choices' has 1 texts and 2 labels; give each its own",
        ),
        (
            {"question": "Q", "choices": ["x"] * 27, "answer": 1},
            "'choices' has 27 choices, and 26 are the most",
        ),
        ({"question": "Q", "context": "C", "answers": {"text": []}}, "'answers' holds no answer;"),
        (
            {"instruction": "Q", "output": "A", "history": [["q"]]},
            "pair 1 of 'history' is no quest",
        ),
        (
            {"instruction": "Q", "output": "A", "history": [["q", None]]},
            "the answer of pair 1 of 'history' is null, wanted text",
        ),
        (
            {"prompt": [SYSTEM, ASKED], "response": "A", "history": [{**SYSTEM, "content": "T"}]},
            "'prompt' and the history before it have system turns that differ; leave one out",
        ),
        ({"problem": "Q", "solution": None}, "'solution' is null, wanted text"),
        ({"inputs": None, "targets": "A"}, "'inputs' is null, wanted text"),
    ],
)
def test_what_cannot_be_read_is_refused(row, told):
    with pytest.raises(BadSampleError) as error:
        to_sample(row)
    assert str(error.value).startswith(told)


def test_every_field_can_be_mapped():
    row = {
        "ask": "Q",
        "passage": "C",
        "say": "A",
        "rules": "S",
        "before": [["q", "a"]],
        "can": json.dumps([{"name": "f"}]),
        "of": ["A", "B"],
    }
    mapping = parse_columns(
        "prompt=ask,input=passage,response=say,system=rules,history=before,tools=can,choices=of"
    )
    found = to_sample(row, mapping)
    assert [(m.role, m.content) for m in found.messages] == [
        ("system", "S"),
        *pair("q", "a"),
        *pair("Q\n\nC\n\nA. A\nB. B", "A. A"),
    ]
    assert (found.tools, found.metadata, found.unread) == (({"name": "f"},), {}, ())


def test_a_passage_beside_a_known_pair_can_be_mapped():
    row = {"prompt": "Q", "response": "A", "passage": "C"}
    assert to_sample(row).unread == ("passage",)
    assert read(row, {"input": "passage"}) == pair("Q\n\nC")
    assert to_sample(row, {"input": "passage"}).unread == ()


def test_a_mapped_field_must_be_what_it_is_called():
    row = {"prompt": "Q", "response": "A", "s": 7}
    with pytest.raises(BadSampleError, match="'s' is int, wanted text"):
        to_sample(row, {"system": "s"})
    with pytest.raises(BadSampleError, match="'s' is int, wanted pairs of question and answer"):
        to_sample(row, {"history": "s"})
    with pytest.raises(BadSampleError, match="'s' is int, wanted a list of texts"):
        to_sample(row, {"choices": "s"})
