"""Hash tables of sketches: drawn once when an index is made, stored with it, never drawn again.

Hashing is balanced: an order of the vocabulary, then place modulo the number of buckets, with
random signs. That turns the count sketch of e into a reshape and a sum once the rows of the head
stand in that order. The order is random within blocks, and the blocks go from the tokens that the
model predicts most to those it predicts least: the tokens that carry most of the error then never
share a bucket. All geometries of an index share the order; each has hashes of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from forvalue_index.settings import FISHER, KFAC, RAW

HashTables = Mapping[str, NDArray[Any]]

VOCAB_ORDER = "vocab_order"
SCALED_DIRECTIONS = 2
# Where less of the hidden states' energy lies along one direction, splitting it off loses.
LEAST_SPLIT_SHARE = 0.4


class ModelProfile(NamedTuple):
    """What a model does on average, for a better sketch; any values leave it unbiased.

    `token_ranking` [vocab] has the tokens predicted most first, `direction` [hidden] is a unit
    vector, `share` the part of the hidden states' energy along it.
    """

    token_ranking: NDArray[np.int64]
    direction: NDArray[np.float64]
    share: float


class Layout(NamedTuple):
    """How the floats of a row are spent: a count sketch of e for each of some directions of h.

    `buckets` floats for each of `directions`; what is left goes to a TensorSketch of the rest.
    """

    directions: int
    buckets: int

    def rest(self, dim: int) -> int:
        """Floats of the TensorSketch; a remainder of the division is left empty."""
        left = dim - self.directions * self.buckets
        return left if left >= max(1, self.directions) else 0


def row_layout(
    geometry: str,
    *,
    dim: int,
    vocab_size: int,
    hidden_size: int,
    profile: ModelProfile | None,
) -> Layout:
    """The layout that measures best for a geometry, see README.

    In the raw geometry, half of the floats go to one direction where that has enough energy. Errors
    scaled by their Fisher information are close to sparse: a count sketch of them along two
    directions keeps more than a TensorSketch of everything. Where hidden states are centred, no
    direction stands out.
    """
    if geometry == RAW and profile is not None and profile.share >= LEAST_SPLIT_SHARE:
        return Layout(1, dim // 2)
    if geometry in (FISHER, KFAC):
        # More buckets than tokens would stay empty.
        directions = min(max(SCALED_DIRECTIONS, dim // vocab_size), hidden_size)
        return Layout(directions, dim // directions)
    return Layout(0, 0)


def draw_tables(
    vocab_size: int,
    hidden_size: int,
    *,
    dim: int,
    seed: int,
    profile: ModelProfile | None = None,
    layouts: Mapping[str, Layout] | None = None,
) -> HashTables:
    """The hash tables of a new index, by default for the raw geometry alone.

    Without a profile the order of the vocabulary is random throughout, and nothing is split off.
    The directions of geometries other than raw come from a calibration.
    """
    if layouts is None:
        raw = row_layout(
            RAW, dim=dim, vocab_size=vocab_size, hidden_size=hidden_size, profile=profile
        )
        layouts = {RAW: raw}
    random = np.random.default_rng(seed)
    tables: dict[str, NDArray[Any]] = {
        VOCAB_ORDER: _vocab_order(random, vocab_size, profile, block=dim // 4)
    }
    for number, (geometry, layout) in enumerate(layouts.items()):
        if number:
            random = np.random.default_rng([seed, number])
        hashes = _hashes(random, vocab_size, hidden_size, dim=dim, layout=layout)
        if geometry != RAW:
            hashes["n_directions"] = np.array([layout.directions])
        elif layout.directions and profile is not None:
            hashes["direction"] = profile.direction
        tables |= {_name(geometry, name): table for name, table in hashes.items()}
    return tables


def geometry_tables(
    tables: HashTables, geometry: str, directions: NDArray[np.float64] | None = None
) -> HashTables:
    """The tables of one geometry, under plain names, with its `directions` [direction, hidden]."""
    prefix = _name(geometry, "")
    own_tables = {
        name.removeprefix(prefix): table
        for name, table in tables.items()
        if name.startswith(prefix) and "." not in name.removeprefix(prefix)
    }
    own_tables[VOCAB_ORDER] = tables[VOCAB_ORDER]
    if "direction" in own_tables:
        direction = own_tables.pop("direction")
        own_tables["directions"] = direction[None] / np.linalg.norm(direction)
    if directions is not None:
        own_tables["directions"] = directions
    return own_tables


def n_directions(tables: HashTables, geometry: str) -> int:
    """How many directions a calibration has to find for a geometry."""
    count = geometry_tables(tables, geometry).get("n_directions")
    return 0 if count is None else int(count[0])


def tables_digest(tables: HashTables) -> str:
    """What the fingerprint says of the tables: BLAKE2b over names and little-endian contents."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tables):
        digest.update(name.encode())
        table = np.ascontiguousarray(tables[name])
        digest.update(table.astype(table.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()


def part_widths(tables: HashTables, dim: int) -> tuple[int, ...]:
    """Floats of each independently sketched part of a row, in order; none where rows are exact.

    `tables` are those of one geometry.
    """
    if len(tables[VOCAB_ORDER]) * len(tables["hidden_sign"]) <= dim:
        return ()
    layout = layout_in(tables)
    split = layout.directions * layout.buckets
    return tuple(width for width in (split, layout.rest(dim)) if width)


def layout_in(tables: HashTables) -> Layout:
    """The layout that the tables of one geometry were drawn for."""
    if "split_dim" not in tables:
        return Layout(0, 0)
    # An index that is not calibrated yet knows how many directions there will be.
    known = tables.get("directions")
    count = int(tables["n_directions"][0]) if known is None else len(known)
    return Layout(count, int(tables["split_dim"][0]))


def _hashes(
    random: np.random.Generator, vocab_size: int, hidden_size: int, *, dim: int, layout: Layout
) -> dict[str, NDArray[Any]]:
    rest = layout.rest(dim)
    hashes: dict[str, NDArray[Any]] = {"vocab_sign": random.choice(np.array([-1, 1]), vocab_size)}
    if rest:
        slots = random.permutation(max(hidden_size, rest))[:hidden_size]
        hashes["hidden_bucket"] = slots % rest
    hashes["hidden_sign"] = random.choice(np.array([-1, 1]), hidden_size)
    if layout.directions:
        buckets = layout.buckets
        hashes |= {
            "split_dim": np.array([buckets]),
            "split_sign": random.choice(np.array([-1, 1]), vocab_size),
            "split_shift": random.integers(buckets, size=-(-vocab_size // buckets)),
        }
    return hashes


def _vocab_order(
    random: np.random.Generator, vocab_size: int, profile: ModelProfile | None, *, block: int
) -> NDArray[np.int64]:
    if profile is None:
        return random.permutation(vocab_size)
    ranked = profile.token_ranking
    blocks = [ranked[start : start + block] for start in range(0, vocab_size, block)]
    return np.concatenate([random.permutation(tokens) for tokens in blocks])


def _name(geometry: str, name: str) -> str:
    # Indexes of the first versions have the raw geometry alone, under plain names.
    return name if geometry == RAW else f"{geometry}.{name}"
