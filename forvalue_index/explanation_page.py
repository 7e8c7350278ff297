"""An explanation as one HTML page that needs nothing else: tokens on a colour for what they add."""

from __future__ import annotations

from forvalue_index.contracts import OpenPixels
from forvalue_index.pages import escaped, image_html, page
from forvalue_index.results import ExplainedSample, Explanation, TokenTerm

GREEN, RED = "46, 160, 67", "218, 54, 51"


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
