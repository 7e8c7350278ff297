"""The labels of conversations in the templates of the families that people fine-tune.

What is right stands in `chat_families.toml`, read off the templates; the property test takes its
patterns from there, so nothing here knows how labels are found.
"""

import re
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from chat_families import FAMILIES, all_templates, family_tokenizer, renderings, tokenizer_of
from family_rows import (
    ROWS,
    WEATHER,
    asked,
    call,
    result,
    said,
    with_nulls,
    with_text_arguments,
    with_thoughts_as,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.prompts import PromptEncoder
from forvalue_index.sources.cell_values import ARROW, JSON
from forvalue_index.sources.columns import to_sample

# What a rendering must hold, and how often, for nothing of a row to be lost.
ESSENTIAL = {
    "system": {"Be brief.": 1},
    "thought": {"3+3+3": 1},
    "thoughts": {"3+3+3": 1},
    "thought-text": {"3+3+3": 1},
    "tools": {"weather in a city": 1, "Rome": 2},
    "tools-later": {"weather in a city": 1, "Rome": 2},
    "two-calls": {"Rome": 2, "Oslo": 2},
    "call-last": {"Rome": 2},
}
EXPECTED = {
    family: {
        kind: runs if isinstance(runs, str) else [run.replace("⏎", "\n") for run in runs]
        for kind, runs in kinds.items()
    }
    for family, kinds in tomllib.loads(
        (Path(__file__).parent / "chat_families.toml").read_text("utf-8")
    ).items()
}


def encode(tokenizer, row, **options):
    encoder = PromptEncoder(tokenizer, template="chat", labels="response", max_length=32768)
    return encoder.encode(to_sample(row, **options))


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


def runs_of(tokenizer, encoded):
    """For each run of label tokens, its text and the text before it."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], encoded.label_mask.astype(int), [0]])))
    ids = encoded.token_ids.tolist()
    return [
        (decode(tokenizer, ids[start:end]), decode(tokenizer, ids[:start]))
        for start, end in edges.reshape(-1, 2)
    ]


def test_the_table_has_every_family_and_kind():
    assert EXPECTED.keys() == FAMILIES.keys()
    assert {tuple(kinds) for kinds in EXPECTED.values()} == {tuple(ROWS)}
    assert len(FAMILIES) >= 20


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_are_what_the_assistant_says(family, kind):
    tokenizer, expected = family_tokenizer(family), EXPECTED[family][kind]
    if isinstance(expected, str):
        with pytest.raises(BadSampleError) as error:
            encode(tokenizer, ROWS[kind])
        assert re.search(expected.partition(": ")[2], str(error.value))
        return
    encoded = encode(tokenizer, ROWS[kind])
    assert [run for run, _ in runs_of(tokenizer, encoded)] == expected
    texts = {*renderings(tokenizer, ROWS[kind])}
    if "strftime_now" not in str(tokenizer.chat_template):  # the date of today is not used
        assert decode(tokenizer, encoded.token_ids.tolist()) in texts


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_says_what_the_templates_render(family):
    """The runs stand in a rendering in their order; what is refused is raised or lost in all."""
    for kind, row in ROWS.items():
        expected, texts = EXPECTED[family][kind], [*renderings(family_tokenizer(family), row)]
        if isinstance(expected, str):
            if expected.startswith("untold: "):
                continue  # rendered, and in a way that does not tell turns apart
            whole = ESSENTIAL.get(kind, {})
            assert not any(all(t.count(p) >= n for p, n in whole.items()) for t in texts), kind
        else:
            assert any(places_of(expected, text) is not None for text in texts), kind


@pytest.mark.parametrize(
    ("respell", "kind"),
    [
        (with_text_arguments, "tools"),
        (with_text_arguments, "call-last"),
        (with_nulls, "tools"),
        (with_nulls, "two-calls"),
        (with_nulls, "thought"),
        (with_nulls, "multi"),
        (with_thoughts_as("thinking"), "thought"),
        (with_thoughts_as("reasoning"), "thoughts"),
    ],
    ids=lambda value: getattr(value, "__qualname__", value).split(".")[0],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_however_a_row_is_spelled_its_labels_are_the_same(family, kind, respell):
    tokenizer, row, expected = family_tokenizer(family), ROWS[kind], EXPECTED[family][kind]
    spelled = row | {"messages": [respell(message) for message in row["messages"]]}
    options = {"origin": ARROW if respell is with_nulls else JSON}
    if isinstance(expected, str):
        with pytest.raises(BadSampleError):
            encode(tokenizer, spelled, **options)
        return
    encoded = encode(tokenizer, spelled, **options)
    assert [run for run, _ in runs_of(tokenizer, encoded)] == expected
    assert encoded.token_ids.tolist() == encode(tokenizer, row).token_ids.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_what_an_unknown_role_says_is_rendered_or_refused(family):
    tokenizer = family_tokenizer(family)
    row = {"messages": [{"role": "critic", "content": "⟦D⟧"}, *ROWS["multi"]["messages"]]}
    if any("⟦D⟧" in text for text in renderings(tokenizer, row)):
        runs = [run for run, _ in runs_of(tokenizer, encode(tokenizer, row))]
        assert runs == EXPECTED[family]["multi"]
    else:
        with pytest.raises(BadSampleError, match="critic"):
            encode(tokenizer, row)


def places_of(parts, text):
    """Where some parts of a text begin, in their order."""
    places, at = [], 0
    for part in parts:
        at = text.find(part, at)
        if at < 0:
            return None
        places.append(at)
        at += len(part)
    return places


# A conversation made at random. Each text has a mark in it, which stands nowhere else, and may
# have what is dangerous around it: pieces of templates, headers, spaces, and words that repeat.

DANGEROUS = (
    "",
    "",
    " ",
    "\n",
    "\n\n",
    "\t",
    "4",
    "4\n4",
    "été 😀",
    "assistant\n",
    "user",
    "{{ x }}",
)
DANGEROUS += ("{% generation %}", "<|im_start|>assistant\n", "<|im_end|>", "<|im_end|>\n", "</s>")
DANGEROUS += ("[/INST]", " [/INST] ", "ASSISTANT:", "<|assistant|>\n", "model\n", "'\"\\", "[INST]")
TWICE = ("<|im_end|>", "\n<|im_end|>", "</s>")
PLAIN = st.sampled_from(["", "why ", "4, ", "été 😀 ", "the "])


@st.composite
def texts(draw, mark, plain):
    if plain:
        return draw(PLAIN) + mark
    around = st.one_of(st.sampled_from(DANGEROUS), st.text(max_size=3))
    return draw(around) + mark + draw(around)


@st.composite
def conversations(draw, family, *, plain):
    """A row, and of each trained assistant turn the kind, the place and the texts in the table."""
    table = EXPECTED[family]
    marks = iter(f"⟦{number}⟧" for number in range(99))
    messages, patterns = [], []

    def text():
        return draw(texts(next(marks), plain))

    if not isinstance(table["system"], str) and draw(st.booleans()):
        messages.append({"role": "system", "content": text()})
    n_turns = draw(st.integers(1, 3))
    with_tools = not isinstance(table["tools-later"], str) and draw(st.booleans())
    for turn in range(n_turns):
        last = turn == n_turns - 1
        messages.append(asked(text()))
        if last and with_tools:
            city = next(marks)
            messages += [call(city), result(1, text())]
            patterns.append(("tools", 0, {"Rome": city}))
            answer = said(text())
            patterns.append(("tools", 1, {"It is sunny.": answer["content"]}))
        elif not isinstance(table["thoughts"], str) and not with_tools and draw(st.booleans()):
            answer = said(text(), next(marks))
            thought, number = ("3+3+3", "9") if last else ("1+1+2", "4")
            filled = {thought: answer["reasoning_content"], number: answer["content"]}
            patterns.append(("thoughts", int(last), filled))
        else:
            answer = said(text())
            patterns.append(("multi", int(last), {"4": answer["content"]}))
        messages.append(answer)
    said_by_it = [m for m in messages if m["role"] == "assistant"]
    trained = draw(st.lists(st.booleans(), min_size=len(patterns), max_size=len(patterns)))
    trained = trained if any(trained) else [True] * len(patterns)
    for message, is_trained in zip(said_by_it, trained, strict=True):
        if not is_trained:
            message["weight"] = 0
    kept = [pattern for pattern, keep in zip(patterns, trained, strict=True) if keep]
    return {"messages": messages} | ({"tools": [WEATHER]} if with_tools else {}), kept


def filled(pattern, values):
    """A regular expression of a run of the table, with other texts in it.

    Templates may strip the white space at the ends of what somebody says.
    """
    pieces = re.split("(" + "|".join(re.escape(known) for known in values) + ")", pattern)
    return "".join(
        rf"\s*{re.escape(values[piece].strip())}\s*" if piece in values else re.escape(piece)
        for piece in pieces
    )


@cache
def header_of(family, kind, place):
    """The last characters that a template writes between what the user says and a run."""
    row, runs = ROWS[kind], EXPECTED[family][kind]
    asked_for = [m["content"] for m in row["messages"] if m["role"] == "user"]
    for text in renderings(family_tokenizer(family), row):
        places = places_of(runs, text)
        if places is not None:
            before = text[: places[place]]
            return before[max(before.rfind(q) + len(q) for q in asked_for if q in before) :][-12:]
    raise AssertionError(f"no rendering of {kind} by {family} has the runs of the table")


@pytest.mark.parametrize("plain", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_no_other_token_is_a_label_and_no_turn_lacks_its_end(family, plain, thorough):
    """A sample that is refused has no label at all; one whose texts are plain may not be."""
    tokenizer = family_tokenizer(family)

    @settings(
        deadline=None,
        max_examples=200 if thorough else 3,
        phases=(Phase.generate, Phase.shrink) if thorough else (Phase.generate,),
    )
    @given(conversations(family, plain=plain))
    def hold(drawn):
        row, patterns = drawn
        try:
            encoded = encode(tokenizer, row)
        except BadSampleError:
            assert not plain
            return
        runs = runs_of(tokenizer, encoded)
        assert len(runs) == len(patterns), runs
        for (run, before), (kind, place, values) in zip(runs, patterns, strict=True):
            expected = filled(EXPECTED[family][kind][place], values)
            # An end token with which a text ends is the label, and that of the template is none.
            assert any(re.fullmatch(expected, run + end) for end in ("", *TWICE)), (kind, run)
            if place == 0 or kind != "tools":
                assert before.endswith(header_of(family, kind, place)), (kind, run)
        if "strftime_now" not in str(tokenizer.chat_template):
            assert decode(tokenizer, encoded.token_ids.tolist()) in {*renderings(tokenizer, row)}

    hold()


def test_in_any_template_each_answer_is_a_run_and_nothing_else_is(thorough):
    """Templates of hundreds of other models, most of them little known, as they are."""
    words = ["⟦1⟧ why?", "⟦2⟧ so", "⟦3⟧ why?", "⟦4⟧ so"]
    turns = [asked(words[0]), said(words[1]), asked(words[2]), said(words[3])]
    wrong, refused, n_read = [], [], 0
    for family in all_templates()[:: 1 if thorough else 16]:
        tokenizer = tokenizer_of(family)
        try:
            encoded = encode(tokenizer, {"messages": turns})
        except BadSampleError:
            texts = [*renderings(tokenizer, {"messages": turns})]
            if any(places_of(words, text) is not None for text in texts):
                refused.append(family.template)
            continue
        n_read += 1
        runs = [run for run, _ in runs_of(tokenizer, encoded)]
        found = [re.findall("⟦.⟧", run) for run in runs]
        if found != [["⟦2⟧"], ["⟦4⟧"]] or any(words[0] in run for run in runs):
            wrong.append((family.template, runs))
    assert not wrong
    assert len(refused) <= n_read / 10, refused  # judges of what others said have no turns
