"""Content hashes: what was read before is known for ever, whatever else comes to be read."""

import json
from pathlib import Path

from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.sample import Message, Sample

ORDINARY = Path(__file__).parent / "ordinary_rows.jsonl"


def test_ordinary_rows_are_hashed_as_ever():
    """Made by version 0.1, before tool calls, training marks and further columns were read."""
    rows = [json.loads(line) for line in ORDINARY.read_text("utf-8").splitlines()]
    assert len(rows) == 168
    assert [to_sample(r["row"]).content_hash for r in rows] == [r["hash"] for r in rows]


def test_tools_are_hashed_and_what_is_said_of_reading_is_not():
    messages = (Message("user", "Q"), Message("assistant", "A"))
    plain = Sample(messages)
    assert Sample(messages, tools=({"name": "a"},)).content_hash != plain.content_hash
    told = Sample(messages, cut_turns=2, unread=("context",))
    assert told == plain
    assert told.content_hash == plain.content_hash
