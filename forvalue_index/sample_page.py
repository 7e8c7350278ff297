"""A sample as one HTML page: what stands in the catalog, and its messages with their images."""

from __future__ import annotations

from typing import Any

from forvalue_index.contracts import OpenPixels
from forvalue_index.pages import escaped, image_html, page
from forvalue_index.records import Message, StoredSample

FACTS = ("n_tokens", "n_label_tokens", "loss", "label_error_mass", "norm")


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


def _message(message: Message, open_image: OpenPixels) -> str:
    parts = "".join(
        escaped(part) if isinstance(part, str) else image_html(part, open_image)
        for part in message.parts
    )
    return f'<h2>{escaped(message.role)}</h2><div class="text" dir="auto">{parts}</div>'


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
