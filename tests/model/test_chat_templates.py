"""How conversations with images are rendered, and where in the text the assistant speaks.

What texts alone are rendered to is told by test_prompts.
"""

import pytest
from models import CHATML, GENERATION, NO_SYSTEM, tiny_tokenizer

from forvalue_index.exceptions import BadSampleError
from forvalue_index.model.chat_templates import ChatTemplate
from forvalue_index.model.labelled_chat import labelled_chat
from forvalue_index.sources.sample import Image, Message, Sample

IMAGE = Image("0" * 32, 4, 3, at=4)
ASKED = Message("user", "see it?", images=(IMAGE,))
TURNS = (ASKED, Message("assistant", "yes"), Message("user", "sure?"), Message("assistant", "no"))
HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
PARTS = (
    "{% for p in m.content %}{% if p.type == 'image' %}<image>{% else %}{{ p.text }}{% endif %}"
    "{% endfor %}"
)
# As many templates of language models that learned to see: lists of parts only from the user.
FROM_USER = (
    "{% if m.role == 'user' and m.content is not string %}"
    + PARTS
    + "{% else %}{{ m.content + '' }}{% endif %}"
)
EITHER = "{% if m.content is string %}{{ m.content }}{% else %}" + PARTS + "{% endif %}"
MARKED = (
    HEAD
    + "{% if m.role == 'assistant' %}{% generation %}"
    + PARTS
    + "<|im_end|>{% endgeneration %}{% else %}"
    + PARTS
    + "<|im_end|>{% endif %}{{ '\\n' }}{% endfor %}"
)
# Its generation prompt lacks a space that stands before answers, as that of LLaVA-OneVision.
UNLIKE = (
    "{% for m in messages %}<|im_start|>{{ m.role }} \n" + PARTS + "<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
EXPECTED = (
    "<|im_start|>user\nsee <image>it?<|im_end|>\n<|im_start|>assistant\nyes<|im_end|>\n"
    "<|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\nno<|im_end|>\n"
)


def template(text, image_token="<image>"):
    return ChatTemplate(tiny_tokenizer(text), image_token=image_token)


def read(found, turns):
    """What a conversation is rendered to, and what of it the assistant is trained to say."""
    chat = labelled_chat(found, Sample(tuple(turns)))
    return chat.text, [chat.text[slice(*span)] for span in chat.turns]


@pytest.mark.parametrize(
    "text",
    [HEAD + PARTS + TAIL, HEAD + FROM_USER + TAIL, HEAD + EITHER + TAIL, CHATML],
    ids=["lists alone", "lists from the user", "either", "text alone"],
)
def test_every_kind_of_template_renders_images_in_their_places(text):
    assert read(template(text), TURNS) == (EXPECTED, ["yes<|im_end|>", "no<|im_end|>"])


def test_a_template_that_marks_turns():
    assert read(template(MARKED), TURNS) == (EXPECTED, ["yes<|im_end|>", "no<|im_end|>"])
    assert len(read(template(GENERATION, image_token=None), TURNS[:2])[1]) == 1


@pytest.mark.parametrize("answer", ["yes", "a", "assistant", "tan", "start", "user", "\n"])
def test_an_answer_begins_after_its_header_whatever_it_is(answer):
    """Also where the header holds the answer, and the generation prompt is not the header."""
    turns = (ASKED, Message("assistant", answer), Message("user", "?"), Message("assistant", "a"))
    _, said = read(template(UNLIKE), turns)
    assert [text.removesuffix("<|im_end|>") for text in said] == [answer, "a"]


def test_an_answer_is_found_where_the_generation_prompt_is_another():
    rendered, said = read(template(UNLIKE), TURNS)
    assert not rendered.startswith(
        "<|im_start|>user \nsee <image>it?<|im_end|><|im_start|>assistant\n"
    )
    assert said == ["yes<|im_end|>", "no<|im_end|>"]


def test_without_images_content_is_text():
    """To a template that renders lists as they are written in Python."""
    assert "type" not in read(template(CHATML), TURNS)[0]
    assert read(template(CHATML, image_token=None), TURNS[1:])[0] in EXPECTED


def test_what_a_template_leaves_out_is_told():
    """As some leave out a system turn."""
    silent = (
        "{% for m in messages if m.role != 'system' %}<|im_start|>{{ m.role }}\n" + PARTS + TAIL
    )
    with pytest.raises(BadSampleError, match="leaves out what the role system says"):
        read(template(silent), (Message("system", "be kind"), *TURNS))
    assert read(template(silent), TURNS)[0] == EXPECTED


def test_what_a_template_writes_around_an_image():
    around = PARTS.replace("<image>", "<vision><image></vision>")
    assert template(HEAD + around + TAIL).image_mark() == "<vision><image></vision>"
    assert template(CHATML).image_mark() == "<image>"
    first = "{% for p in m.content if p.type == 'image' %}<image>{% endfor %}" + PARTS.replace(
        "<image>", ""
    )
    assert template(HEAD + first + TAIL).image_mark() == "<image>"


def test_a_refusal_is_told():
    system = Message("system", "be kind")
    with pytest.raises(BadSampleError, match="the chat template refuses the roles system, user"):
        read(template(NO_SYSTEM), (system, *TURNS))
