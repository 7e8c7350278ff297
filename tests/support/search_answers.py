"""The answers of an index of three segments."""

import numpy as np
from stored_samples import create, fill, random_rows

from forvalue_index.search.building import RowKind, search_index

RAW, COSINE = RowKind("raw"), RowKind("raw", normalize=True)


def in_three_segments(path, row_dtype):
    """A storage of 300 samples, of which some are removed."""
    made = create(path, row_dtype=row_dtype)
    for number in range(3):
        fill(made, 100, prefix=f"p{number}", seed=number)
    made.catalog.remove([0, 5, 9, 250])
    return made


QUERIES = random_rows(4, seed=9).numpy()


def answers(storage, rows=RAW, kind=None, k=20, allowed=None):
    with storage.view() as view:
        index = search_index(view, rows, kind=kind)
        return index, [index.search(sign * QUERIES, k, allowed) for sign in (1, -1)]


def assert_same(found, expected):
    for end, other in zip(found, expected, strict=True):
        for (ids, scores), (true_ids, true_scores) in zip(end, other, strict=True):
            assert ids.tolist() == true_ids.tolist()
            np.testing.assert_allclose(scores, true_scores, rtol=1e-5, atol=1e-5)
