"""HTML pages that need nothing else, of a sample and of an explanation."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path
from typing import Any

from forvalue_index.exceptions import BadSampleError, ForValueError, UsageError
from forvalue_index.sources.images import OpenPixels, data_url
from forvalue_index.sources.sample import Image, Message
from forvalue_index.store.durable import replacing
from forvalue_index.store.records import StoredSample
from forvalue_index.valuation.results import ExplainedSample, Explanation, TokenTerm

SUFFIXES = (".html", ".htm")
FACTS = ("n_tokens", "n_label_tokens", "loss", "label_error_mass", "norm")
GREEN, RED = "46, 160, 67", "218, 54, 51"
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
    try:
        with replacing(path) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise PageError(f"{path} cannot be written ({error.strerror}); write elsewhere") from error


def explanation_page(explanation: Explanation, open_image: OpenPixels) -> str:
    """The page as text; `open_image` gives the images in it."""
    key, scoring = escaped(explanation.training.sample.key), explanation.scoring
    kind = f"{scoring.geometry} geometry" + (", cosine" if scoring.normalize else "")
    parts = [
        f"<h1><bdi>{key}</bdi></h1>",
        f"<p>Exact score <strong>{explanation.score:+.6g}</strong> ({kind}) for "
        f"{explanation.validation_samples:,} validation samples, "
        f"{explanation.validation_label_tokens:,} label tokens. Green tokens help, red ones hurt; "
        "terms sum to the score. Pale tokens are context.</p>",
        _text(explanation.training, open_image),
        _strongest(explanation.training),
    ]
    for number, one in enumerate(explanation.validation):
        name = f"Validation sample {number}, <bdi>{escaped(one.sample.key)}</bdi>"
        parts.append(f"<h2>{name}: {one.score:+.6g}</h2>{_text(one, open_image)}")
    return page(explanation.training.sample.key, "\n".join(parts))


def sample_page(stored: StoredSample, open_image: OpenPixels) -> str:
    """The page as text; `open_image` gives the images in it."""
    sample = stored.sample
    facts: dict[str, Any] = {"source": f"{sample.source}, row {sample.position}"}
    facts |= {name.replace("_", " "): getattr(stored.statistics, name) for name in FACTS}
    facts |= sample.metadata
    rows = "".join(
        f"<tr><th>{escaped(str(name))}</th><td>{escaped(_shown(value))}</td></tr>"
        for name, value in facts.items()
    )
    state = " (removed)" if stored.removed else ""
    body = [f"<h1><bdi>{escaped(sample.key)}</bdi>{state}</h1>", f"<table>{rows}</table>"]
    body += [_message(message, open_image) for message in sample.messages]
    return page(sample.key, "\n".join(body))


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


def _text(explained: ExplainedSample, open_image: OpenPixels) -> str:
    tokens = "".join(
        _token(token, explained.largest)
        if token.image is None
        else image_html(explained.sample.images[token.image], open_image)
        for token in explained.tokens
    )
    return f'<div class="text" dir="auto">{tokens}</div>'


def _token(token: TokenTerm, largest: float) -> str:
    text = escaped(token.text)
    if token.loss is None:
        return f"<i>{text}</i>" if text else ""
    colour = GREEN if token.term > 0 else RED
    alpha = abs(token.term) / largest if largest else 0.0
    title = f"{token.term:+.6g}, loss {token.loss:.3f} nats"
    return f'<b style="background: rgba({colour}, {alpha:.3f})" title="{title}">{text}</b>'


def _strongest(explained: ExplainedSample) -> str:
    rows = "".join(
        f'<tr><td class="n">{t.position}</td><td><code>{escaped(repr(t.text))}</code></td>'
        f'<td class="n">{t.term:+.6g}</td><td class="n">{t.loss or 0.0:.3f}</td></tr>'
        for t in explained.strongest(20)
    )
    head = "<tr><th>position</th><th>token</th><th>term</th><th>loss</th></tr>"
    return f"<h2>Strongest tokens</h2><table>{head}{rows}</table>"


def _message(message: Message, open_image: OpenPixels) -> str:
    parts = "".join(
        escaped(part) if isinstance(part, str) else image_html(part, open_image)
        for part in message.parts
    )
    return f'<h2>{escaped(message.role)}</h2><div class="text" dir="auto">{parts}</div>'


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
