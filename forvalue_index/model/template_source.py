"""Chat templates as programs in Jinja: changed so that they render the same every day, or say more.

Everything is written in Jinja itself, as transformers hands no function of ours to a template.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

# Some chat templates print the date of today; a row must not depend on it.
TEMPLATE_DATE = datetime(2024, 7, 26, tzinfo=UTC)
DATE_DIRECTIVES = ("-d", "-m", "-H", "-I", "-M", *"aAbBcdFHIjmMpSTUwWxXyYZ")
GENERATION = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


def with_fixed_date(source: str) -> str:
    """A template, where it asks for the date, with a `strftime_now` that says TEMPLATE_DATE.

    The empty expression after it keeps a line break with which the template may start.
    """
    if "strftime_now" not in source:
        return source
    replaced = "".join(
        f"|replace('%{d}', '{TEMPLATE_DATE.strftime(f'%{d}')}')" for d in DATE_DIRECTIVES
    )
    macro = (
        f"{{% macro strftime_now(format) %}}{{{{ format{replaced} }}}}{{% endmacro %}}{{{{ '' }}}}"
    )
    return macro + source


def marks_generation(source: str) -> bool:
    """Whether a template says itself what the assistant generates."""
    return GENERATION.search(source) is not None


def with_generation_marks(source: str, opening: str, closing: str) -> str:
    """A template that writes marks where what the assistant generates begins and ends.

    transformers tells it by tokens, and takes all that follows for generated where the first
    token is (huggingface/transformers#47325). A block stands for the block, as white space around
    blocks and around expressions is treated in other ways.
    """

    def marked(block: re.Match[str]) -> str:
        before, end, after = block.groups()
        mark = closing if end else opening
        return f"{{%{before} if true %}}{{{{ '{mark}' }}}}{{% endif {after}%}}"

    return GENERATION.sub(marked, source)
