import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from grids import pairs
from safetensors.torch import load_file, save_file

from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.store import segments
from forvalue_index.store.records import SegmentRecord, StoredSegment
from forvalue_index.store.rows import quantized
from forvalue_index.store.segments import MissingSegmentError, SegmentStore, StoredBlock

ROWS = torch.randn(11, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def store(tmp_path):
    return SegmentStore(tmp_path)


def blocks_of(store, record, first_id=0):
    return list(store.open(StoredSegment(first_id, record)).blocks("raw"))


def stored(store, record):
    return torch.cat([block.rows.floats() for block in blocks_of(store, record)])


def packed_rows(rows, row_dtype="float32"):
    return {name: quantized(mine, row_dtype) for name, mine in rows.items()}


def path_of(directory, record):
    return directory / f"{record.uid}.safetensors"


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
def test_rows_come_back_as_they_were_written(store, tmp_path, dtype):
    record = store.write({"raw": quantized(ROWS, dtype)})
    assert record.n_rows == 11
    content = path_of(tmp_path, record).read_bytes()
    assert record.n_bytes == len(content)
    assert record.sha256 == hashlib.sha256(content).hexdigest()
    (block,) = blocks_of(store, record)
    assert block.rows.values.dtype == getattr(torch, dtype)
    assert torch.equal(block.rows.floats(), quantized(ROWS, dtype).floats())


def test_bfloat16_takes_half_the_bytes(store):
    rows = torch.zeros(64, 256)
    large = store.write({"raw": quantized(rows, "float32")}).n_bytes
    small = store.write({"raw": quantized(rows, "bfloat16")}).n_bytes
    assert large - small == rows.numel() * 2


def test_rows_that_are_not_contiguous_are_written_in_their_order(store):
    record = store.write({"raw": quantized(ROWS.T, "float32")})
    assert torch.equal(stored(store, record), ROWS.T)


@pytest.mark.parametrize("block_rows", [1, 4, 11, 12])
def test_blocks_are_bounded_and_in_order(store, monkeypatch, block_rows):
    monkeypatch.setattr(segments, "BLOCK_ROWS", block_rows)
    record = store.write({"raw": quantized(ROWS, "float32")})
    blocks = blocks_of(store, record, first_id=7)
    assert all(len(b.ids) == len(b.rows) == block_rows for b in blocks[:-1])
    assert 0 < len(blocks[-1].rows) <= block_rows
    assert torch.equal(torch.cat([b.rows.floats() for b in blocks]), ROWS)
    assert np.concatenate([b.ids for b in blocks]).tolist() == list(range(7, 18))


def test_segments_have_names_of_their_own_and_are_left_alone(store, tmp_path):
    first = store.write({"raw": quantized(ROWS, "float32")})
    content = path_of(tmp_path, first).read_bytes()
    second = store.write({"raw": quantized(ROWS, "float32")})
    assert first.uid != second.uid
    assert path_of(tmp_path, first).read_bytes() == content


def test_nothing_temporary_is_left_behind_and_what_a_crash_left_does_not_matter(store, tmp_path):
    record = store.write({"raw": quantized(ROWS, "float32")})
    assert [p.name for p in tmp_path.iterdir()] == [f"{record.uid}.safetensors"]
    (tmp_path / f"{record.uid}.safetensors.partial").write_bytes(b"half a fi")
    assert torch.equal(stored(store, record), ROWS)


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
    save_file({"raw": ROWS[1:].contiguous()}, path)


def one_row_more(path):
    save_file({"raw": torch.cat([ROWS, ROWS[:1]])}, path)


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
    record = store.write({"raw": quantized(ROWS, "float32")})
    path = path_of(tmp_path, record)
    damage(path)
    with pytest.raises(BrokenIndexError) as error:
        blocks_of(store, record)
    assert str(path) in str(error.value)
    assert "run: forvalue check INDEX --repair" in str(error.value)


def test_another_number_of_rows_is_said(store):
    record = store.write({"raw": quantized(ROWS, "float32")})
    with pytest.raises(BrokenIndexError, match=r"has 11 rows, the catalog says 1,200;"):
        blocks_of(store, dataclasses.replace(record, n_rows=1200))


def test_ids_with_gaps_come_back_with_their_rows(store):
    offsets = np.array([0, 1, 4, 5, 9, 10, 11, 30, 31, 32, 1000])
    record = store.write({"raw": quantized(ROWS, "float32")}, offsets=offsets)
    block = blocks_of(store, record, first_id=5)[0]
    assert block.ids.tolist() == (offsets + 5).tolist()
    assert block.ids.dtype == np.int64
    assert torch.equal(block.rows.floats(), ROWS)


def test_an_open_segment_outlives_its_file(store, tmp_path):
    record = store.write({"raw": quantized(ROWS, "float32")})
    opened = store.open(StoredSegment(0, record))
    store.delete(record.uid)
    assert list(tmp_path.iterdir()) == []
    assert torch.equal(next(opened.blocks("raw")).rows.floats(), ROWS)
    with pytest.raises(MissingSegmentError, match="is missing, and it holds rows of the index"):
        store.open(StoredSegment(0, record))


def test_rows_of_int8_without_their_scales_are_damage(store, tmp_path):
    record = store.write({"raw": quantized(ROWS, "int8")})
    tensors = load_file(path_of(tmp_path, record))
    del tensors["scale.raw"]
    save_file(tensors, path_of(tmp_path, record), {"uid": record.uid})
    with pytest.raises(BrokenIndexError, match="its rows of raw have no scales; run: forvalue"):
        store.open(StoredSegment(0, record))


@pytest.mark.parametrize(
    "scales",
    [
        lambda s: s.view(torch.int32),
        lambda s: s.view(torch.float16),
        lambda s: s.double(),
        lambda s: s[:-1].contiguous(),
        lambda s: s[:, None].contiguous(),
    ],
    ids=["whole numbers", "halves", "double", "short", "2d"],
)
def test_scales_that_are_not_one_float_a_row_are_damage(store, tmp_path, scales):
    """Some have the bits that the checksums were taken over."""
    record = store.write({"raw": quantized(ROWS, "int8")})
    tensors = load_file(path_of(tmp_path, record))
    tensors["scale.raw"] = scales(tensors["scale.raw"])
    save_file(tensors, path_of(tmp_path, record), {"uid": record.uid})
    with pytest.raises(BrokenIndexError, match="scales of its rows of raw are not one float32 a"):
        store.open(StoredSegment(0, record))


def test_deleting_what_is_not_there_is_no_error(store):
    store.delete("0" * 32)


def test_each_geometry_has_its_rows_and_checksums(store):
    rows = {"raw": ROWS, "kfac": -2 * ROWS[:, :4]}
    record = store.write(packed_rows(rows), calibration="c" * 32)
    opened = store.open(StoredSegment(5, record))
    assert opened.dims == {"raw": 16, "kfac": 4}
    assert opened.calibration == "c" * 32
    for name, expected in rows.items():
        (block,) = opened.blocks(name)
        assert block.rows.floats().equal(expected)
        assert block.ids.tolist() == list(range(5, 16))


def test_a_segment_without_a_calibration_names_none(store):
    record = store.write({"raw": quantized(ROWS, "float32")})
    assert store.open(StoredSegment(0, record)).calibration is None


def test_a_geometry_that_is_not_there_is_damage(store):
    record = store.write({"raw": quantized(ROWS, "float32")})
    with pytest.raises(BrokenIndexError, match="forvalue check INDEX --repair"):
        list(store.open(StoredSegment(0, record)).blocks("kfac"))


def test_geometries_of_different_numbers_of_rows_are_damage(store, tmp_path):
    record = store.write(packed_rows({"raw": ROWS, "kfac": -ROWS}))
    tensors = load_file(path_of(tmp_path, record))
    tensors["kfac"] = tensors["kfac"][:-1].contiguous()
    save_file(tensors, path_of(tmp_path, record), {"uid": record.uid})
    with pytest.raises(BrokenIndexError, match="it has 10 and 11 rows, the catalog says 11"):
        store.open(StoredSegment(0, record))


@pytest.mark.parametrize(
    ("dtype", "gap", "geometries"),
    pairs(["float32", "bfloat16", "int8"], [1, 2], [("raw",), ("kfac", "raw")]),
)
def test_a_flipped_bit_anywhere_in_a_segment_is_found(store, tmp_path, dtype, gap, geometries):
    """Header, names, shapes, checksums, offsets and rows: each byte, one bit of it."""
    width = 16 if geometries == ("raw",) else 4
    rows = {name: ROWS[:, :width].clone() for name in geometries}
    offsets = None if gap == 1 else np.arange(0, 11 * gap, gap)
    record = store.write(packed_rows(rows, dtype), offsets=offsets, calibration="c" * 32)

    def read():
        """What `Storage` compares, and all rows."""
        opened = store.open(StoredSegment(0, record))
        said = (opened.dims, opened.calibration)
        if said == (dict.fromkeys(geometries, width), "c" * 32):
            return [list(opened.blocks(name)) for name in geometries]
        raise BrokenIndexError(f"{said} {segments.CURE}")

    assert len(read()) == len(geometries)
    path = path_of(tmp_path, record)
    content = path.read_bytes()
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        with pytest.raises(BrokenIndexError, match="run: forvalue check INDEX --repair"):
            pytest.fail(f"byte {position}: {read()}")


def swap_rows(path):
    tensors = load_file(path)
    tensors["raw"][[2, 3]] = tensors["raw"][[3, 2]]
    save_file(tensors, path, {"uid": path.stem})


def swap_rows_with_checksums(path):
    tensors = load_file(path)
    for name in ("raw", segments.CHECKSUM):
        tensors[name][[2, 3]] = tensors[name][[3, 2]]
    save_file(tensors, path, {"uid": path.stem})


@pytest.mark.parametrize("swap", [swap_rows, swap_rows_with_checksums])
def test_rows_that_changed_places_are_found(store, tmp_path, swap):
    record = store.write({"raw": quantized(ROWS, "float32")})
    swap(path_of(tmp_path, record))
    with pytest.raises(BrokenIndexError, match="the row of sample 2 is not what was stored"):
        blocks_of(store, record)


def test_the_file_of_another_segment_is_found(store, tmp_path):
    one, other = (store.write({"raw": quantized(rows, "float32")}) for rows in (ROWS, -ROWS))
    path_of(tmp_path, one).write_bytes(path_of(tmp_path, other).read_bytes())
    with pytest.raises(BrokenIndexError, match=f"it holds the segment {other.uid}"):
        blocks_of(store, one)


def test_a_segment_from_before_there_were_checksums_is_read_whole(store, tmp_path):
    path = tmp_path / f"{'a' * 32}.safetensors"
    save_file({"raw": ROWS}, path)
    content = path.read_bytes()
    record = SegmentRecord("a" * 32, 11, len(content), hashlib.sha256(content).hexdigest())
    assert torch.equal(stored(store, record), ROWS)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(BrokenIndexError, match="its checksum is not that in the catalog"):
        blocks_of(store, record)


@pytest.mark.parametrize("uid", ["../../etc/passwd", "", "A" * 32, "a" * 31, "a" * 32 + "\n"])
def test_a_segment_that_leads_out_of_the_index_is_refused(store, uid):
    with pytest.raises(BrokenIndexError, match="nothing outside of an index is read"):
        store.path(uid)


def test_a_link_out_of_the_index_is_refused(tmp_path):
    (tmp_path / "ix").mkdir()
    (tmp_path / "ix" / "segments").symlink_to(tmp_path)
    with pytest.raises(BrokenIndexError, match="nothing outside of an index is read"):
        SegmentStore(tmp_path / "ix" / "segments").path("a" * 32)


@pytest.mark.parametrize(
    "removed", [[], [0], [4], [9], [3, 5, 6, 7, 8], [5], [5, 8, 20], [7, 9], [1, 30]]
)
def test_a_block_without_what_was_removed(removed):
    ids = np.array([4, 5, 7, 8], dtype=np.int64)
    block = StoredBlock(ids, quantized(torch.arange(4.0)[:, None], "float32"))
    found = block.without(np.array(removed, dtype=np.int64))
    kept = [i for i, id_ in enumerate(ids) if id_ not in removed]
    assert found.ids.tolist() == ids[kept].tolist()
    assert found.rows.floats()[:, 0].tolist() == kept
