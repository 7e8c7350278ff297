from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.ingest.seen_keys import SeenKeys
from forvalue_index.ingest.tally import Repeat
from forvalue_index.sources.sample import Message, Sample


def sample(key, text="text"):
    return Sample((Message("text", text),), own_id=key)


def test_the_first_content_of_a_key_is_remembered():
    with closing(SeenKeys()) as seen:
        assert seen.content_of("a") is None
        seen.note(sample("a", "one"))
        seen.note(sample("a", "other"))
        assert seen.content_of("a") == sample("a", "one").content_hash
        assert seen.content_of("b") is None


def test_each_object_begins_anew():
    with closing(SeenKeys()) as one, closing(SeenKeys()) as other:
        one.note(sample("a"))
        assert other.content_of("a") is None


@given(st.lists(st.tuples(st.sampled_from(["a", "A", "ä", "a ", "", "\0", "\ud800"]), st.text())))
def test_it_is_what_a_dictionary_would_be(noted):
    expected = {}
    with closing(SeenKeys()) as seen:
        for key, text in noted:
            assert seen.content_of(key) == expected.get(key)
            written = text.encode("utf-8", "replace").decode()
            seen.note(sample(key, written))
            expected.setdefault(key, sample(key, written).content_hash)


@pytest.mark.parametrize("count", [20_000])
def test_many_samples_are_told_apart(count):
    one = sample("x")
    with closing(SeenKeys()) as seen:
        for number in range(count):
            seen.note(Sample(one.messages, own_id=str(number)))
        assert seen.content_of(str(count - 1)) == one.content_hash
        assert seen.content_of(str(count)) is None


def row(position, **metadata):
    return Sample((Message("text", "t"),), "d.jsonl", position, "a", metadata)


def test_a_repeat_says_what_is_other_or_new_beside_all_rows_before_it():
    with closing(SeenKeys()) as seen:
        seen.note(row(1, label=1, long="x" * 10_000, nested={"b": [1]}), was_known=True)
        assert seen.repeat(row(2, label=1.0)) == Repeat("d.jsonl:2", "d.jsonl:1", {})
        assert list(seen.new_metadata()) == []
        assert seen.repeat(row(3, label=0, nested={"b": [1]})).metadata == {"label": 0}
        assert seen.repeat(row(4, label=0)).metadata == {}
        assert seen.repeat(row(5, label=1, more="é")).metadata == {"label": 1, "more": "é"}
        assert list(seen.new_metadata()) == [[("a", {"label": 1, "more": "é"}, True)]]


def test_new_metadata_come_in_lists_that_fit_into_a_statement():
    with closing(SeenKeys()) as seen:
        for number in range(1000):
            seen.keep_metadata(f"{number:04}", {"n": 2**70 + number}, was_known=False)
        chunks = list(seen.new_metadata())
        assert list(map(len, chunks)) == [900, 100]
        kept = [one for chunk in chunks for one in chunk]
        assert kept == [(f"{n:04}", {"n": 2**70 + n}, False) for n in range(1000)]
