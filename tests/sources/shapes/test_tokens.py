"""Rows that are tokenised already: which tokens are read, and which of them are labels."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.sample import Message
from forvalue_index.sources.shapes.tokens import tokens_of

NOTHING = "and nothing predicts the first; nothing to score"


def message(**row):
    (one,) = to_sample(row).messages
    return one


def tokens(content, *runs):
    return Message("tokens", content, {"labels": list(runs)} if runs else {})


ROWS = {
    "ids alone": ({"input_ids": [15, 27, 3]}, tokens("15 27 3")),
    "all labels": ({"input_ids": [15, 27, 3], "labels": [15, 27, 3]}, tokens("15 27 3")),
    "all but the first": ({"input_ids": [15, 27], "labels": [-100, 27]}, tokens("15 27")),
    "a response": (
        {"input_ids": [15, 27, 3, 4], "labels": [-100, -100, 3, 4]},
        tokens("15 27 3 4", [2, 4]),
    ),
    "two turns": (
        {"input_ids": [5, 6, 7, 8, 9, 10], "labels": [-100, 6, -100, 8, 9, -100]},
        tokens("5 6 7 8 9 10", [1, 2], [3, 5]),
    ),
    "the first is never predicted": (
        {"input_ids": [5, 6, 7, 8], "labels": [5, -100, -100, 8]},
        tokens("5 6 7 8", [3, 4]),
    ),
    "padding at the end": (
        {"input_ids": [5, 6, 7, 2, 2], "attention_mask": [1, 1, 1, 0, 0]},
        tokens("5 6 7"),
    ),
    "padding that is labelled": (
        {
            "input_ids": [2, 2, 5, 6, 7],
            "labels": [2, 0, -100, -100, 7],
            "attention_mask": [0, 0, 1, 1, 1],
        },
        tokens("5 6 7", [2, 3]),
    ),
    "a first token behind padding": (
        {"input_ids": [2, 5, 6, 7], "labels": [2, 5, -100, 7], "attention_mask": [0, 1, 1, 1]},
        tokens("5 6 7", [2, 3]),
    ),
    "the token 0, and a pad token that is read": (
        {"input_ids": [0, 2, 0], "attention_mask": [1, 1, 1]},
        tokens("0 2 0"),
    ),
    "TRL, completion": (
        {"input_ids": [5, 6, 7, 8], "completion_mask": [0, 0, 1, 1]},
        tokens("5 6 7 8", [2, 4]),
    ),
    "TRL, assistant": (
        {"input_ids": [5, 6, 7, 8], "assistant_masks": [0, 1, 0, 1]},
        tokens("5 6 7 8", [1, 2], [3, 4]),
    ),
    "TRL, both": (
        {
            "input_ids": [5, 6, 7, 8],
            "completion_mask": [0, 0, 1, 1],
            "assistant_masks": [0, 1, 1, 0],
        },
        tokens("5 6 7 8", [2, 3]),
    ),
    "labels before masks": (
        {"input_ids": [5, 6, 7], "labels": [-100, 6, -100], "completion_mask": [0, 0, 1]},
        tokens("5 6 7", [1, 2]),
    ),
    "axolotl": (
        {
            "input_ids": [5, 6, 7],
            "labels": [-100, -100, 7],
            "attention_mask": [1, 1, 1],
            "position_ids": [0, 1, 2],
        },
        tokens("5 6 7", [2, 3]),
    ),
    "positions behind padding": (
        {"input_ids": [2, 5, 6], "attention_mask": [0, 1, 1], "position_ids": [1, 0, 1]},
        tokens("5 6"),
    ),
    "one length": ({"input_ids": [5, 6], "seq_lengths": [2]}, tokens("5 6")),
    "nulls": ({"input_ids": [5, 6], "labels": None, "attention_mask": None}, tokens("5 6")),
    "JSON in a cell": (
        {"input_ids": "[5, 6, 7]", "labels": "[-100,-100,7]"},
        tokens("5 6 7", [2, 3]),
    ),
    "true and false": (
        {"input_ids": [5, 6, 7], "attention_mask": [True, True, False]},
        tokens("5 6"),
    ),
    "upper case": ({"Input_IDs": [5, 6, 7], "LABELS": [-100, -100, 7]}, tokens("5 6 7", [2, 3])),
}


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_one_message_of_its_tokens(name):
    row, expected = ROWS[name]
    sample = to_sample(row)
    assert sample.messages == (expected,)
    assert sample.is_tokens
    assert not sample.is_text
    assert not sample.metadata


@pytest.mark.parametrize(
    "cells",
    [
        tuple,
        np.array,
        torch.tensor,
        lambda value: np.array(value, dtype=np.int32),
        lambda value: np.array(value, dtype=object),
        lambda value: [np.int64(one) for one in value],
        lambda value: pa.array(value),
    ],
    ids=["tuple", "numpy", "torch", "int32", "object", "scalars", "arrow"],
)
def test_cells_of_any_kind(cells):
    row = {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "attention_mask": [1, 1, 1]}
    assert message(**{name: cells(value) for name, value in row.items()}) == tokens("5 6 7", [2, 3])


@pytest.mark.parametrize("kind", [None, "numpy", "torch"])
def test_rows_of_a_dataset(kind):
    row = {"input_ids": [5, 6, 7], "labels": [-100, -100, 7], "assistant_masks": [0, 0, 1]}
    data = datasets.Dataset.from_list([row]).with_format(kind)
    assert message(**data[0]) == tokens("5 6 7", [2, 3])


BAD = {
    "shifted labels": (
        {"input_ids": [5, 6, 7], "labels": [6, 7, -100]},
        "labels[0] is 6, and input_ids[0] is 5; wanted the token itself, as trainers shift labels, "
        "or -100",
    ),
    "another label, behind padding": (
        {"input_ids": [2, 5, 6], "labels": [-100, 5, 7], "attention_mask": [0, 1, 1]},
        "labels[2] is 7, and input_ids[2] is 6; wanted the token itself, as trainers shift labels, "
        "or -100",
    ),
    "another mark": (
        {"input_ids": [5, 6, 7], "labels": [-1, -1, 7]},
        "labels[0] is -1, and input_ids[0] is 5; wanted the token itself, as trainers shift "
        "labels, or -100",
    ),
    "a float": ({"input_ids": [5, 6.0]}, "input_ids[1] is 6.0, wanted a whole number"),
    "floats": ({"input_ids": np.array([5.0])}, "input_ids[0] is 5.0, wanted a whole number"),
    "a null": ({"input_ids": [5, None]}, "input_ids[1] is None, wanted a whole number"),
    "text": ({"input_ids": [5, "6"]}, "input_ids[1] is '6', wanted a whole number"),
    "true": ({"input_ids": [5, True]}, "input_ids[1] is True, wanted a whole number"),
    "a batch": ({"input_ids": [[5, 6]]}, "input_ids[0] is list, wanted a whole number"),
    "a number": ({"input_ids": 5}, "'input_ids' is int, wanted a list of whole numbers"),
    "null": ({"input_ids": None}, "'input_ids' is null, wanted a list of whole numbers"),
    "as numpy prints it": (
        {"input_ids": "[5 6]"},
        "'input_ids' is text, wanted a list of whole numbers",
    ),
    "a class": (
        {"input_ids": [5, 6], "labels": 1},
        "'labels' is int, wanted a list of whole numbers",
    ),
    "negative": ({"input_ids": [5, -100]}, "input_ids[1] is -100, wanted a token id"),
    "huge": ({"input_ids": [5, 2**63]}, "'input_ids' has a number of more than 64 bits"),
    "empty": ({"input_ids": [], "labels": []}, "'input_ids' is empty; wanted token ids"),
    "lengths": (
        {"input_ids": [5, 6], "labels": [6]},
        "'labels' has 1 for 2 tokens; wanted one for each",
    ),
    "lengths of masks": (
        {"input_ids": [5, 6], "attention_mask": [1, 1, 0]},
        "'attention_mask' has 3 for 2 tokens; wanted one for each",
    ),
    "no label": (
        {"input_ids": [5, 6], "labels": [-100, -100]},
        f"no token but maybe the first is a label by 'labels', {NOTHING}",
    ),
    "the first label alone": (
        {"input_ids": [5, 6], "labels": [5, -100]},
        f"no token but maybe the first is a label by 'labels', {NOTHING}",
    ),
    "masks that share no token": (
        {"input_ids": [5, 6, 7], "completion_mask": [0, 1, 0], "assistant_masks": [0, 0, 1]},
        "no token but maybe the first is a label by 'completion_mask' and 'assistant_masks', "
        f"{NOTHING}",
    ),
    "one token": (
        {"input_ids": [5, 2], "attention_mask": [1, 0]},
        "'input_ids' has one token, and nothing predicts the first; nothing to score",
    ),
    "no token": (
        {"input_ids": [5, 6], "attention_mask": [0, 0]},
        "'attention_mask' is 0 throughout: no token is left",
    ),
    "a gap": (
        {"input_ids": [2, 5, 6, 7], "attention_mask": [0, 1, 0, 1]},
        "attention_mask[2] is 0, between tokens that are read; wanted 0 for padding at the ends "
        "alone",
    ),
    "numbered texts": (
        {"input_ids": [5, 6, 7], "attention_mask": [1, 2, 2]},
        "attention_mask[1] is 2, wanted 0 or 1",
    ),
    "a weight": (
        {"input_ids": [5, 6], "completion_mask": [0, 0.5]},
        "completion_mask[1] is 0.5, wanted a whole number",
    ),
    "packed by positions": (
        {"input_ids": [5, 6, 7], "position_ids": [0, 1, 0]},
        "position_ids[2] is 0, so the row packs several samples; write each as a row of its own",
    ),
    "packed by TRL": (
        {"input_ids": [5, 6, 7], "seq_lengths": [2, 1]},
        "'seq_lengths' has 2 lengths, so the row packs several samples; write each as a row of its "
        "own",
    ),
    "images": (
        {"input_ids": [5, 6], "images": ["a.png"]},
        "'images' holds images, and a row of input_ids is read without; use messages, or prompt "
        "and response",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_row_of_tokens_is_refused(name):
    row, reason = BAD[name]
    with pytest.raises(BadSampleError) as error:
        to_sample(row)
    assert str(error.value) == reason


def test_columns_of_other_names():
    row = {"tokens": [5, 6, 7], "targets": [-100, -100, 7], "id": 3, "length": 3}
    sample = to_sample(row, {"input_ids": "tokens", "labels": "targets"})
    assert sample.messages == (tokens("5 6 7", [2, 3]),)
    assert sample.key == "3"
    assert sample.metadata == {"length": 3}
    with pytest.raises(BadSampleError, match=r"^targets\[2\] is 7, and tokens\[2\] is 8;"):
        to_sample(row | {"tokens": [5, 6, 8]}, {"input_ids": "tokens", "labels": "targets"})


def test_a_mask_of_unknown_meaning_is_named():
    assert to_sample({"input_ids": [5, 6], "loss_mask": [0, 1]}).unread == ("loss_mask",)


def test_the_hash_covers_ids_and_labels_and_not_how_these_are_written():
    def known(**row):
        return to_sample({"input_ids": [5, 6, 7]} | row).content_hash

    assert known() == known(labels=[5, 6, 7]) == known(completion_mask=[0, 1, 1])
    assert known(labels=[-100, -100, 7]) == known(assistant_masks=[0, 0, 1])
    assert known() == known(input_ids=[2, 5, 6, 7], attention_mask=[0, 1, 1, 1])
    different = [known(), known(labels=[-100, -100, 7]), known(input_ids=[5, 6, 8])]
    assert len({*different, to_sample({"text": "5 6 7"}).content_hash}) == 4


def test_what_is_shown_are_the_ids():
    sample = to_sample({"input_ids": [*range(100, 130)], "labels": [-100] * 29 + [129]})
    assert sample.preview == f"{sample.response[:79]}…"
    assert sample.preview.startswith("100 101 102 ")
    assert sample.response.endswith("128 129")
    assert sample.prompt == ""


def read(one, **options):
    ids, mask = tokens_of(one, **options)
    return ids.tolist(), np.flatnonzero(mask).tolist()


def test_a_message_says_ids_and_labels():
    two = tokens("5 6 7 8 9", [1, 2], [3, 5])
    assert read(two) == ([5, 6, 7, 8, 9], [1, 3, 4])
    assert read(two, last=True) == ([5, 6, 7, 8, 9], [3, 4])
    assert read(tokens("5 6 7")) == read(tokens("5 6 7"), last=True) == ([5, 6, 7], [1, 2])
    stored = Message(**json.loads(json.dumps({"role": "tokens", "content": "5 6", "extra": {}})))
    assert read(stored) == ([5, 6], [1])


@pytest.mark.parametrize(
    "one",
    [
        tokens(""),
        tokens("5 x"),
        tokens("5 -6"),
        tokens("5 99999999999999999999"),
        tokens("5 6", [1, 3]),
        tokens("5 6", [-1, 1]),
        tokens("5 6", [1, 2, 3]),
        tokens("5 6", "ab"),
        Message("tokens", "5 6", {"labels": None}),
    ],
)
def test_a_message_of_a_stranger_that_holds_no_tokens(one):
    with pytest.raises(BadSampleError, match="its tokens or their labels are not those of a"):
        tokens_of(one)


@st.composite
def token_rows(draw):
    """Rows that are padded on either side, with labels or masks or neither."""
    before, n, after = (draw(st.integers(low, most)) for low, most in ((0, 2), (1, 6), (0, 2)))
    whole = before + n + after
    ids = draw(st.lists(st.integers(0, 9), min_size=whole, max_size=whole))
    row = {"input_ids": ids, "attention_mask": [0] * before + [1] * n + [0] * after}
    for name in draw(st.sets(st.sampled_from(["labels", "completion_mask", "assistant_masks"]))):
        row[name] = draw(st.lists(st.integers(0, 1), min_size=whole, max_size=whole))
    if "labels" in row:
        marks = zip(row["labels"], ids, strict=True)
        row["labels"] = [token if mark else -100 for mark, token in marks]
    return row


def is_label(row, at):
    if "labels" in row:
        return row["labels"][at] != -100
    return all(row[name][at] for name in ("completion_mask", "assistant_masks") if name in row)


@settings(deadline=None)
@given(token_rows())
def test_any_row_is_read_as_a_loop_reads_it(row):
    places = [at for at, seen in enumerate(row["attention_mask"]) if seen]
    expected = [n for n, at in enumerate(places) if n and is_label(row, at)]
    if expected:
        assert read(message(**row)) == ([row["input_ids"][at] for at in places], expected)
    else:
        with pytest.raises(BadSampleError, match=r"nothing predicts the first; nothing to score$"):
            message(**row)
