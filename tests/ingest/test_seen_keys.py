from contextlib import closing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.ingest.seen_keys import SeenKeys
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
