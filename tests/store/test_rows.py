import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forvalue_index.store.rows import StoredRows, early_checksums, joined, quantized, row_checksums

DTYPES = ["float32", "bfloat16", "int8"]
ROWS = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
# Those of segments that exist.
GOLDEN = [-8796730615685476882, -5368808868416234595]


def test_int8_by_hand():
    rows = torch.tensor([[1.27, -0.64, 0.0, 0.014], [0.0, 0.0, 0.0, 0.0], [-5.0, 2.0, 1.0, 0.0]])
    stored = quantized(rows, "int8")
    assert stored.values.tolist() == [[127, -64, 0, 1], [0, 0, 0, 0], [-127, 51, 25, 0]]
    assert stored.scales == pytest.approx(torch.tensor([0.01, 0.0, 5 / 127]))
    assert stored.floats()[0].tolist() == pytest.approx([1.27, -0.64, 0.0, 0.01])
    assert stored.floats()[1].tolist() == [0.0] * 4


@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-(2.0**126), 2.0**126, width=32),
    )
)
def test_an_int8_is_off_by_half_a_step_at_most(rows):
    rows = torch.from_numpy(rows)
    stored = quantized(rows, "int8")
    largest = rows.abs().amax(dim=1, keepdim=True).double()
    # A scale below the smallest normal float is itself rounded.
    allowed = largest / 254 * (1 + 1e-5) + 127 * 2.0**-149
    assert ((stored.floats().double() - rows.double()).abs() <= allowed).all()
    assert stored.values.min() >= -127  # so that the negated row is there, too


@pytest.mark.parametrize("dtype", DTYPES)
def test_what_is_packed_again_stays_as_it_is(dtype):
    stored = quantized(ROWS, dtype)
    again = quantized(stored.floats(), dtype)
    assert again.values.equal(stored.values)
    assert again.floats() == pytest.approx(stored.floats(), rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_does_not_depend_on_those_beside_it(dtype):
    stored = quantized(ROWS, dtype)
    parts = [quantized(ROWS[i : i + 1], dtype) for i in range(len(ROWS))]
    assert joined(parts).floats().equal(stored.floats())
    places = np.arange(len(ROWS))
    np.testing.assert_array_equal(joined(parts).checksums(places), stored.checksums(places))


@pytest.mark.parametrize("dtype", DTYPES)
def test_some_rows(dtype):
    stored = quantized(ROWS, dtype)
    chosen = torch.tensor([3, 1, 40])
    assert stored[chosen].floats().equal(stored.floats()[chosen])
    assert stored[4:7].floats().equal(stored.floats()[4:7])
    assert len(stored[4:7]) == 3


@pytest.mark.parametrize("dtype", DTYPES)
def test_floats_lie_where_they_are_wanted(dtype):
    stored, space = quantized(ROWS, dtype), torch.full((60, 16), 7.0)
    rows = stored.floats(space)
    assert rows.data_ptr() == space.data_ptr()
    assert rows.equal(stored.floats())
    assert (space[50:] == 7).all()


def test_floats_are_never_the_stored_rows_themselves():
    stored = quantized(ROWS.clone(), "float32")
    stored.floats().zero_()
    assert stored.values.equal(ROWS)


def test_another_scale_has_another_checksum():
    stored, places = quantized(ROWS, "int8"), np.arange(len(ROWS))
    other = StoredRows(stored.values, stored.scales * 2)
    assert (other.checksums(places) != stored.checksums(places)).all()


def mixed(number):
    """SplitMix64."""
    number = number * 0x9E3779B97F4A7C15 % 2**64
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % 2**64
    return number ^ (number >> 31)


def words_of(row, multiple):
    content = row.contiguous().view(torch.uint8).numpy().tobytes()
    content += bytes(-len(content) % (8 * multiple))
    return np.frombuffer(content, "<u8").tolist()


def slow_checksum(row, place):
    """The definition, in whole numbers of any size."""
    words = words_of(row, 32)
    lines = [words[i : i + 32] for i in range(0, len(words), 32)]
    sums = [sum(line) % 2**64 for line in lines]
    sums += [sum(column) % 2**64 for column in zip(*lines, strict=True)]
    numbers = [int(place), *(s % 2**32 for s in sums), *(s >> 32 for s in sums)]
    return sum(n * mixed(i) for i, n in enumerate(numbers, 1)) % 2**64


def slow_early_checksum(row, place):
    total = (sum(words_of(row, 1)) + int(place)) % 2**64
    return ((total % 2**32) + (total >> 32)) % (2**32 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 17, 257])
def test_checksums_are_what_they_are_defined_to_be(dtype, width):
    rows = torch.randn(50, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    places = np.arange(50) * 10**9
    for found, slow, numbers in (
        (row_checksums(rows, places), slow_checksum, np.uint64),
        (early_checksums(rows, places), slow_early_checksum, np.uint32),
    ):
        expected = [slow(row, place) for row, place in zip(rows, places, strict=True)]
        assert found.view(numbers).tolist() == expected


def test_checksums_of_today_are_those_of_tomorrow():
    rows = torch.arange(40, dtype=torch.float32).reshape(2, 20)
    assert row_checksums(rows, np.arange(2)).tolist() == GOLDEN


@given(st.data())
def test_whatever_changes_in_a_row_its_checksum_does(data):
    """Sums alone saw no words that change places, nor 32 zero bits that become ones."""
    words = np.array(data.draw(st.lists(st.integers(0, 2**64 - 1), min_size=2, max_size=80)), "<u8")
    other = words.copy()
    first, second = data.draw(st.tuples(*2 * [st.integers(0, len(words) - 1)]))
    change = data.draw(st.sampled_from(["swap", "flip", "reverse", "rotate", "top bits", "ones"]))
    if change == "swap":
        other[[first, second]] = other[[second, first]]
    elif change == "flip":
        other[first] ^= np.uint64(1 << data.draw(st.integers(0, 63)))
    elif change == "reverse":
        other = other[::-1].copy()
    elif change == "rotate":
        other = np.roll(other, 1)
    elif change == "top bits":
        other[[first, second]] ^= np.uint64(1 << 63)
    else:
        other[first] ^= np.uint64(2**32 - 1)
    rows = torch.from_numpy(np.stack([words, other]).view(np.float32))
    one, two = row_checksums(rows, np.zeros(2, np.int64))
    assert (one == two) == np.array_equal(words, other)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_swap_of_two_words_is_seen(dtype):
    stored = quantized(torch.randn(1, 1024, generator=torch.Generator().manual_seed(0)), dtype)
    words = stored.values.contiguous().view(torch.uint8).view(torch.int64)[0]
    pairs = torch.triu_indices(len(words), len(words), 1).T[::7]
    swapped = words.repeat(len(pairs), 1)
    numbers = torch.arange(len(pairs))
    swapped[numbers, pairs[:, 0]], swapped[numbers, pairs[:, 1]] = (
        words[pairs[:, 1]],
        words[pairs[:, 0]],
    )
    places = np.zeros(len(pairs), np.int64)
    before = row_checksums(words[None], places[:1])
    assert (row_checksums(swapped, places) != before).all()
