"""HTML pages that need nothing else: how they are written, and what all of them share."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

from forvalue_index.contracts import OpenPixels
from forvalue_index.exceptions import BadSampleError, ForValueError, UsageError
from forvalue_index.images import data_url
from forvalue_index.records import Image

SUFFIXES = (".html", ".htm")
STYLE = """
:root { color-scheme: light dark; }
body { font: 16px/1.6 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
.text { white-space: pre-wrap; overflow-wrap: anywhere; font-family: ui-monospace, monospace;
  border: 1px solid #8888; border-radius: .4rem; padding: .8rem; }
.text i { font-style: normal; opacity: .55; }
.text b { font-weight: normal; border-radius: .2rem; cursor: help; }
.text img { display: block; max-width: 100%; margin: .4rem 0; }
table { border-collapse: collapse; } td, th { padding: .1rem .8rem .1rem 0; text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
h2 { font-size: 1.1rem; margin: 1.6rem 0 .4rem; }
"""
# Control characters but tab and line break, as Unicode's pictures of them.
PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"} | {
    0x7F: "\N{SYMBOL FOR DELETE}",
    **dict.fromkeys(range(0x80, 0xA0), "\N{REPLACEMENT CHARACTER}"),
}


class PageError(ForValueError):
    """A page cannot be written."""


def refuse_page(path: Path) -> None:
    """Raise UsageError where no page can be written under this name."""
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(f"{path} ends in {path.suffix or 'no suffix'}; use .html")
    if not path.parent.is_dir():
        raise UsageError(f"{path.parent} is not a directory; create it, or write elsewhere")
    if not os.access(path.parent, os.W_OK):
        raise PageError(f"{path} cannot be written: the directory is read-only; write elsewhere")


def write_page(path: Path, text: str) -> None:
    """Write a page. Raises as `refuse_page`, and PageError where the disk has no room for it."""
    refuse_page(path)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise PageError(f"{path} cannot be written ({error.strerror}); write elsewhere") from error
    finally:
        partial.unlink(missing_ok=True)


def page(title: str, body: str) -> str:
    """A page as text; `title` is plain, `body` HTML."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>{body}</body></html>\n"
    )


def image_html(image: Image, open_image: OpenPixels) -> str:
    """An image that is part of its page, or what is said where it is lost."""
    try:
        pixels = open_image(image)
    except BadSampleError as error:
        return f"<i>[{escaped(str(error))}]</i>"
    name = escaped(str(image))
    return f'<img src="{data_url(pixels)}" width="{int(image.width)}" alt="{name}" title="{name}">'


def escaped(text: str) -> str:
    """Text of a data set, which may hold neither markup nor control characters."""
    return escape(text.translate(PICTURES))
