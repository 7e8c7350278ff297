"""Chat templates that do not come with the tokenizer of a model: of an adapter, or in a file."""

from __future__ import annotations

import json
from os import PathLike
from pathlib import Path
from typing import Any

from jinja2 import TemplateSyntaxError

from forvalue_index.exceptions import UsageError
from forvalue_index.model.huggingface.adapters import adapter_file

TEMPLATE, TOKENIZER = "chat_template.jinja", "tokenizer_config.json"


def read_template(path: str | PathLike[str]) -> str:
    """The chat template in a file. Raises UsageError where there is none."""
    file = Path(path).expanduser()
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--chat-template {path} cannot be read: {error}; name a file with a template in Jinja"
        ) from error
    if not text.strip():
        raise UsageError(f"--chat-template {path} is empty; name a file with a template in Jinja")
    return text


def adapter_template(adapter: str) -> str | None:
    """The chat template that an adapter was trained with, where it came with one.

    Raises ModelError where there is no such adapter.
    """
    if (file := adapter_file(adapter, TEMPLATE)) is not None:
        return file.read_text(encoding="utf-8")
    if (file := adapter_file(adapter, TOKENIZER)) is None:
        return None
    return _default(json.loads(file.read_text(encoding="utf-8")).get("chat_template"))


def refuse_broken(tokenizer: Any) -> None:
    """Raise UsageError where the chat template of a tokenizer is no template."""
    try:
        tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    except TemplateSyntaxError as error:
        raise UsageError(
            f"the chat template is not Jinja (line {error.lineno}: {error.message}); mend it"
        ) from error
    except Exception:  # A conversation that a template refuses is a matter of the conversation.
        return


def _default(template: Any) -> str | None:
    """The template for conversations, of several with names the one called default."""
    if isinstance(template, list):
        named = {one.get("name"): one.get("template") for one in template if isinstance(one, dict)}
        template = named.get("default")
    return template if isinstance(template, str) and template else None
