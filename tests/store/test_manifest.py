import dataclasses
import shutil

import pytest

from forvalue_index.exceptions import BrokenIndexError, SettingsMismatchError
from forvalue_index.settings import ModelIdentity, Settings
from forvalue_index.store.catalog.addresses import CATALOG, catalog_address
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.manifest import (
    MANIFEST,
    Manifest,
    is_index,
    open_catalog,
    read_manifest,
    refuse_occupied,
)

IDENTITY = ModelIdentity("w" * 32, "t" * 32, vocab_size=288, hidden_size=32)
SETTINGS = Settings(
    model="owner/name", revision="abc", template="chat", max_length=512, dtype="float32"
)


def write(path, uid="a" * 32, **settings):
    """A manifest and a catalog, without rows and tables."""
    path.mkdir()
    chosen = dataclasses.replace(SETTINGS, **settings)
    manifest = Manifest(uid, "sqlite", chosen, IDENTITY, "s" * 32)
    Catalog.create(path / CATALOG, uid, manifest.fingerprint).close()
    (path / MANIFEST).write_text(manifest.to_json(), "utf-8")
    return manifest


def test_what_was_written_is_read(tmp_path):
    written = write(tmp_path / "ix")
    manifest, catalog = open_catalog(tmp_path / "ix")
    with catalog:
        assert manifest == read_manifest(tmp_path / "ix") == written
        assert catalog.fingerprint == written.fingerprint
    assert is_index(tmp_path / "ix")


def test_nothing_there(tmp_path):
    with pytest.raises(BrokenIndexError, match=r"none does not exist; create one with: forvalue i"):
        read_manifest(tmp_path / "none")
    assert not is_index(tmp_path / "none")


def test_a_directory_of_something_else(tmp_path):
    with pytest.raises(BrokenIndexError, match="is not an index; create one with"):
        read_manifest(tmp_path)


def test_a_file_in_place_of_an_index(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(BrokenIndexError, match="file is not an index"):
        read_manifest(tmp_path / "file")


def test_a_manifest_that_is_no_text(tmp_path):
    (tmp_path / MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BrokenIndexError, match=r"index\.json cannot be read"):
        read_manifest(tmp_path)


def test_a_catalog_that_is_missing(tmp_path):
    write(tmp_path / "ix")
    (tmp_path / "ix" / CATALOG).unlink()
    with pytest.raises(BrokenIndexError, match=r"catalog\.sqlite is missing"):
        open_catalog(tmp_path / "ix")


def test_the_catalog_of_another_index(tmp_path):
    write(tmp_path / "ix")
    write(tmp_path / "other", uid="b" * 32)
    shutil.copy(tmp_path / "other" / CATALOG, tmp_path / "ix" / CATALOG)
    with pytest.raises(BrokenIndexError, match=f"holds no index {'a' * 32}"):
        open_catalog(tmp_path / "ix")


def test_the_catalog_of_other_rows(tmp_path):
    """As where index.json was restored from a backup of an index that was built anew."""
    write(tmp_path / "ix")
    write(tmp_path / "other", seed=1)
    shutil.copy(tmp_path / "other" / MANIFEST, tmp_path / "ix" / MANIFEST)
    with pytest.raises(SettingsMismatchError, match="restore both from one backup"):
        open_catalog(tmp_path / "ix")


def test_the_default_catalog_moves_with_the_index(tmp_path):
    assert catalog_address(tmp_path / "a" / ".." / "b", "sqlite") == tmp_path / "b" / CATALOG
    assert catalog_address(tmp_path, "postgresql://h/d") == "postgresql://h/d"


@pytest.mark.parametrize(
    "leftover",
    [
        "sketch.safetensors",
        "sketch.safetensors.partial",
        "index.json.partial",
        "catalog.sqlite",
        "catalog.sqlite-wal",
        "catalog.sqlite-shm",
    ],
)
def test_what_an_interrupted_creation_leaves_is_no_obstacle(tmp_path, leftover):
    (tmp_path / leftover).touch()
    (tmp_path / "segments").mkdir()
    refuse_occupied(tmp_path)


def test_other_files_are_an_obstacle(tmp_path):
    refuse_occupied(tmp_path / "none")
    refuse_occupied(tmp_path)
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(BrokenIndexError, match=r"holds other files \(thesis\.tex, \.\.\.\)"):
        refuse_occupied(tmp_path)
    with pytest.raises(BrokenIndexError, match=r"thesis\.tex is a file; name a directory"):
        refuse_occupied(tmp_path / "thesis.tex")
