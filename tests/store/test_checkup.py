import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import numpy as np
import pytest
import torch
from rows import rows, write_jsonl
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BrokenIndexError, BusyIndexError
from forvalue_index.store.frozen import calibration_file, read_calibration
from forvalue_index.store.rows import row_checksums
from forvalue_index.store.writer_lock import writer_lock

pytest_plugins = ("tiny",)

# Rows are embedded in other batches: to rounding of the arithmetic and then of bfloat16.
ROUNDING = 2.0**-7
UID = "0123456789abcdef" * 2


@pytest.fixture(scope="module")
def reader(model_dir, tmp_path_factory):
    """One model for all."""
    path = tmp_path_factory.mktemp("reader") / "index"
    with ValuationIndex.create(path, str(model_dir), dim=256) as index:
        return index.model.reader


@pytest.fixture
def filled(filled, reader):
    """The built index of 20 and 10 samples, of which one is removed."""
    filled.model._reader = reader
    filled.remove(["r4"])
    return filled


def segments_of(index):
    """Paths in order of id."""
    with index.storage.catalog.snapshot() as snapshot:
        return [index.storage.segments.path(s.file.uid) for s in snapshot.segments()]


def live_rows(index):
    with index.storage.view() as view:
        blocks = list(view.blocks("raw"))
    ids = np.concatenate([block.ids for block in blocks])
    return dict(zip(ids.tolist(), torch.cat([block.rows for block in blocks]), strict=True))


def assert_near(found, expected):
    assert found.keys() == expected.keys()
    for id_, row in expected.items():
        assert torch.linalg.vector_norm(found[id_] - row) <= ROUNDING * torch.linalg.vector_norm(
            row
        )


def change(index, *statements):
    """Change the catalog behind the program's back."""
    with closing(sqlite3.connect(index.path / "catalog.sqlite")) as connection, connection:
        for statement in statements:
            connection.execute(statement)


def kinds(report):
    return [finding.kind for finding in report.findings]


def flip(path, position, bit=0):
    content = bytearray(path.read_bytes())
    content[position] ^= 1 << bit
    path.write_bytes(content)


def edit(path, **tensors):
    """Other tensors, and the same that it says of itself."""
    with safe_open(path, framework="pt") as file:
        said = file.metadata()
    save_file(load_file(path) | tensors, path, said)


def missing(paths):
    paths[0].unlink()


def truncated(paths):
    paths[0].write_bytes(paths[0].read_bytes()[:-100])


def empty(paths):
    paths[0].write_bytes(b"")


def flipped(paths):
    flip(paths[0], -10)


def replaced(paths):
    shutil.copy(paths[1], paths[0])


def rows_swapped(paths):
    content = load_file(paths[0])["raw"]
    content[[1, 2]] = content[[2, 1]]
    edit(paths[0], raw=content)


def checksums(content):
    return torch.from_numpy(row_checksums(content, np.arange(len(content))))


def rows_and_checksums_swapped_between_samples(paths):
    """What only the norms in the catalog tell, and the file's own checksum."""
    content = load_file(paths[0])["raw"]
    content[[1, 2]] = content[[2, 1]]
    edit(paths[0], raw=content, checksum=checksums(content))


def another_width(paths):
    content = load_file(paths[0])["raw"][:, :-8].contiguous()
    edit(paths[0], raw=content, checksum=checksums(content))


def without_checksums(paths):
    save_file({"raw": load_file(paths[0])["raw"]}, paths[0])


LOST = [
    (missing, "missing segment"),
    (truncated, "damaged segment"),
    (empty, "damaged segment"),
    (flipped, "damaged segment"),
    (replaced, "damaged segment"),
    (rows_swapped, "damaged segment"),
    (rows_and_checksums_swapped_between_samples, "damaged segment"),
    (another_width, "damaged segment"),
    (without_checksums, "damaged segment"),
]


def test_a_sound_index_has_no_findings(filled):
    report = filled.check()
    assert (report.findings, report.sound) == ((), True)
    assert (report.segments, report.samples) == (2, 30)
    repaired = filled.check(repair=True)
    assert (repaired.findings, repaired.sound) == ((), True)


def test_an_empty_index_has_no_findings(index):
    report = index.check(repair=True)
    assert (report.segments, report.samples, report.findings) == (0, 0, ())


@pytest.mark.parametrize(("damage", "kind"), LOST, ids=lambda x: getattr(x, "__name__", ""))
def test_a_lost_segment_is_named_and_embedded_again(filled, damage, kind):
    before, paths = live_rows(filled), segments_of(filled)
    content = paths[1].read_bytes()
    damage(paths)
    report = filled.check()
    assert kinds(report) == [kind]
    assert not report.sound
    finding = report.findings[0]
    assert paths[0].stem in finding.what
    assert finding.cure == "restore it from a backup, or run: forvalue check INDEX --repair"

    repaired = filled.check(repair=True)
    assert [(f.kind, f.repaired) for f in repaired.findings] == [(kind, True)]
    assert repaired.sound
    assert filled.check().findings == ()
    assert_near(live_rows(filled), before)
    assert paths[1].read_bytes() == content, "what is sound is left alone"
    assert sorted(paths[1].parent.iterdir()) == sorted(segments_of(filled))


def test_samples_keep_their_ids_keys_and_metadata_through_a_repair(filled):
    before = [(s.id, s.sample, s.statistics) for s in filled.list_samples()]
    for path in segments_of(filled):
        path.unlink()
    assert filled.check(repair=True).sound
    assert [(s.id, s.sample, s.statistics) for s in filled.list_samples()] == before


def test_a_compacted_segment_with_gaps_is_embedded_again(filled):
    filled.remove(["r0", "r9", "s9"])
    filled.compact()
    before = live_rows(filled)
    flipped(segments_of(filled))
    assert filled.check(repair=True).sound
    assert_near(live_rows(filled), before)


def test_removed_samples_stay_so_through_a_repair_and_can_be_restored(filled):
    filled.remove(["r0", "r19", "s3"])
    before = filled.info()
    truncated(segments_of(filled))
    assert filled.check(repair=True).sound
    assert filled.check().findings == ()
    assert (filled.info().samples, filled.info().removed) == (before.samples, 4)
    report = filled.add(rows(20))
    assert (report.restored, report.added, report.known) == (3, 0, 17)
    assert filled.values(rows(1, seed=2)).ids.tolist() == [*range(23), *range(24, 30)]
    assert filled.compact().dropped == 1
    assert filled.info().removed == 0
    assert filled.add(rows(10, seed=1, prefix="s")).added == 1


def test_a_segment_of_removed_samples_alone_is_embedded_again(filled):
    filled.remove(where="id < 20")
    truncated(segments_of(filled))
    assert filled.check(repair=True).sound
    assert (len(segments_of(filled)), filled.info().removed) == (2, 20)
    assert filled.add(rows(20)).restored == 20


@pytest.mark.parametrize("others", [False, True])
def test_of_removed_samples_only_damaged_ones_are_forgotten_by_a_repair(filled, others):
    filled.remove(["r0", "r7"] if others else [s.id for s in filled.list_samples(limit=19)])
    n_removed = filled.info().removed
    damaged = "id IN (4, 7)" if others else "id < 20"
    change(filled, f"UPDATE samples SET payload = x'00' WHERE {damaged}")
    missing(segments_of(filled))
    repaired = filled.check(repair=True)
    assert "lost segment" not in kinds(repaired)
    assert filled.check().findings == ()
    assert filled.info().removed == (n_removed - 2 if others else 0)
    report = filled.add(rows(20))
    assert (report.restored, report.added) == ((1, 2) if others else (0, 20))


@pytest.mark.parametrize("compacted", [False, True])
def test_a_flipped_bit_anywhere_in_a_segment_is_found(filled, compacted):
    """Header, rows, checksums and offsets."""
    if compacted:
        filled.compact()
    path = segments_of(filled)[0]
    sound = path.read_bytes()
    header = int.from_bytes(sound[:8], "little")
    positions = [*range(0, header + 8, 7), *range(header + 8, len(sound), 211), *range(-90, 0, 7)]
    for position in positions:
        flip(path, position, position % 8)
        assert kinds(filled.check()) == ["damaged segment"], position
        path.write_bytes(sound)
    assert filled.check().findings == ()


def test_orphans_are_named_and_deleted(filled):
    for name in (f"segments/{UID}.safetensors", f"segments/{UID}.safetensors.{UID}.partial"):
        (filled.path / name).write_bytes(b"half a fi")
    (filled.path / "index.json.partial").write_bytes(b"{")
    (filled.path / f"calibration.safetensors.{UID}.partial").write_bytes(b"half")
    report = filled.check()
    assert kinds(report) == ["orphan file"] * 4
    assert all("which deletes it" in finding.cure for finding in report.findings)
    assert (filled.path / f"segments/{UID}.safetensors").exists(), "a check changes nothing"
    assert filled.check(repair=True).sound
    assert filled.check().findings == ()
    assert sorted((filled.path / "segments").iterdir()) == sorted(segments_of(filled))
    assert not [*filled.path.glob("*.partial")]


def test_files_of_others_are_left_alone(filled):
    names = ["notes.txt", "download.partial", "segments/my.safetensors", f"segments/{UID}.bak"]
    for name in names:
        (filled.path / name).write_text("mine")
    assert filled.check(repair=True).findings == ()
    assert all((filled.path / name).read_text() == "mine" for name in names)


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_left_alone(filled, make):
    before, path = live_rows(filled), segments_of(filled)[0]
    path.unlink()
    others = [path, path.with_name(f"{UID}.safetensors"), filled.path / "index.json.partial"]
    for other in others:
        make(other)
    assert kinds(filled.check()) == ["missing segment"]
    assert filled.check(repair=True).sound
    assert filled.check().findings == ()
    assert all(other.exists() for other in others[1:])
    assert_near(live_rows(filled), before)


def test_damaged_hash_tables_are_named_and_cannot_be_mended(filled):
    flip(filled.path / "sketch.safetensors", -5)
    report = filled.check()
    assert kinds(report) == ["damaged hash tables"]
    assert report.findings[0].cure == "restore the file from a backup"
    repaired = filled.check(repair=True)
    assert (repaired.sound, repaired.findings[0].repaired) == (False, False)


def of_another_model(path):
    document = json.loads((path.parent / "index.json").read_text())
    found = read_calibration(path, document["model"]["weights_digest"])
    path.write_bytes(calibration_file(found, "x" * 32))


@pytest.mark.parametrize(
    "damage", [lambda path: flip(path, -5), lambda path: os.truncate(path, 90), of_another_model]
)
def test_a_damaged_calibration_is_named_and_its_segments_are_left_alone(filled, damage):
    """They were all called damaged, and a repair tried to make each of them anew."""
    before = [path.read_bytes() for path in segments_of(filled)]
    path = filled.path / "calibration.safetensors"
    sound = path.read_bytes()
    damage(path)
    report = filled.check()
    assert kinds(report) == ["damaged calibration"]
    assert report.findings[0].cure == "restore the file from a backup"
    repaired = filled.check(repair=True)
    assert (repaired.sound, kinds(repaired)) == (False, ["damaged calibration"])
    path.write_bytes(sound)
    assert filled.check().findings == ()
    assert [path.read_bytes() for path in segments_of(filled)] == before


def test_raw_rows_of_a_lost_calibration_are_embedded_again_without(filled):
    before = live_rows(filled)
    (filled.path / "calibration.safetensors").unlink()
    assert kinds(filled.check()) == ["damaged segment"] * 2
    assert filled.check(repair=True).sound
    assert filled.check().findings == ()
    assert_near(live_rows(filled), before)


@pytest.fixture
def mapped(tmp_path, model_dir, reader):
    """An index of rows that depend on a calibration."""
    path = tmp_path / "mapped"
    with ValuationIndex.create(path, str(model_dir), dim=256, geometry="fisher,raw") as index:
        index.add(rows(8))
        yield index


def test_a_lost_calibration_that_rows_depend_on_cannot_be_mended(mapped):
    """It was a KeyError."""
    path = mapped.path / "calibration.safetensors"
    sound = path.read_bytes()
    path.unlink()
    assert kinds(mapped.check()) == ["damaged segment"]
    said = r"calibration\.safetensors is missing, and rows of fisher depend on it; restore it"
    for use in (mapped.add, mapped.query, mapped.values):
        with pytest.raises(BrokenIndexError, match=said):
            use(rows(1, seed=4, prefix="n"))
    repaired = mapped.check(repair=True)
    assert not repaired.sound
    assert kinds(repaired) == ["damaged segment", "lost segment"]
    path.write_bytes(sound)
    assert mapped.check().findings == ()


@pytest.mark.parametrize("geometry", ["fisher", "raw"])
def test_a_damaged_row_of_any_geometry_is_found_and_embedded_again(mapped, geometry):
    (path,) = segments_of(mapped)
    tensors = load_file(path)
    tensors[geometry][3] = 0
    before = live_rows(mapped)
    with safe_open(path, framework="pt") as file:
        save_file(tensors, path, file.metadata())
    assert kinds(mapped.check()) == ["damaged segment"]
    assert mapped.check(repair=True).sound
    assert mapped.check().findings == ()
    assert_near(live_rows(mapped), before)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE samples SET payload = x'00' WHERE id = 7",
        "UPDATE samples SET loss = loss + 1 WHERE id = 7",
        "UPDATE samples SET content_hash = 'x' WHERE id = 7",
        'UPDATE samples SET metadata = \'{"topic": "other"}\' WHERE id = 7',
        "UPDATE samples SET source_id = (SELECT max(id) FROM sources) WHERE id = 7",
    ],
)
def test_a_damaged_sample_is_named_and_its_cure_works(filled, tmp_path, statement):
    filled.add(write_jsonl(tmp_path / "other.jsonl", rows(1, seed=9, prefix="o")))
    change(filled, statement)
    report = filled.check()
    assert kinds(report) == ["damaged sample"]
    assert "sample 7" in report.findings[0].what
    assert report.findings[0].cure == (
        'run: forvalue remove INDEX --where "id = 7"; forvalue compact INDEX; then add the sample '
        "again"
    )
    assert not filled.check(repair=True).sound
    with pytest.raises(BrokenIndexError, match="sample 7 is damaged"):
        filled.sample("r7")

    assert filled.remove([7]) == 1
    filled.compact()
    assert filled.add(rows(20)[7:8]).added == 1
    assert filled.check().findings == ()
    assert filled.sample("r7").sample.response == rows(20)[7]["response"]


def test_a_segment_that_cannot_be_embedded_again_is_kept_in_the_catalog(filled):
    change(filled, "UPDATE samples SET payload = x'00' WHERE id = 7")
    missing(segments_of(filled))
    assert sorted(kinds(filled.check())) == ["damaged sample", "missing segment"]
    report = filled.check(repair=True)
    assert not report.sound
    assert report.findings[-1].kind == "lost segment"
    assert "sample 7 is damaged" in report.findings[-1].what
    assert "remove the sample" in report.findings[-1].cure
    filled.remove([7])
    assert filled.check(repair=True).sound
    assert filled.check().findings == ()
    assert len(filled) == 28


def test_a_damaged_tree_of_the_catalog_is_built_anew(filled):
    before = live_rows(filled)
    filled.close()
    with closing(sqlite3.connect(filled.path / "catalog.sqlite")) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'uq_samples_live_key'"
        page = connection.execute(query).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    # The key in an entry of the index: it no longer is the one in the table.
    path = filled.path / "catalog.sqlite"
    content = bytearray(path.read_bytes())
    place = content.index(b"r11", (page - 1) * size, page * size)
    content[place : place + 3] = b"r99"
    path.write_bytes(content)
    with ValuationIndex.open(filled.path) as index:
        index.model._reader = filled.model._reader
        report = index.check()
        assert "damaged catalog" in kinds(report)
        assert "forvalue check INDEX --repair" in report.findings[0].cure
        assert index.check(repair=True).sound
        assert index.check().findings == ()
        assert index.sample("r11").id == 11
        assert live_rows(index).keys() == before.keys()


def test_a_damaged_page_of_the_catalog_is_named_and_no_file_is_deleted(filled):
    """What the catalog refers to cannot be known then."""
    filled.close()
    path = filled.path / "catalog.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        query = "SELECT rootpage FROM sqlite_schema WHERE name = 'segments'"
        page = connection.execute(query).fetchone()[0]
        size = connection.execute("PRAGMA page_size").fetchone()[0]
    content = bytearray(path.read_bytes())
    content[(page - 1) * size : page * size] = bytes(size)
    path.write_bytes(content)
    before = sorted((filled.path / "segments").iterdir())
    with ValuationIndex.open(filled.path) as index:
        report = index.check()
        assert "damaged catalog" in kinds(report)
        try:
            repaired = index.check(repair=True)
        except BrokenIndexError:
            pass
        else:
            assert not repaired.sound
    assert sorted((filled.path / "segments").iterdir()) == before


def test_a_segment_whose_name_in_the_catalog_is_damaged_is_embedded_again(filled):
    before = live_rows(filled)
    path = segments_of(filled)[0]
    uid = ("0" if path.stem[0] != "0" else "1") + path.stem[1:]
    change(filled, f"UPDATE segments SET uid = '{uid}' WHERE uid = '{path.stem}'")
    assert sorted(kinds(filled.check())) == ["missing segment", "orphan file"]
    assert filled.check(repair=True).sound
    assert filled.check().findings == ()
    assert_near(live_rows(filled), before)


def test_two_kinds_at_once_are_both_named_and_mended(filled):
    paths = segments_of(filled)
    paths[0].unlink()
    flip(paths[1], -10)
    (filled.path / "segments" / f"{UID}.safetensors").touch()
    report = filled.check()
    assert sorted(kinds(report)) == ["damaged segment", "missing segment", "orphan file"]
    repaired = filled.check(repair=True)
    assert all(finding.repaired for finding in repaired.findings)
    assert filled.check().findings == ()


def test_orphans_of_a_writer_at_work_are_none(filled):
    """It is about to record them."""
    (filled.path / "segments" / f"{UID}.safetensors").touch()
    with ValuationIndex.open(filled.path) as other, writer_lock(filled.path):
        assert other.check().findings == ()
        with pytest.raises(BusyIndexError):
            other.check(repair=True)
    assert kinds(filled.check()) == ["orphan file"]


WRITE = """
import sys
from forvalue_index import ValuationIndex
from forvalue_index.ingest import storing
storing.COMMIT_BYTES = 1
with ValuationIndex.open(sys.argv[1]) as index:
    index.model.reader.token_budget = 64
    print("ready", flush=True)
    index.add(sys.argv[2], wait=True)
    index.remove(where="metadata.topic = 'law'", wait=True)
    index.compact(wait=True)
"""


def test_a_check_while_another_process_writes_finds_nothing(filled, tmp_path):
    data = write_jsonl(tmp_path / "train.jsonl", rows(150, seed=3, words=4, prefix="w"))
    with subprocess.Popen(
        [sys.executable, "-c", WRITE, str(filled.path), str(data)],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        checks, seen = 0, set()
        while process.poll() is None:
            report = filled.check()
            assert report.findings == ()
            checks, seen = checks + 1, seen | {report.samples}
            time.sleep(0.005)
    assert process.returncode == 0
    assert checks > 5
    assert len(seen) > 2, "it looked at several states"
    assert filled.check().findings == ()
