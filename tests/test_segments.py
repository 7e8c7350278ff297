import hashlib

import pytest
import torch
from safetensors.torch import save_file

import forvalue_index.segments as segments
from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.segments import SegmentStore, write_durably

ROWS = torch.randn(11, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(tmp_path):
    return SegmentStore(tmp_path)


def stored(store, uid, n_rows):
    return torch.cat(list(store.blocks(uid, n_rows)))


def path_of(directory, record):
    return directory / f"{record.uid}.safetensors"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_come_back_as_they_were_written(store, tmp_path, dtype):
    record = store.write(ROWS, dtype=dtype)
    assert record.n_rows == 11
    content = path_of(tmp_path, record).read_bytes()
    assert record.n_bytes == len(content)
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    rows = stored(store, record.uid, 11)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, ROWS.to(dtype).float())


def test_bfloat16_takes_half_the_bytes(store):
    rows = torch.zeros(64, 256)
    large = store.write(rows, dtype=torch.float32).n_bytes
    small = store.write(rows, dtype=torch.bfloat16).n_bytes
    assert large - small == rows.numel() * 2


def test_rows_that_are_not_contiguous_are_written_in_their_order(store):
    record = store.write(ROWS.T, dtype=torch.float32)
    assert torch.equal(stored(store, record.uid, 16), ROWS.T)


@pytest.mark.parametrize("block_rows", [1, 4, 11, 12])
def test_blocks_are_bounded_and_in_order(store, monkeypatch, block_rows):
    monkeypatch.setattr(segments, "BLOCK_ROWS", block_rows)
    record = store.write(ROWS, dtype=torch.float32)
    blocks = list(store.blocks(record.uid, 11))
    assert all(len(b) == block_rows for b in blocks[:-1])
    assert 0 < len(blocks[-1]) <= block_rows
    assert torch.equal(torch.cat(blocks), ROWS)


def test_segments_have_names_of_their_own_and_are_left_alone(store, tmp_path):
    first = store.write(ROWS, dtype=torch.float32)
    content = path_of(tmp_path, first).read_bytes()
    second = store.write(ROWS, dtype=torch.float32)
    assert first.uid != second.uid
    assert path_of(tmp_path, first).read_bytes() == content


def test_nothing_temporary_is_left_behind_and_what_a_crash_left_does_not_matter(store, tmp_path):
    record = store.write(ROWS, dtype=torch.float32)
    assert [p.name for p in tmp_path.iterdir()] == [f"{record.uid}.safetensors"]
    (tmp_path / f"{record.uid}.safetensors.partial").write_bytes(b"half a fi")
    assert torch.equal(stored(store, record.uid, 11), ROWS)


def test_a_file_is_replaced_whole_even_where_an_earlier_write_was_cut_off(tmp_path):
    path = tmp_path / "index.json"
    (tmp_path / "index.json.partial").write_bytes(b"a longer and older text")
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert list(tmp_path.iterdir()) == [path]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip_header(path):
    content = bytearray(path.read_bytes())
    content[10] ^= 0xFF
    path.write_bytes(content)


def flip_length(path):
    content = bytearray(path.read_bytes())
    content[6] ^= 0xFF
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def rename_tensor(path):
    save_file({"another": ROWS}, path)


def one_row_less(path):
    save_file({segments.GEOMETRY: ROWS[1:].contiguous()}, path)


def one_row_more(path):
    save_file({segments.GEOMETRY: torch.cat([ROWS, ROWS[:1]])}, path)


def replace_with_directory(path):
    path.unlink()
    path.mkdir()


DAMAGES = [
    lambda path: path.unlink(),
    truncate,
    flip_header,
    flip_length,
    empty,
    rename_tensor,
    one_row_less,
    one_row_more,
    replace_with_directory,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_segment_is_named_with_what_to_do(store, tmp_path, damage):
    record = store.write(ROWS, dtype=torch.float32)
    path = path_of(tmp_path, record)
    damage(path)
    with pytest.raises(BrokenIndexError) as error:
        list(store.blocks(record.uid, 11))
    assert str(path) in str(error.value)
    assert "restore the file from a backup, or build the index anew" in str(error.value)


def test_another_number_of_rows_is_said(store):
    record = store.write(ROWS, dtype=torch.float32)
    with pytest.raises(BrokenIndexError, match=r"has 11 rows, the catalog says 1,200;"):
        list(store.blocks(record.uid, 1200))
