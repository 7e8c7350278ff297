import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forvalue_index.devices import default_device, gpu_room, gpus, shared_out

A, B, C = (torch.device("cuda", number) for number in range(3))


def test_without_a_gpu_there_is_the_cpu():
    if gpus():
        pytest.skip("there is an NVIDIA GPU")
    assert gpu_room() == {}
    assert default_device() == torch.device("cpu")


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_the_room_is_what_is_free_but_for_a_reserve():
    assert default_device() == gpus()[0]
    free, _ = torch.cuda.mem_get_info(gpus()[0])
    held = torch.empty(2**28, dtype=torch.uint8, device=gpus()[0])
    with_held = gpu_room()[gpus()[0]]
    del held
    assert free - 2**33 < with_held < gpu_room()[gpus()[0]] < free


def test_one_device_takes_all_rows():
    assert shared_out(10, 8, {A: 80}) == {A: 10}
    assert shared_out(10, 8, {A: 79}) is None


def test_rows_are_shared_out_by_room():
    assert shared_out(80, 1, {A: 60, B: 40}) == {A: 48, B: 32}
    assert shared_out(80, 1, {A: 60, B: 0, C: 40}) == {A: 48, C: 32}
    assert shared_out(100, 1, {A: 60, B: 40}) == {A: 60, B: 40}


def test_rows_that_fit_on_one_device_are_not_shared_out():
    assert shared_out(10, 1, {A: 60, B: 40}) == {A: 10}
    assert shared_out(50, 1, {A: 40, B: 60}) == {B: 50}


def test_room_that_is_less_than_a_row_is_no_room():
    assert shared_out(4, 10, {A: 19, B: 29}) is None
    assert shared_out(3, 10, {A: 19, B: 29}) == {A: 1, B: 2}
    assert shared_out(9, 10, {A: 90, B: 9, C: 9}) == {A: 9}


def test_without_devices_nothing_fits():
    assert shared_out(1, 1, {}) is None


@given(
    st.integers(1, 1000),
    st.integers(1, 50),
    st.lists(st.integers(0, 5000), min_size=1, max_size=3),
)
def test_all_rows_have_a_place_where_they_fit(n_rows, row_bytes, free):
    room = dict(zip((A, B, C), free, strict=False))
    shares = shared_out(n_rows, row_bytes, room)
    if sum(f // row_bytes for f in free) < n_rows:
        assert shares is None
    else:
        assert sum(shares.values()) == n_rows
        assert all(0 < count * row_bytes <= room[device] for device, count in shares.items())
