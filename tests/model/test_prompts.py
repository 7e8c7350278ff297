import datetime

import models
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import tiny_tokenizer

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.contracts import Tokenizer
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.sample import TEXT_ROLE, TOKENS_ROLE, Message, Sample

PAIR = Sample((Message("user", "the hall?"), Message("assistant", "in a cab")))
TWO_TURNS = Sample(
    (
        Message("user", "one"),
        Message("assistant", "two"),
        Message("user", "three"),
        Message("assistant", "four"),
    )
)
SYSTEM = Sample((Message("system", "be brief"), *PAIR.messages))
TEXT = Sample((Message(TEXT_ROLE, "the cab"),))


def encode(sample, chat_template=models.CHATML, *, bos=False, **options):
    tokenizer = tiny_tokenizer(chat_template, bos=bos)
    options = {"template": "chat", "labels": "response", "max_length": 512} | options
    return PromptEncoder(tokenizer, **options).encode(sample)


def labelled(encoded):
    """The text of each run of label tokens."""
    tokenizer = tiny_tokenizer()
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.label_mask.astype(int), [0]])))
    runs = edges.reshape(-1, 2)
    return [tokenizer.decode(encoded.token_ids[a:b]) for a, b in runs]


def read(encoded):
    return tiny_tokenizer().decode(encoded.token_ids)


def reason(sample, chat_template=models.CHATML, **options):
    with pytest.raises(BadSampleError) as error:
        encode(sample, chat_template, **options)
    return str(error.value)


def test_the_tokenizer_keeps_the_contract():
    assert isinstance(tiny_tokenizer(), Tokenizer)


@pytest.mark.parametrize(
    ("chat_template", "sample", "labels"),
    [
        (models.CHATML, PAIR, ["in a cab<|im_end|>"]),
        (models.CHATML, SYSTEM, ["in a cab<|im_end|>"]),
        (models.CHATML, TWO_TURNS, ["two<|im_end|>", "four<|im_end|>"]),
        (models.GENERATION, PAIR, ["in a cab<|im_end|>"]),
        (models.GENERATION, TWO_TURNS, ["two<|im_end|>", "four<|im_end|>"]),
        (models.THINKING, PAIR, ["<think>\n\n</think>\n\nin a cab<|im_end|>"]),
        (
            models.THINKING,
            TWO_TURNS,
            ["two<|im_end|>", "<think>\n\n</think>\n\nfour<|im_end|>"],
        ),
        (models.DATED, TWO_TURNS, ["two<|im_end|>", "four<|im_end|>"]),
        (models.NO_SYSTEM, PAIR, ["in a cab<|im_end|>"]),
        (
            models.NO_GENERATION_PROMPT,
            TWO_TURNS,
            ["<|im_start|>assistant\ntwo<|im_end|>", "<|im_start|>assistant\nfour<|im_end|>"],
        ),
    ],
)
def test_labels_are_what_the_assistant_says_with_its_end_token(chat_template, sample, labels):
    encoded = encode(sample, chat_template)
    assert labelled(encoded) == labels
    assert not encoded.truncated


@pytest.mark.parametrize("chat_template", [models.CHATML, models.GENERATION, models.THINKING])
def test_the_model_reads_what_the_template_renders(chat_template):
    tokenizer = tiny_tokenizer(chat_template)
    conversation = [m.as_dict() for m in TWO_TURNS.messages]
    rendered = tokenizer.apply_chat_template(conversation, tokenize=False)
    assert read(encode(TWO_TURNS, chat_template)) == rendered


def test_the_line_break_after_the_end_token_is_read_and_not_said():
    encoded = encode(PAIR)
    assert read(encoded).endswith("<|im_end|>\n")
    assert not encoded.label_mask[-1]
    assert encoded.label_mask[-2]


def test_white_space_that_the_assistant_says_itself_is_said():
    spaced = Sample((PAIR.messages[0], Message("assistant", "in a cab \n")))
    assert labelled(encode(spaced)) == ["in a cab \n<|im_end|>"]


def test_answers_that_repeat_are_told_apart():
    """The text of a turn alone does not say where it stands: here it also stands in the question
    and in the answer before.
    """
    words = [("user", "two"), ("assistant", "two"), ("user", "two"), ("assistant", "two")]
    sample = Sample(tuple(Message(*w) for w in words))
    for chat_template in (models.CHATML, models.GENERATION, models.THINKING):
        encoded = encode(sample, chat_template)
        first, second = labelled(encoded)
        assert first == "two<|im_end|>"
        assert second.endswith("two<|im_end|>")
        runs = np.flatnonzero(np.diff(encoded.label_mask.astype(int)) == 1)
        before = [tiny_tokenizer().decode(encoded.token_ids[: r + 1]) for r in runs]
        assert [b.count("<|im_start|>") for b in before] == [2, 4]
        assert all(b.endswith("<|im_start|>assistant\n") for b in before)


def test_an_assistant_that_speaks_first_is_labelled_without_what_is_before():
    """Its header, and a system prompt that the template puts before it, used to be labels."""
    sample = Sample((Message("assistant", "hi"), *PAIR.messages))
    assert labelled(encode(sample)) == [
        "hi<|im_end|>",
        "in a cab<|im_end|>",
    ]


def test_a_template_that_fails_is_a_bad_sample():
    """Any error but the template's own went through as a traceback."""
    with pytest.raises(BadSampleError, match="the chat template refuses the roles user, assistant"):
        encode(PAIR, "{% for m in messages %}{{ m.content + 1 }}{% endfor %}")


def test_a_row_does_not_depend_on_the_date_of_today():
    """Templates that print the date gave a sample another row the day after. A function of ours in
    place of `strftime_now` helped until transformers let only plain data into templates, and put
    the text "<builtin_function_or_method>" in its place, which cannot be called.
    """
    today = datetime.datetime.now(tz=datetime.UTC).strftime("%d %b %Y")
    assert today != "26 Jul 2024"
    assert read(encode(PAIR, models.DATED)).startswith("26 Jul 2024\n<|im_start|>user")


@pytest.mark.parametrize("spelled", ["%Y-%m-%d", "%d %B %Y", "%-d.%-m.%y", "%A, %F %T", "%H:%M"])
def test_every_way_to_write_the_date_is_fixed(spelled):
    template = (
        f"\n{{% if strftime_now is defined %}}{{{{ strftime_now('{spelled}') }}}}{{% endif %}}"
    )
    expected = datetime.datetime(2024, 7, 26, tzinfo=datetime.UTC).strftime(spelled)
    assert read(encode(PAIR, template + models.CHATML)).startswith(f"\n{expected}<|im_start|>")


def test_all_labels_are_all_tokens_but_the_first():
    for chat_template in (models.CHATML, models.GENERATION, models.THINKING):
        encoded = encode(TWO_TURNS, chat_template, labels="all")
        assert encoded.label_mask.tolist() == [False] + [True] * (len(encoded) - 1)
        assert len(encoded) == len(encode(TWO_TURNS, chat_template))
    for sample in (PAIR, TEXT):
        encoded = encode(sample, template="plain", labels="all")
        assert encoded.n_label_tokens == len(encoded) - 1


def test_a_plain_text_is_all_label_but_for_its_first_token():
    assert labelled(encode(TEXT)) == [" cab"]
    assert read(encode(TEXT)) == "the cab"
    begun = encode(TEXT, bos=True)
    assert read(begun) == "<s>the cab"
    assert labelled(begun) == ["the cab"]


def plain(prompt, response, **options):
    sample = Sample((Message("user", prompt), Message("assistant", response)))
    return encode(sample, template="plain", **options)


def test_a_plain_pair_is_prompt_response_and_end_token():
    encoded = plain("the hall?", " in a cab")
    assert read(encoded) == "the hall? in a cab</s>"
    assert labelled(encoded) == [" in a cab</s>"]


def test_a_plain_pair_starts_with_what_the_tokenizer_puts_first():
    encoded = plain("q", "a", bos=True)
    assert read(encoded) == "<s>qa</s>"
    assert labelled(encoded) == ["a</s>"]
    assert labelled(plain("", "cab", bos=True)) == ["cab</s>"]


def test_a_token_across_the_border_is_response():
    """`a` + `b` is one token of this tokenizer, and the model predicts it as a whole."""
    encoded = plain("xa", "bx")
    assert tiny_tokenizer().convert_ids_to_tokens(encoded.token_ids) == ["x", "ab", "x", "</s>"]
    assert labelled(encoded) == ["abx</s>"]


def test_an_end_token_that_is_there_already_is_not_doubled():
    assert read(plain("q", "a</s>")) == "qa</s>"
    assert labelled(plain("q", "a</s>")) == ["a</s>"]


def test_an_empty_response_is_its_end_token():
    assert labelled(plain("q", "")) == ["</s>"]


def test_letters_of_several_bytes_keep_their_border():
    encoded = plain("été ", "😀 là")
    assert labelled(encoded) == ["😀 là</s>"]


def test_truncation_is_flagged_and_cuts_on_the_right():
    whole = encode(PAIR)
    assert not encode(PAIR, max_length=len(whole)).truncated
    cut = encode(PAIR, max_length=len(whole) - 3)
    assert cut.truncated
    assert cut.token_ids.tolist() == whole.token_ids[:-3].tolist()
    assert cut.label_mask.tolist() == whole.label_mask[:-3].tolist()
    assert encode(TEXT, max_length=2).truncated


def test_a_prompt_that_fills_the_length_is_refused_with_its_size():
    whole = encode(PAIR)
    prompt_tokens = int(np.flatnonzero(whole.label_mask)[0])
    assert encode(PAIR, max_length=prompt_tokens + 1).n_label_tokens == 1
    assert reason(PAIR, max_length=prompt_tokens) == (
        f"its prompt alone has {prompt_tokens} tokens, so no response token is within the "
        f"{prompt_tokens} of --max-length; shorten the prompt or build an index with a larger one"
    )


@pytest.mark.parametrize(("text", "n"), [("", 0), ("x", 1)])
def test_a_text_without_a_token_to_predict_is_refused(text, n):
    sample = Sample((Message(TEXT_ROLE, text),))
    assert reason(sample) == f"has {n} token(s) and none to predict, as the first one never is"


def test_a_conversation_without_an_assistant_is_refused():
    sample = Sample((Message("user", "hi"), Message("user", "there")))
    assert "none to predict" in reason(sample)
    assert "none to predict" in reason(sample, models.GENERATION)


def test_a_template_that_refuses_a_role_is_quoted():
    assert reason(SYSTEM, models.NO_SYSTEM) == (
        "the chat template refuses the roles system, user, assistant: no system role here"
    )


def test_a_conversation_needs_a_chat_template():
    said = reason(TWO_TURNS, template="plain")
    assert said.startswith("a conversation of 4 turns needs a chat template")
    assert "--template chat, or prompt/response columns" in said


def test_turns_are_found_where_the_template_rewrites_the_past():
    """This one writes before all turns how many there are."""
    assert labelled(encode(TWO_TURNS, models.COUNTING)) == ["two<|im_end|>", "four<|im_end|>"]


def test_turns_are_found_where_the_template_changes_them():
    """This one writes earlier answers in capitals; the first was searched for in vain."""
    assert labelled(encode(TWO_TURNS, models.SHOUTING)) == ["TWO<|im_end|>", "four<|im_end|>"]


def test_a_turn_that_cannot_be_found_is_refused():
    """This template writes the last turn first, so that no part of a conversation is its start."""
    said = reason(TWO_TURNS, models.BACKWARDS)
    assert said.startswith("the assistant's turn 2 is not found in what the chat template renders")
    assert "--template plain with prompt/response columns, or --labels all" in said
    assert encode(TWO_TURNS, models.BACKWARDS, labels="all").n_label_tokens > 0


LETTERS = st.text(st.sampled_from("abthe onlrc \né😀"), min_size=1, max_size=12)


@settings(deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=5), st.sampled_from(["CHATML", "GENERATION"]))
def test_both_ways_to_find_turns_agree_on_any_conversation(contents, name):
    """A generation block says where the turns are; prefix difference must find the same."""
    roles = ["user", "assistant"] * 3
    messages = [Message(r, c) for r, c in zip(roles, ["q", *contents], strict=False)]
    encoded = encode(Sample(tuple(messages)), getattr(models, name))
    expected = [m.content + "<|im_end|>" for m in messages if m.role == "assistant"]
    assert labelled(encoded) == expected


@settings(deadline=None)
@given(LETTERS, LETTERS)
def test_a_plain_pair_loses_nothing(prompt, response):
    encoded = plain(prompt, response)
    assert read(encoded) == prompt + response + "</s>"
    (said,) = labelled(encoded)
    assert said.endswith(response + "</s>") or not encoded.label_mask[0]


@pytest.mark.parametrize(("most", "expected"), [(1, 1), (3, 3), (99, 4)])
def test_the_first_label_tokens_are_kept(most, expected):
    """ "in a cab<|im_end|>" has four, or more where merges are missing; all that is read stays."""
    whole, cut = encode(PAIR), encode(PAIR, max_label_tokens=most)
    n_labels = whole.n_label_tokens
    places = np.flatnonzero(whole.label_mask)[: min(most, n_labels)]
    assert np.flatnonzero(cut.label_mask).tolist() == places.tolist()
    assert np.array_equal(cut.token_ids, whole.token_ids)
    assert not cut.truncated


def test_label_tokens_are_counted_over_all_turns_and_after_the_first_token():
    whole = encode(TWO_TURNS)
    first = whole.n_label_tokens - 1
    cut = encode(TWO_TURNS, max_label_tokens=first)
    assert np.flatnonzero(cut.label_mask).tolist() == np.flatnonzero(whole.label_mask)[:-1].tolist()
    text = encode(TEXT, max_label_tokens=2)
    assert np.flatnonzero(text.label_mask).tolist() == [1, 2], "the first token is never a label"


def test_texts_of_tokens_add_up_to_what_was_encoded():
    tokenizer = tiny_tokenizer()
    encoder = PromptEncoder(tokenizer, template="chat", labels="response", max_length=512)
    assert encoder.decode(encoder.encode(PAIR).token_ids.tolist()).endswith("in a cab<|im_end|>\n")


TOKENS = Sample((Message(TOKENS_ROLE, "9 8 7 6 5 4 3", {"labels": [[1, 3], [4, 6]]}),))
WHOLE = Sample((Message(TOKENS_ROLE, "9 8 7 6"),))


@pytest.mark.parametrize("template", ["chat", "plain"])
@pytest.mark.parametrize(
    ("sample", "options", "ids", "places"),
    [
        (TOKENS, {}, [9, 8, 7, 6, 5, 4, 3], [1, 2, 4, 5]),
        (TOKENS, {"labels": "last"}, [9, 8, 7, 6, 5, 4, 3], [4, 5]),
        (TOKENS, {"labels": "all"}, [9, 8, 7, 6, 5, 4, 3], [1, 2, 3, 4, 5, 6]),
        (TOKENS, {"max_label_tokens": 3}, [9, 8, 7, 6, 5, 4, 3], [1, 2, 4]),
        (TOKENS, {"max_length": 5}, [9, 8, 7, 6, 5], [1, 2, 4]),
        (WHOLE, {}, [9, 8, 7, 6], [1, 2, 3]),
        (WHOLE, {"labels": "last"}, [9, 8, 7, 6], [1, 2, 3]),
    ],
)
def test_tokens_are_read_as_they_are(template, sample, options, ids, places):
    """No template, no first or end token: whoever made them has put in what belongs there."""
    encoded = encode(sample, bos=True, template=template, **options)
    assert encoded.token_ids.tolist() == ids
    assert np.flatnonzero(encoded.label_mask).tolist() == places
    assert encoded.truncated == (len(ids) < len(sample.response.split()))


def test_tokens_whose_labels_are_cut_are_refused():
    late = Sample((Message(TOKENS_ROLE, "9 8 7 6", {"labels": [[3, 4]]}),))
    assert reason(late, max_length=3).startswith("its prompt alone has 3 tokens, so no response")
