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


def test_white_space_that_is_marked_behind_an_end_token_is_said():
    """As a trainer that follows the marks trains on it."""
    assert labels(TWICE, WHOLE) == ["yes<|im_end|>\n", "no<|im_end|>\n"]


def test_a_block_that_leaves_out_the_end_token_is_taken_up_to_there():
    assert labels(TWICE, WITHOUT_END) == ["yes<|im_end|>", "no<|im_end|>"]


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


def test_a_block_that_reaches_beyond_the_end_token_is_taken_up_to_there():
    ended = WHOLE.replace(
        "<|im_end|>\n{% end",
        "<|im_end|>{{ '' if add_generation_prompt or not loop.last else '<|endoftext|>' }}{% end",
    )
    assert labels(TWICE, ended) == ["yes<|im_end|>", "no<|im_end|>"]


def test_turns_that_are_not_trained_are_context_though_they_are_marked():
    row = conversation("a", "yes", "b", "no")
    row["messages"][1]["train"] = False
    assert labels(row, WHOLE) == ["no<|im_end|>\n"]


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
