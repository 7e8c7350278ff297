"""The wheel that users install, built and opened."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from forvalue_index.store.catalog.database import migrations_directory

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """What hatchling makes of the checkout; it needs no network."""
    target = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(target)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_has_all_modules_and_migrations(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = ROOT / "forvalue_index"
    modules = {f"forvalue_index/{p.relative_to(package)}" for p in package.rglob("*.py")}
    migrations = ROOT / "migrations"
    files = (p for pattern in ("*.py", "*.mako") for p in migrations.rglob(pattern))
    scripts = {f"forvalue_index/_migrations/{p.relative_to(migrations)}" for p in files}
    assert len(scripts) >= 4
    assert names >= modules | scripts | {"forvalue_index/py.typed"}
    assert not {name for name in names if "__pycache__" in name or name.startswith("tests")}


def test_an_index_is_created_and_migrated_from_the_wheel_alone(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    code = """
import sys
from forvalue_index.store.catalog import database
from forvalue_index.store.catalog.catalog import Catalog
print(database.migrations_directory())
with Catalog.create("sqlite:///catalog.sqlite", "uid", "print") as catalog:
    with catalog.snapshot() as snapshot:
        print(snapshot.count())
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    where, count = done.stdout.split()
    assert where == str(tmp_path / "site" / "forvalue_index" / "_migrations")
    assert count == "0"
    assert migrations_directory() == ROOT / "migrations"
