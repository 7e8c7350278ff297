import math

import numpy as np
import pytest
from test_sketch import SHAPES

from forvalue_index.gradients.hash_tables import (
    LEAST_SPLIT_SHARE,
    Layout,
    ModelProfile,
    draw_tables,
    geometry_tables,
    n_directions,
    part_widths,
    row_layout,
    tables_digest,
)
from forvalue_index.gradients.sketch_error import ErrorScale, SketchError

ALL = ("raw", "centered", "fisher", "kfac")


def profile(vocab=100, hidden=16, *, share=0.6):
    random = np.random.default_rng(9)
    direction = random.standard_normal(hidden)
    return ModelProfile(random.permutation(vocab), direction / np.linalg.norm(direction), share)


def tables_of(*geometries, dim=32, seed=7, known=None):
    layouts = {
        g: row_layout(g, dim=dim, vocab_size=100, hidden_size=16, profile=known) for g in geometries
    }
    return draw_tables(100, 16, dim=dim, seed=seed, profile=known, layouts=layouts)


@pytest.mark.parametrize(("vocab", "hidden", "dim"), SHAPES)
def test_tables_are_balanced_hashes_with_random_signs(vocab, hidden, dim):
    tables = draw_tables(vocab, hidden, dim=dim, seed=5)
    assert sorted(tables["vocab_order"]) == list(range(vocab))
    assert tables["hidden_bucket"].shape == (hidden,)
    fullest = np.bincount(tables["hidden_bucket"], minlength=dim).max()
    assert fullest == math.ceil(hidden / dim)
    for name, size in (("vocab_sign", vocab), ("hidden_sign", hidden)):
        assert tables[name].shape == (size,)
        assert set(tables[name].tolist()) == {-1, 1}


def test_tables_of_a_seed_are_known():
    """An index stores its tables; should NumPy ever draw others, old indexes stay as they are."""
    tables = draw_tables(100, 16, dim=32, seed=7)
    assert tables_digest(tables) == "6154d33dfcb924c880aadd3f5082cc2c"
    assert tables_digest(draw_tables(100, 16, dim=32, seed=7)) == tables_digest(tables)


def test_the_digest_notices_every_change():
    tables = draw_tables(20, 6, dim=16, seed=0)
    digests = {tables_digest(tables)}
    for name, table in tables.items():
        for change in (table[::-1], -table, np.where(np.arange(len(table)) == 3, table + 1, table)):
            digests.add(tables_digest({**tables, name: change}))
    digests.add(tables_digest(draw_tables(20, 6, dim=16, seed=1)))
    digests.add(tables_digest(draw_tables(20, 6, dim=17, seed=0)))
    swapped = {**tables, "vocab_order": tables["vocab_sign"], "vocab_sign": tables["vocab_order"]}
    digests.add(tables_digest(swapped))
    assert len(digests) == 1 + 3 * len(tables) + 3


def test_the_digest_is_that_of_the_numbers_not_of_their_storage():
    tables = draw_tables(20, 6, dim=16, seed=0)
    stored = {name: np.repeat(t, 2)[::2] for name, t in reversed(tables.items())}
    assert tables_digest(stored) == tables_digest(tables)


def test_tables_with_a_profile_are_known():
    known = profile()
    tables = draw_tables(100, 16, dim=32, seed=7, profile=known)
    assert tables_digest(tables) == "cab67d7de73cea74b82f738cbe6cc794"
    assert tables_digest(tables_of("raw", known=known)) == tables_digest(tables)


def test_tables_of_all_geometries_are_known():
    assert tables_digest(tables_of(*ALL)) == "decc03ef5d60bdcf1bbb22cf43182da2"


@pytest.mark.parametrize("known", [None, profile(), profile(share=0.2)])
def test_a_second_geometry_leaves_the_tables_of_the_first_as_they_are(known):
    """Indexes of the first versions have the raw geometry alone, under plain names."""
    alone, both = tables_of("raw", known=known), tables_of("raw", "kfac", known=known)
    assert alone.keys() < both.keys()
    assert all(np.array_equal(alone[name], both[name]) for name in alone)
    assert all(name.startswith("kfac.") for name in both.keys() - alone.keys())


def test_geometries_share_the_order_of_the_vocabulary_and_no_hashes():
    tables = tables_of(*ALL)
    parts = [geometry_tables(tables, g) for g in ALL]
    assert all(part["vocab_order"] is tables["vocab_order"] for part in parts)
    for name in ("vocab_sign", "hidden_sign"):
        assert len({part[name].tobytes() for part in parts}) == len(ALL)


@pytest.mark.parametrize("geometry", ALL)
def test_the_tables_of_a_geometry_have_plain_names_and_nothing_of_others(geometry):
    tables = tables_of(*ALL, known=profile())
    mine = geometry_tables(tables, geometry)
    assert not any("." in name for name in mine)
    names = {"vocab_order", "vocab_sign", "hidden_sign"}
    split = {"split_dim", "split_sign", "split_shift"}
    expected = {
        "raw": {"hidden_bucket", "directions", *split},
        "centered": {"n_directions", "hidden_bucket"},
    }
    assert mine.keys() == names | expected.get(geometry, {"n_directions", *split})
    assert n_directions(tables, geometry) == (2 if geometry in ("fisher", "kfac") else 0)


def test_the_direction_of_a_model_is_one_row_of_length_1():
    tables = dict(tables_of("raw", known=profile()))
    tables["direction"] = 3 * tables["direction"]
    found = geometry_tables(tables, "raw")["directions"]
    assert found.shape == (1, 16)
    np.testing.assert_allclose(found[0], profile().direction, rtol=1e-12)


def test_directions_of_a_calibration_are_taken_over():
    directions = np.eye(2, 16)
    found = geometry_tables(tables_of("fisher"), "fisher", directions)
    assert found["directions"] is directions


@pytest.mark.parametrize(
    ("geometry", "dim", "hidden", "known", "expected"),
    [
        ("raw", 32, 16, None, (0, 0)),
        ("raw", 32, 16, profile(share=LEAST_SPLIT_SHARE), (1, 16)),
        ("raw", 33, 16, profile(), (1, 16)),
        ("raw", 32, 16, profile(share=0.39), (0, 0)),
        ("centered", 32, 16, profile(), (0, 0)),
        ("kfac", 32, 16, profile(), (2, 16)),
        ("kfac", 500, 16, None, (5, 100)),
        ("fisher", 33, 16, profile(), (2, 16)),
        ("fisher", 32, 1, None, (1, 32)),
        ("fisher", 500, 16, None, (5, 100)),
    ],
)
def test_floats_go_where_they_measure_best(geometry, dim, hidden, known, expected):
    assert row_layout(
        geometry, dim=dim, vocab_size=100, hidden_size=hidden, profile=known
    ) == Layout(*expected)


@pytest.mark.parametrize(
    ("geometry", "dim", "expected"),
    [
        ("raw", 32, (32,)),
        ("centered", 32, (32,)),
        ("kfac", 33, (32,)),
        ("fisher", 32, (32,)),
        ("fisher", 33, (32,)),
        ("fisher", 350, (348,)),
        ("fisher", 1599, (1590,)),
        ("fisher", 1600, ()),
        ("raw", 1600, ()),
    ],
)
def test_the_widths_of_parts_are_those_that_are_sketched(geometry, dim, expected):
    """What the division by directions leaves is empty: 2 x 16, 3 x 116 and 15 x 106 floats."""
    drawn = tables_of(*ALL, dim=dim)
    count = n_directions(drawn, geometry)
    directions = np.eye(count, 16) if count else None
    assert part_widths(geometry_tables(drawn, geometry, directions), dim) == expected


def test_standard_errors_by_hand():
    """Parts of 1 and 2 floats: 2^2 * 3^2 / 1 + (3^2 + 4^2) * (1^2 + 0^2) / 2 = 48.5."""
    query, rows = np.array([2, 3, 4], np.float32), np.array([[3, 1, 0], [0, 0, 0]], np.float32)
    found = SketchError((1, 2)).standard_errors(query, rows)
    np.testing.assert_allclose(found, [math.sqrt(48.5), 0], rtol=1e-6)
    assert found.dtype == np.float32
    doubled = SketchError((1, 2), ErrorScale(2.0)).standard_errors(query, rows)
    np.testing.assert_allclose(doubled, 2 * found, rtol=1e-6)
    # The inner product is 2 * 3 + 3 * 1 = 9, of which a third is 3.
    with_score = SketchError((1, 2), ErrorScale(2.0, 1 / 3)).standard_errors(query, rows)
    np.testing.assert_allclose(with_score, [math.sqrt(4 * 48.5 + 9), 0], rtol=1e-6)
    of_squares = SketchError((1, 2), ErrorScale(2.0, 1 / 3)).of_squares(
        query, [np.array([9.0, 0]), np.array([1.0, 0])], np.array([9.0, 0])
    )
    np.testing.assert_allclose(of_squares, with_score, rtol=1e-6)
    assert SketchError((), ErrorScale(2.0, 1.0)).standard_errors(query, rows).tolist() == [0, 0]
