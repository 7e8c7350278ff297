"""Frozen parts are read once while an index is open, and again where their file changed."""

import os
import sys

import pytest
import torch
from opened_files import opened_files
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BrokenIndexError
from forvalue_index.store.manifest import CALIBRATION, MANIFEST, TABLES

pytest_plugins = ("tiny",)

VALIDATION = rows(3, seed=2, prefix="v")
FROZEN = {MANIFEST, TABLES, CALIBRATION}


@pytest.fixture
def mapped(tmp_path, model_dir):
    """An index of two geometries that need a calibration."""
    path = tmp_path / "index"
    with ValuationIndex.create(path, str(model_dir), dim=128, geometry="kfac,fisher") as created:
        created.add(rows(12))
    return path


@pytest.fixture
def decompositions(monkeypatch):
    """The sizes of matrices whose eigenvectors were computed."""
    sizes, eigh = [], torch.linalg.eigh

    def counted(matrix, *options):
        sizes.append(len(matrix))
        return eigh(matrix, *options)

    monkeypatch.setattr(torch.linalg, "eigh", counted)
    return sizes


@pytest.mark.skipif(sys.platform != "linux", reason="files that are opened are counted by inotify")
def test_a_query_of_an_open_index_opens_each_frozen_file_once_at_most(mapped, decompositions):
    with opened_files(mapped) as names, ValuationIndex.open(mapped) as index:
        index.query(VALIDATION, rerank=10)
        first = names()
        assert {name: first[name] for name in FROZEN} == dict.fromkeys(FROZEN, 1)
        assert len(decompositions) == 1, "kfac has one"
        for options in ({}, {"rerank": 10}, {"geometry": "fisher"}, {"normalize": True}):
            index.query(VALIDATION, **options)
        index.values(VALIDATION)
        index.explain("r1", VALIDATION)
        again = names()
        assert not FROZEN & {name for name, count in again.items() if count}
        assert len(decompositions) == 1


def test_rows_of_a_kept_geometry_are_those_of_a_new_one(mapped):
    with ValuationIndex.open(mapped) as index:
        index.query(VALIDATION)
        kept = index.query(VALIDATION)
    with ValuationIndex.open(mapped) as index:
        new = index.query(VALIDATION)
    for one, other in ((kept.helpful, new.helpful), (kept.harmful, new.harmful)):
        assert [(hit.id, hit.score) for hit in one] == [(hit.id, hit.score) for hit in other]


def test_a_calibration_that_another_process_froze_is_seen(tmp_path, model_dir):
    path = tmp_path / "index"
    options = {"dim": 128, "geometry": "fisher"}
    with (
        ValuationIndex.create(path, str(model_dir), **options) as reader,
        ValuationIndex.open(path) as writer,
    ):
        assert reader.calibration() is None
        first = writer.calibrate(rows(5))
        assert reader.calibration() == first
        geometry = reader.model.geometry("fisher")
        assert reader.model.geometry("fisher") is geometry
        second = writer.calibrate(rows(5, seed=7))
        assert reader.calibration() == second != first
        assert reader.model.geometry("fisher") is not geometry
        writer.add(rows(6))
        assert len(reader.query(VALIDATION).helpful) == 6


@pytest.mark.parametrize("name", [TABLES, CALIBRATION])
def test_a_file_that_changed_is_read_anew(mapped, name):
    with ValuationIndex.open(mapped) as index:
        frozen = index.storage.frozen
        read = frozen.hash_tables if name == TABLES else frozen.calibration
        first, content = read(), (mapped / name).read_bytes()
        assert read() is first
        os.truncate(mapped / name, len(content) - 5)
        with pytest.raises(BrokenIndexError, match=name):
            read()
        (mapped / name).write_bytes(content)
        assert read() is not first
        assert read() is read()


def test_check_looks_at_what_lies_there(mapped):
    """Also where nothing but the content changed: the time of a file can be set."""
    path = mapped / TABLES
    with ValuationIndex.open(mapped) as index:
        index.query(VALIDATION)
        times, content = path.stat(), bytearray(path.read_bytes())
        content[-3] ^= 1
        with path.open("r+b") as file:
            file.write(content)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        assert [finding.kind for finding in index.check().findings] == ["damaged hash tables"]
