"""Fixtures: a tiny model on disk and indexes of it, for the tests of what a user touches."""

import shutil

import pytest
import torch
from models import save_tiny
from rows import rows

from forvalue_index import ValuationIndex


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """More threads only wait for each other on matrices of this size; processes inherit it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    """A Llama of 288 tokens and 32 dimensions: 9,216 gradient entries, 512 tokens of context."""
    return save_tiny(tmp_path_factory.mktemp("model"), "llama")


@pytest.fixture(scope="session")
def plain_model_dir(tmp_path_factory):
    """The same, without a chat template."""
    return save_tiny(tmp_path_factory.mktemp("plain-model"), "llama", chat_template=None)


@pytest.fixture(scope="session")
def other_model_dir(tmp_path_factory):
    """A model of the same shape with other weights."""
    return save_tiny(tmp_path_factory.mktemp("other-model"), "llama", seed=1)


@pytest.fixture
def index(tmp_path, model_dir):
    """An empty index of 256 floats a row at `tmp_path / "index"`."""
    with ValuationIndex.create(
        tmp_path / "index", str(model_dir), dim=256, geometry="raw"
    ) as created:
        yield created


@pytest.fixture(scope="session")
def built_index(tmp_path_factory, model_dir):
    """The directory of an index of 30 samples in two segments; copy it to change it."""
    path = tmp_path_factory.mktemp("built") / "index"
    with ValuationIndex.create(path, str(model_dir), dim=256, geometry="raw") as created:
        created.add(rows(20))
        created.add(rows(10, seed=1, prefix="s"))
    return path


@pytest.fixture
def filled(tmp_path, built_index):
    """The built index, copied and opened."""
    path = shutil.copytree(built_index, tmp_path / "filled")
    with ValuationIndex.open(path) as opened:
        yield opened
