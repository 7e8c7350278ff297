import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from forvalue_index.store.rows import StoredRows, joined, quantized, row_checksums

DTYPES = ["float32", "bfloat16", "int8"]
ROWS = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))


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


def slow_checksum(row, place):
    """The definition, in whole numbers of any size."""
    content = row.contiguous().view(torch.uint8).numpy().tobytes()
    content += bytes(-len(content) % 8)
    words = np.frombuffer(content, "<u8").tolist()
    total = (sum(words) + int(place)) % 2**64
    return ((total % 2**32) + (total >> 32)) % (2**32 - 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [1, 3, 16, 17])
def test_checksums_are_what_they_are_defined_to_be(dtype, width):
    rows = torch.randn(50, width, generator=torch.Generator().manual_seed(width)).to(dtype)
    places = np.arange(50) * 10**9
    found = row_checksums(rows, places)
    assert found.dtype == np.int32
    expected = [slow_checksum(row, place) for row, place in zip(rows, places, strict=True)]
    assert [value % 2**32 for value in found.tolist()] == expected
