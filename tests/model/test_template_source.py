"""Templates as programs: the date is fixed in each of several, and marks change nothing else."""

import datetime

from chats import conversation, tokenizer_for
from models import CHATML, GENERATION

from forvalue_index.model.chat_templates import ChatTemplate
from forvalue_index.model.template_source import marks_generation, with_generation_marks
from forvalue_index.sources.columns import to_sample

DATED = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
WITH_TOOLS = "{{ strftime_now('%Y') }} {{ tools | tojson }}\n" + CHATML


def rendered(tokenizer, row):
    template = ChatTemplate(tokenizer)
    return template.rendered(template.chat(to_sample(row)))


def test_the_date_is_fixed_in_each_of_several_templates():
    """With several templates it was that of today, so that rows changed every day."""
    tokenizer = tokenizer_for({"default": DATED, "tool_use": WITH_TOOLS})
    assert datetime.datetime.now(tz=datetime.UTC).strftime("%d %b %Y") != "26 Jul 2024"
    assert rendered(tokenizer, conversation("a", "b")).startswith("26 Jul 2024\n<|im_start|>user")
    tools = [{"name": "t"}]
    assert rendered(tokenizer, conversation("a", "b") | {"tools": tools}).startswith(
        '2024 [{"name": "t"}]\n<|im_start|>user'
    )


def test_generation_blocks_become_marks_whatever_white_space_they_control():
    marked = with_generation_marks(
        "a {%- generation -%} b {%- endgeneration %} c{% generation %}d{%endgeneration%}", "<", ">"
    )
    assert marks_generation("{%- generation -%}")
    assert not marks_generation(CHATML)
    assert marks_generation(GENERATION)
    tokenizer = tokenizer_for(marked)
    chat = ChatTemplate(tokenizer).chat(to_sample(conversation("x", "y")))
    assert ChatTemplate(tokenizer).rendered(chat) == "a<b> c<d>"
