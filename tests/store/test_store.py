import json
import shutil
import sqlite3

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from safetensors.torch import load_file, save_file
from stored_samples import DIM, create, fill, random_rows, samples, statistics

from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError, UsageError
from forvalue_index.gradients.calibration import Calibration
from forvalue_index.gradients.geometry import Moments
from forvalue_index.gradients.sketch_error import ErrorScale, SketchError
from forvalue_index.search.building import RowKind, search_index
from forvalue_index.store.catalog.addresses import CATALOG
from forvalue_index.store.catalog.database import CatalogError
from forvalue_index.store.frozen import calibration_file
from forvalue_index.store.manifest import CALIBRATION, MANIFEST, SEGMENTS, TABLES
from forvalue_index.store.rows import quantized
from forvalue_index.store.store import Storage

pytest_plugins = ("databases",)


def blocks_of(storage):
    with storage.view() as view:
        return list(view.blocks("raw"))


def all_rows(storage):
    blocks = blocks_of(storage)
    ids = np.concatenate([block.ids for block in blocks])
    return ids, torch.cat([block.rows for block in blocks])


def flat_index(storage):
    with storage.view() as view:
        return search_index(view, RowKind("raw"))


@pytest.fixture
def storage(tmp_path):
    with_rows = create(tmp_path / "ix")
    yield with_rows
    with_rows.close()


def test_an_empty_index(storage):
    assert blocks_of(storage) == []
    index = flat_index(storage)
    assert len(index) == 0
    ids, scores = index.search(np.zeros((1, DIM), np.float32), 3)[0]
    assert len(ids) == len(scores) == 0


def test_rows_come_back_in_order_of_id(storage):
    first, second = fill(storage), fill(storage, 3, prefix="s", seed=1)
    ids, rows = all_rows(storage)
    assert ids.tolist() == list(range(8))
    assert ids.dtype == np.int64
    assert rows.equal(torch.cat([first, second]))


@pytest.mark.parametrize("row_dtype", ["bfloat16", "int8"])
def test_rows_of_fewer_bits_are_the_nearest_ones(tmp_path, row_dtype):
    storage = create(tmp_path / "ix", row_dtype=row_dtype)
    rows = fill(storage)
    assert all_rows(storage)[1].equal(quantized(rows, row_dtype).floats())
    assert not all_rows(storage)[1].equal(rows)
    storage.close()


def test_what_is_opened_is_what_was_created(storage, tmp_path):
    fill(storage)
    opened = Storage.open(tmp_path / "ix")
    assert opened.manifest == storage.manifest
    assert all_rows(opened)[1].equal(all_rows(storage)[1])
    tables = opened.frozen.hash_tables()
    assert set(tables) == {"vocab_order", "vocab_sign", "hidden_bucket", "hidden_sign"}
    opened.close()


def test_blocks_are_bounded(storage, monkeypatch):
    monkeypatch.setattr("forvalue_index.store.segments.BLOCK_ROWS", 2)
    rows = fill(storage)
    storage.catalog.remove([1])
    blocks = blocks_of(storage)
    assert [block.ids.tolist() for block in blocks] == [[0], [2, 3], [4]]
    assert torch.cat([block.rows for block in blocks]).equal(rows[[0, 2, 3, 4]])


def test_removed_samples_are_left_out(storage):
    rows = fill(storage)
    fill(storage, 3, prefix="s", seed=1)
    storage.catalog.remove([0, 3, 6])
    ids, _ = all_rows(storage)
    assert ids.tolist() == [1, 2, 4, 5, 7]
    index = flat_index(storage)
    assert len(index) == 5
    found, _ = index.search(rows[:1].numpy(), 8)[0]
    assert sorted(found.tolist()) == [1, 2, 4, 5, 7]


def test_the_search_index_gives_inner_products_under_ids(storage):
    rows = fill(storage, 20)
    query = random_rows(1, seed=9)
    ids, scores = flat_index(storage).search(query.numpy(), 20)[0]
    expected = (rows @ query[0]).numpy()
    assert ids.tolist() == np.argsort(-expected).tolist()
    np.testing.assert_allclose(scores, expected[ids], rtol=1e-5, atol=1e-5)


def test_a_failed_commit_leaves_no_sample(storage):
    """The file of rows is written first: without its record it is as if it were not there."""
    fill(storage)
    twice = samples(1, prefix="x") * 2
    with pytest.raises(CatalogError, match="was not recorded"):
        storage.append(storage.quantized({"raw": random_rows(2)}), twice, statistics(2))
    assert len(list((storage.path / SEGMENTS).iterdir())) == 2
    assert all_rows(storage)[0].tolist() == list(range(5))
    fill(storage, 2, prefix="s")
    assert all_rows(storage)[0].tolist() == list(range(7))


def test_creation_that_was_interrupted_is_done_again(tmp_path):
    storage = create(tmp_path / "ix")
    storage.close()
    (tmp_path / "ix" / MANIFEST).rename(tmp_path / "ix" / f"{MANIFEST}.partial")
    with pytest.raises(BrokenIndexError, match="is not an index"):
        Storage.open(tmp_path / "ix")
    again = create(tmp_path / "ix", seed=1)
    fill(again)
    again.close()
    opened = Storage.open(tmp_path / "ix")
    assert opened.manifest.uid == again.manifest.uid != storage.manifest.uid
    assert len(flat_index(opened)) == 5
    opened.close()


def test_a_foreign_directory_is_left_alone(tmp_path):
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(BrokenIndexError, match=r"holds other files \(photo\.jpg"):
        create(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["photo.jpg"]


def test_an_index_is_not_created_over_another(storage):
    with pytest.raises(BrokenIndexError, match="holds other files"):
        create(storage.path)


def test_the_hash_tables_of_another_index_are_refused(storage, tmp_path):
    other = create(tmp_path / "other", seed=1)
    other.close()
    shutil.copy(other.path / TABLES, storage.path / TABLES)
    with pytest.raises(BrokenIndexError, match="is not the file that this index was created with"):
        storage.frozen.hash_tables()


@pytest.mark.parametrize("content", [None, b"", b"garbage" * 9])
def test_hash_tables_that_cannot_be_read(storage, content):
    (storage.path / TABLES).unlink()
    if content is not None:
        (storage.path / TABLES).write_bytes(content)
    with pytest.raises(BrokenIndexError, match=r"sketch\.safetensors cannot be read .* restore"):
        storage.frozen.hash_tables()


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "is missing"), (b"", "is damaged"), (b"garbage" * 9, "is damaged")],
)
def test_rows_that_cannot_be_read(storage, content, said):
    fill(storage)
    segment = next((storage.path / SEGMENTS).iterdir())
    segment.unlink()
    if content is not None:
        segment.write_bytes(content)
    with pytest.raises(
        BrokenIndexError, match=rf"\.safetensors {said}.* forvalue check INDEX --repair"
    ):
        blocks_of(storage)


@pytest.mark.parametrize("count", [3, 5])
def test_the_file_of_another_segment_is_refused(storage, count):
    fill(storage)
    fill(storage, count, prefix="s")
    files = sorted((storage.path / SEGMENTS).iterdir())
    shutil.copy(files[0], files[1])
    with pytest.raises(BrokenIndexError, match=f"it holds the segment {files[0].stem}"):
        blocks_of(storage)


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE segments SET first_id = first_id + 1 WHERE first_id = 5",
        "UPDATE samples SET id = 9 WHERE id = 7",
        "DELETE FROM samples WHERE id = 2",
        "UPDATE samples SET index_id = 2 WHERE id = 2",
    ],
)
def test_a_catalog_that_knows_other_samples_than_the_segments_hold_is_refused(storage, change):
    fill(storage)
    fill(storage, 3, prefix="s")
    with sqlite3.connect(storage.path / CATALOG) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(BrokenIndexError, match="its segments hold other samples than its catalog"):
        blocks_of(storage)


def test_rows_of_another_width_are_refused(storage):
    storage.append(storage.quantized({"raw": torch.zeros(2, DIM - 1)}), samples(2), statistics(2))
    with pytest.raises(BrokenIndexError, match="have 15 floats of raw in float32, and those of"):
        blocks_of(storage)


@pytest.mark.parametrize(
    ("row_dtype", "taken_for"),
    [("int8", torch.uint8), ("bfloat16", torch.float16), ("float32", torch.int32)],
)
def test_rows_of_another_kind_with_the_same_bits_are_damage(tmp_path, row_dtype, taken_for):
    """A checksum is over bits; what they are taken for is for the index to know."""
    storage = create(tmp_path / "ix", row_dtype=row_dtype)
    fill(storage)
    (path,) = (tmp_path / "ix" / "segments").iterdir()
    tensors = load_file(path)
    tensors["raw"] = tensors["raw"].view(taken_for)
    save_file(tensors, path, {"uid": path.stem})
    with pytest.raises(BrokenIndexError, match=f"of the index 16 floats of raw in {row_dtype}"):
        blocks_of(storage)
    storage.close()


def test_a_moved_index_opens(storage, tmp_path):
    rows = fill(storage)
    storage.close()
    moved = shutil.move(storage.path, tmp_path / "moved to # 100% ?")
    opened = Storage.open(moved)
    assert all_rows(opened)[1].equal(rows)
    fill(opened, 2, prefix="s")
    assert not storage.path.exists()
    opened.close()


def test_an_opened_index_does_not_depend_on_the_working_directory(storage, tmp_path, monkeypatch):
    """The catalog was found under its absolute path, and the segments were not."""
    rows = fill(storage)
    monkeypatch.chdir(tmp_path)
    opened = Storage.open(storage.path.relative_to(tmp_path))
    monkeypatch.chdir("/")
    assert len(flat_index(opened)) == len(rows)
    opened.close()


def test_two_indexes_share_a_database(postgresql_database, tmp_path):
    one, two = (create(tmp_path / name, catalog=postgresql_database) for name in ("one", "two"))
    assert not (one.path / CATALOG).exists()
    rows = {storage.path.name: fill(storage, seed=n) for n, storage in enumerate((one, two))}
    fill(two, 2, prefix="s")
    two.catalog.remove([0])
    for storage in (one, two):
        storage.close()
    one, two = (Storage.open(tmp_path / name) for name in ("one", "two"))
    assert json.loads((one.path / MANIFEST).read_text())["catalog"] == postgresql_database
    ids, found = all_rows(one)
    assert ids.tolist() == list(range(5))
    assert found.equal(rows["one"])
    ids, found = all_rows(two)
    assert ids.tolist() == list(range(1, 7))
    assert found[:4].equal(rows["two"][1:])
    for storage in (one, two):
        storage.close()


def lose_the_index(url):
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        connection.execute(sa.text("DELETE FROM indexes"))
    engine.dispose()


def test_a_server_that_lost_the_index(postgresql_database, tmp_path):
    create(tmp_path / "ix", catalog=postgresql_database).close()
    lose_the_index(postgresql_database)
    with pytest.raises(BrokenIndexError, match="holds no index"):
        Storage.open(tmp_path / "ix")


def test_a_catalog_that_lost_the_index(tmp_path):
    create(tmp_path / "ix").close()
    lose_the_index(f"sqlite:///{tmp_path / 'ix' / CATALOG}")
    with pytest.raises(BrokenIndexError, match="holds no index"):
        Storage.open(tmp_path / "ix")


def test_a_manifest_that_leads_to_another_file_is_refused(storage, tmp_path):
    """An index may come from a stranger, and its catalog's address could name any file."""
    storage.close()
    manifest = storage.path / MANIFEST
    stored = json.loads(manifest.read_text("utf-8"))
    manifest.write_text(json.dumps(stored | {"catalog": f"sqlite:///{tmp_path}/x.sqlite"}))
    with pytest.raises(UsageError, match="the scheme sqlite is not allowed"):
        Storage.open(storage.path)
    assert not (tmp_path / "x.sqlite").exists()


def test_a_view_is_one_state_whatever_comes_after(storage):
    rows = fill(storage)
    with storage.view() as view:
        fill(storage, 3, prefix="s", seed=1)
        storage.catalog.remove([0])
        assert view.version == 1
        assert next(view.blocks("raw")).rows.equal(rows)
        assert len(search_index(view, RowKind("raw"))) == view.catalog.count() == 5
    with storage.view() as view:
        assert view.version == 3
        assert len(search_index(view, RowKind("raw"))) == view.catalog.count() == 7


def replace_all(storage, live):
    with storage.catalog.snapshot() as snapshot:
        uids = [segment.file.uid for segment in snapshot.segments()]
    ids, rows = all_rows(storage)
    chosen = np.isin(ids, live)
    storage.replace(uids, ids[chosen], storage.quantized({"raw": rows[torch.from_numpy(chosen)]}))


def test_rows_are_the_same_where_a_new_segment_takes_the_place_of_others(storage):
    rows = torch.cat([fill(storage), fill(storage, 3, prefix="s", seed=1)])
    storage.catalog.remove([0, 6])
    replace_all(storage, live := [1, 2, 3, 4, 5, 7])
    ids, found = all_rows(storage)
    assert ids.tolist() == live
    assert found.equal(rows[live])
    assert len(list((storage.path / SEGMENTS).iterdir())) == 1
    assert fill(storage, 2, prefix="t").shape == (2, DIM)
    assert all_rows(storage)[0].tolist() == [*live, 8, 9], "ids are never given twice"


def test_a_segment_without_the_rows_of_all_samples_replaces_nothing(storage):
    rows = fill(storage)
    with pytest.raises(CatalogError, match=r"nothing has changed\. Run the same again"):
        replace_all(storage, [0, 1, 3, 4])
    assert all_rows(storage)[1].equal(rows)


def test_a_reader_starts_over_where_rows_were_compacted_while_it_opened(storage, monkeypatch):
    rows = fill(storage)
    open_segment, calls = storage.segments.open, []

    def compacted_before_it_opens(segment):
        if not calls:
            calls.append(segment)
            replace_all(Storage(storage.path, storage.manifest, storage.catalog), range(5))
        return open_segment(segment)

    monkeypatch.setattr(storage.segments, "open", compacted_before_it_opens)
    assert all_rows(storage)[1].equal(rows)
    assert len(calls) == 1


def calibration(samples=3, **parts):
    moments = Moments(torch.ones(50), torch.zeros(8), torch.eye(8))
    return Calibration(moments, samples, 9, **parts)


def test_rows_name_the_calibration_that_they_were_made_with(storage):
    storage.frozen.freeze(calibration())
    rows = fill(storage)
    assert all_rows(storage)[1].equal(rows)
    with storage.catalog.snapshot() as snapshot:
        (segment,) = snapshot.segments()
    assert storage.segments.open(segment).calibration == calibration().digest
    replace_all(storage, range(5))
    assert all_rows(storage)[1].equal(rows), "a compacted segment does so, too"


@pytest.mark.parametrize("change", ["other", "missing", "late"])
def test_rows_of_another_calibration_are_refused(storage, change):
    if change != "late":
        storage.frozen.freeze(calibration())
    fill(storage)
    if change == "missing":
        (storage.path / CALIBRATION).unlink()
    else:
        storage.frozen.freeze(calibration(samples=4))
    said = {
        "other": f"the calibration {calibration().digest}, and that of the index is "
        f"{calibration(samples=4).digest}; restore",
        "missing": f"the calibration {calibration().digest}, and that of the index is missing",
        "late": f"the calibration None, and that of the index is {calibration(samples=4).digest}",
    }
    with pytest.raises(BrokenIndexError, match=said[change]):
        blocks_of(storage)


def test_a_calibration_of_another_model_is_refused(storage):
    content = calibration_file(calibration(), "x" * 32)
    (storage.path / CALIBRATION).write_bytes(content)
    for use in (
        storage.frozen.calibration,
        lambda: storage.frozen.sketch_error("raw"),
        lambda: fill(storage),
    ):
        with pytest.raises(SettingsMismatchError, match="is the calibration of another model"):
            use()


def test_an_index_is_uncalibrated_until_it_holds_a_calibration_or_rows(storage, tmp_path):
    assert storage.uncalibrated
    storage.frozen.freeze(calibration())
    assert not storage.uncalibrated
    other = create(tmp_path / "other")
    fill(other)
    assert not other.uncalibrated, "as those are which were made before there were calibrations"
    other.close()


def test_the_error_of_scores_is_that_of_the_calibration(tmp_path):
    storage = create(tmp_path / "ix", geometry="raw,fisher,kfac")
    assert storage.frozen.sketch_error("raw") == SketchError((DIM,), (1, 0))
    directions = {"fisher": np.eye(2, 8)}
    storage.frozen.freeze(
        calibration(
            directions=directions,
            error_scale={"raw": ErrorScale(0.5), "fisher": ErrorScale(1.5, 0.2)},
        )
    )
    assert storage.frozen.sketch_error("raw") == SketchError((DIM,), (0.5, 0))
    assert storage.frozen.sketch_error("fisher") == SketchError((DIM,), (1.5, 0.2))
    assert storage.frozen.sketch_error("kfac") == SketchError((DIM,), (1, 0))
    storage.close()


def test_a_calibration_that_is_a_link_out_of_the_index_is_refused(storage, tmp_path):
    (tmp_path / "elsewhere").write_bytes(calibration_file(calibration(), "w" * 32))
    (storage.path / CALIBRATION).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BrokenIndexError, match="is a link that leads out of the index"):
        Storage.open(storage.path)
