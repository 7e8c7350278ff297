"""{% generation %} blocks are followed where they mark turns, and refused where they do not."""

import pytest
from chats import conversation, labels, read

from forvalue_index.exceptions import BadSampleError

HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n"
TAIL = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
WHOLE = (
    HEAD + "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>\n"
    "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + TAIL
)
WITHOUT_END = (
    HEAD + "{% if m.role == 'assistant' %}{%- generation -%}{{ m.content }}{%- endgeneration -%}"
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}" + TAIL
)
TWICE = conversation("a", "yes", "b", "no")


def marked(block):
    """A template that marks a block of turns, whoever speaks."""
    return HEAD + block + "{% endfor %}" + TAIL


HEADER_TOO = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}<|im_start|>assistant\n"
    "{{ m.content }}<|im_end|>\n{% endgeneration %}{% else %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}" + TAIL
)


@pytest.mark.parametrize("template", [WHOLE, HEADER_TOO, WITHOUT_END])
def test_the_rule_holds_wherever_a_block_begins_and_ends(template):
    """With marks or without, the same conversation has the same labels."""
    assert labels(TWICE, template) == ["yes<|im_end|>", "no<|im_end|>"]


def test_a_block_at_the_very_beginning_ends_where_it_ends():
    """transformers took all that follows for generated, words of the user, too."""
    first = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
        "{% endgeneration %}{% else %}{{ '<|im_start|>' + m.content }}{% endif %}{% endfor %}"
    )
    row = {
        "messages": [
            {"role": "assistant", "content": "A"},
            {"role": "user", "content": "user message "},
            {"role": "assistant", "content": "B"},
        ]
    }
    assert read(row, first) == "A<|im_start|>user message B"
    assert labels(row, first) == ["B"], "the first token of all is never a label"


def test_turns_that_are_not_trained_are_context_though_they_are_marked():
    row = conversation("a", "yes", "b", "no")
    row["messages"][1]["train"] = False
    assert labels(row, WHOLE) == ["no<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (
            marked("{% generation %}{{ m.content }}<|im_end|>\n{% endgeneration %}"),
            "reach into turn 1, of the user",
        ),
        (
            marked(
                "{% if m.role == 'assistant' %}{% generation %}<|im_end|>{% endgeneration %}"
                "{% endif %}{{ m.content }}<|im_end|>\n"
            ),
            "leave out what turn 2 says",
        ),
        (
            marked(
                "{% if loop.last %}{% generation %}{{ m.content }}{% endgeneration %}"
                "{% else %}{{ m.content }}{% endif %}<|im_end|>\n"
            ),
            "leave out what turn 2 says",
        ),
    ],
)
def test_blocks_that_do_not_mark_turns_are_refused(template, said):
    with pytest.raises(BadSampleError) as error:
        labels(TWICE, template)
    assert said in str(error.value)
    assert "give another template with --chat-template, or use --labels all" in str(error.value)
