import pytest
from explanations import NASTY, explained, explanation
from parsed_pages import Page

from forvalue_index.exceptions import BadSampleError
from forvalue_index.reports.pages import GREEN, RED, explanation_page
from forvalue_index.sources.images import blank
from forvalue_index.sources.sample import Image, Message, Sample
from forvalue_index.valuation.results import ExplainedSample, Explanation, TokenTerm
from forvalue_index.valuation.scoring import Scoring

OVERRIDE = "\u202eabc"


def page(explanation, open_image=None):
    return explanation_page(explanation, open_image)


TOKENS = [
    ("the ", None, None),
    ("cab", 2.0, 0.5),
    (" is", -1.0, 1.25),
    ("\n", 0.0, 3.0),
    ("", -0.5, 2.0),
    ("", None, None),
]


def alpha(element):
    """The colour and the strength of a token's background."""
    style = element[1]["style"]
    assert style.startswith("background: rgba(")
    *colour, strength = style.removeprefix("background: rgba(").removesuffix(")").split(", ")
    return ", ".join(colour), float(strength)


def test_tokens_are_coloured_by_what_they_add():
    """By sign, and in proportion to the largest of the sample; context is pale."""
    found = Page(page(explanation(TOKENS)))
    assert found.texts("b") == ["cab", " is", "\n", ""]
    assert [alpha(element) for element in found.all("b")] == [
        (GREEN, 1.0),
        (RED, 0.5),
        (RED, 0.0),
        (RED, 0.25),
    ]
    titles = [element[1]["title"] for element in found.all("b")]
    assert titles[:2] == ["+2, loss 0.500 nats", "-1, loss 1.250 nats"]
    assert found.texts("i") == ["the "]
    assert found.texts("div", **{"class": "text"}) == ["the cab is\n"]


def test_a_page_says_what_it_is_of():
    text = page(explanation(TOKENS, key="r7", geometry="kfac", normalize=True))
    found = Page(text)
    assert text.startswith("<!doctype html>\n")
    assert found.all("meta", charset="utf-8")
    assert found.texts("title") == found.texts("h1") == ["r7"]
    (said,) = found.texts("p")
    assert "Exact score +0.5 (kfac geometry, cosine)" in said
    assert "1,234 validation samples, 56,789 label tokens" in said
    assert "(raw geometry)" in Page(page(explanation(TOKENS))).texts("p")[0]


def test_the_strongest_tokens_are_in_a_table():
    found = Page(page(explanation(TOKENS)))
    assert found.texts("th") == ["position", "token", "term", "loss"]
    rows = [tuple(found.texts("td")[i : i + 4]) for i in range(0, 16, 4)]
    assert rows == [
        ("1", "'cab'", "+2", "0.500"),
        ("2", "' is'", "-1", "1.250"),
        ("4", "''", "-0.5", "2.000"),
        ("3", r"'\n'", "+0", "3.000"),
    ]
    many = explanation([(str(i), float(i), 1.0) for i in range(30)])
    shown = Page(page(many)).texts("code")
    assert shown == [f"'{i}'" for i in range(29, 9, -1)]


def test_validation_samples_follow():
    parts = [explained(TOKENS, "v0"), explained([("only", -3.0, 1.0)], "v1")]
    found = Page(page(explanation(TOKENS, validation=parts)))
    assert found.texts("h2") == [
        "Strongest tokens",
        "Validation sample 0, v0: +0.5",
        "Validation sample 1, v1: -3",
    ]
    assert found.texts("div") == ["the cab is\n", "the cab is\n", "only"]
    assert alpha(found.all("b")[-1]) == (RED, 1.0)


@pytest.mark.parametrize("text", [NASTY, "'", '"', "&amp;", "&#0;", "</title>", "</style>", "\t"])
def test_what_samples_hold_is_text(text):
    """Whatever is in a key, a label, a context token or a validation sample."""
    part = explained([(text, 1.0, 1.0)], key=text)
    found = Page(page(explanation([(text, 1.0, 1.0), (text, None, None)], text, [part])))
    assert found.comments == []
    assert not {"script", "img"} & {element[0] for element in found.found}
    assert found.texts("title") == found.texts("h1") == [text]
    assert found.texts("b") == [text, text]
    assert found.texts("i") == [text]
    assert found.texts("h2")[1] == f"Validation sample 0, {text}: +1"
    assert found.texts("code") == [repr(text)]
    for element in found.found:
        assert element[1].keys() <= {*("lang", "charset", "name", "content"), "class", "dir"} | {
            *("style", "title"),
        }


def test_control_characters_become_pictures():
    text = page(explanation([("a\x00\x1b[31m\x7f\x9b\r\n\tb", 1.0, 1.0)], key="k\x07"))
    assert not {*map(chr, range(32)), *map(chr, range(127, 160))} - {"\n", "\t"} & set(text)
    found = Page(text)
    assert found.texts("b") == ["a␀␛[31m␡\ufffd␍\n\tb"]
    assert found.texts("title") == ["k␇"]


def test_keys_cannot_turn_what_stands_beside_them():
    """A right-to-left override would show a score backwards."""
    part = explained([(OVERRIDE, 1.0, 1.0)], key=OVERRIDE)
    found = Page(page(explanation([(OVERRIDE, 1.0, 1.0)], OVERRIDE, [part])))
    assert found.texts("bdi") == [OVERRIDE, OVERRIDE]
    assert found.texts("b") == [OVERRIDE, OVERRIDE]
    assert all(element[1]["dir"] == "auto" for element in found.all("div"))


def test_a_page_needs_nothing_else():
    part = explained(TOKENS)
    text = page(explanation(TOKENS, validation=[part]))
    found = Page(text)
    assert not {"script", "link", "img", "iframe", "a", "base"} & {e[0] for e in found.found}
    assert not any({"src", "href"} & element[1].keys() for element in found.found)
    assert not any(word in text for word in ("http", "url(", "@import", "//"))


def test_no_label_and_no_score():
    """Terms of 0 are no division by 0."""
    found = Page(page(explanation([("a", 0.0, 1.0)])))
    assert alpha(found.all("b")[0]) == (RED, 0.0)
    assert Page(page(explanation([]))).texts("div") == [""]


def with_image(open_image):
    """A page of two context tokens around an image, and a label."""
    image = Image("0" * 32, 40, 30, at=4, path="a/<b>.png")
    asked = Message("user", "see this", images=(image,))
    terms = (
        TokenTerm(0, 7, "see "),
        TokenTerm(1, 9, "[image]", image=0),
        TokenTerm(5, 3, "this"),
        TokenTerm(6, 4, "cab", 2.0, 0.5),
    )
    explained = ExplainedSample(Sample((asked,), own_id="k"), 2.0, terms)
    return Page(page(Explanation(1, Scoring(), explained, 1, 1), open_image))


def test_an_image_is_part_of_its_page():
    asked = []
    found = with_image(lambda image: asked.append(image) or blank(40, 30))
    (shown,) = found.all("img")
    assert shown[1]["src"].startswith("data:image/png;base64,")
    assert shown[1]["width"] == "40"
    assert shown[1]["alt"] == shown[1]["title"] == "image 40 x 30, a/<b>.png"
    assert [image.path for image in asked] == ["a/<b>.png"]
    assert found.texts("i") == ["see ", "this"]


def test_a_lost_image_is_told_in_its_place():
    def lost(image):
        raise BadSampleError("<it> is missing")

    found = with_image(lost)
    assert found.texts("i") == ["see ", "[<it> is missing]", "this"]
    assert not found.all("img")
