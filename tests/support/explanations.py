"""Explanations made by hand."""

from forvalue_index.sources.sample import Message, Sample
from forvalue_index.valuation.results import ExplainedSample, Explanation, TokenTerm
from forvalue_index.valuation.scoring import Scoring

NASTY = "<script>alert('x')</script> & \"q\" </b></div><img src=x onerror=y> ]]> <!-- {{ a }} `"


def sample(key="k"):
    return Sample((Message("text", "t"),), own_id=key)


def explained(tokens, key="k"):
    """Tokens as (text, term, loss), the last two None where there is no label."""
    terms = [
        TokenTerm(i, i, text, term or 0.0, loss) for i, (text, term, loss) in enumerate(tokens)
    ]
    return ExplainedSample(sample(key), sum((t.term for t in terms), 0.0), tuple(terms))


def explanation(tokens, key="k", validation=(), **how):
    return Explanation(
        id=1,
        scoring=Scoring(**how),
        training=explained(tokens, key),
        validation_samples=1234,
        validation_label_tokens=56789,
        validation=tuple(validation),
    )
