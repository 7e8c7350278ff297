"""Text that stands on a terminal, and holds no commands to it."""

from __future__ import annotations

import json
import re
from typing import Any

# All control characters but tab and line break, and what stands for bytes that are no UTF-8.
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
# What JSON need not escape: control characters, and names of files that are no UTF-8.
UNESCAPED = re.compile("[\x7f-\x9f\ud800-\udfff]")


def without_control(text: str) -> str:
    """Text without commands to the terminal."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def json_text(document: Any) -> str:
    """A document as JSON, readable, with control characters escaped."""
    text = json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False)
    return UNESCAPED.sub(lambda match: f"\\u{ord(match.group()):04x}", text)


def counted(count: int, noun: str) -> str:
    """A number of things, as `1 sample` or `2,000 samples`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
