"""Rows that are single turns."""

import pytest

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample


def read(row, columns=None):
    return [(m.role, m.content) for m in to_sample(row, columns).messages]


def test_rows_that_are_single_messages_are_refused():
    row = {"message_id": "1", "parent_id": None, "text": "q", "role": "prompter", "lang": "en"}
    with pytest.raises(BadSampleError, match="are those of single messages of OpenAssistant trees"):
        read(row)
    assert read(row, {"text": "text"}) == [("text", "q")]
    row = {"speaker": "A", "text": "hello", "turn": 1}
    with pytest.raises(BadSampleError, match="the row is one turn of a dialogue, with speaker and"):
        read(row)
    assert read(row, {"text": "text"}) == [("text", "hello")]
    assert read({**row, "session": "of the parliament"}) == [("text", "hello")]


@pytest.mark.parametrize("who", ["role", "author", "from", "sender", "Speaker"])
@pytest.mark.parametrize("beside", [{}, {"id": 3, "turn": 1}, {"conversation_id": "c"}])
def test_whoever_speaks(who, beside):
    row = {**beside, who: "A", "text": "hello"}
    with pytest.raises(BadSampleError, match=f"is one turn of a dialogue, with {who.lower()} and"):
        read(row)
    assert read(row, {"text": "text"}) == [("text", "hello")]
    assert read({**row, "title": "T"}) == [("text", "hello")]
