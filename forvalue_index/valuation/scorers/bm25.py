"""What simpler methods say of training samples: words in common, and likeness of hidden states.

A value that is worth its price beats both. The home of bm25s.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from forvalue_index.exceptions import evaluation_extra

with evaluation_extra():
    import bm25s

Matrix = NDArray[np.float32]

# Runs of letters and digits, and every other sign that is no space alone: short words and signs
# matter in tasks over text. Lower case, no stop words, no stemming: nothing belongs to a language.
TOKEN = r"(?u)\w+|[^\w\s]"
# Lucene's variant of BM25 with the usual constants.
K1, B = 1.5, 0.75


def bm25_scores(queries: Sequence[str], documents: Sequence[str]) -> Matrix:
    """BM25 of every document for every query, [query, document]; zeros where no word is shared.

    A word that stands twice in a query counts twice.
    """
    scores = np.zeros((len(queries), len(documents)), dtype=np.float32)
    words = _words(documents)
    vocabulary = {word: i for i, word in enumerate(sorted({w for text in words for w in text}))}
    if not vocabulary:
        return scores
    ranker = bm25s.BM25(k1=K1, b=B, method="lucene", backend="numpy")
    known = [[vocabulary[word] for word in text] for text in words]
    ranker.index((known, vocabulary), show_progress=False)
    for row, query in zip(scores, _words(queries), strict=True):
        if ids := ranker.get_tokens_ids(query):
            row[:] = ranker.get_scores_from_ids(ids)
    return scores


def _words(texts: Sequence[str]) -> list[list[str]]:
    if not texts:
        return []  # of which bm25s makes an error
    words: list[list[str]] = bm25s.tokenize(
        list(texts),
        lower=True,
        token_pattern=TOKEN,
        stopwords=[],
        stemmer=None,
        return_ids=False,
        show_progress=False,
    )
    return words
