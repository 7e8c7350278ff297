"""Several devices embed one data set: here the CPU as several, with a model each."""

import threading

import numpy as np
import pytest
import torch
from rows import rows
from stored_rows import assert_identical_rows, keys, small_batches, stored_rows, windows_of

from forvalue_index import ValuationIndex
from forvalue_index.devices import gpus
from forvalue_index.exceptions import BadSampleError
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.model.huggingface.backbone import Backbone
from forvalue_index.store import create, model

pytest_plugins = ("tiny",)

CPU = torch.device("cpu")
DATA = rows(60)


def give_devices(monkeypatch, count):
    monkeypatch.setattr(model, "gpus", lambda: [CPU] * count)
    for module in (create, model):
        monkeypatch.setattr(module, "default_device", lambda: CPU)


def build(path, model_dir, data=DATA, **settings):
    with ValuationIndex.create(path, str(model_dir), dim=256, **settings) as index:
        small_batches(index)
        report = index.add(data)
        assert keys(index) == [row["id"] for row in data]
    return report


@pytest.fixture
def used(monkeypatch):
    """The threads that embed, and the embedders that do, of each batch."""
    found = []
    original = Embedder.embed_batch

    def noted(self, batch, prepared):
        found.append((threading.current_thread(), self))
        return original(self, batch, prepared)

    monkeypatch.setattr(Embedder, "embed_batch", noted)
    return found


@pytest.mark.parametrize("count", [2, 3, 16])
def test_rows_are_the_same_whatever_number_of_devices_makes_them(
    tmp_path, model_dir, monkeypatch, used, count
):
    give_devices(monkeypatch, 1)
    alone = build(tmp_path / "one", model_dir, geometry="fisher,raw")
    assert {thread for thread, _ in used} == {threading.main_thread()}
    used.clear()
    give_devices(monkeypatch, count)
    together = build(tmp_path / "several", model_dir, geometry="fisher,raw")
    assert (alone.added, alone.tokens) == (together.added, together.tokens)
    n_batches = len(used)
    assert len({embedder for _, embedder in used}) == min(count, n_batches)
    assert threading.main_thread() not in {thread for thread, _ in used}
    assert_identical_rows(stored_rows(tmp_path / "several"), stored_rows(tmp_path / "one"))


def test_one_batch_needs_one_model(tmp_path, model_dir, monkeypatch, used):
    give_devices(monkeypatch, 2)
    monkeypatch.setattr(model, "load_on_other_gpus", lambda *_: pytest.fail("loaded again"))
    build(tmp_path / "index", model_dir, data=DATA[:1])
    assert len({embedder for _, embedder in used}) == 1


def test_devices_join_at_the_first_window_that_has_work_for_them(
    tmp_path, model_dir, monkeypatch, used
):
    """As where an `add` goes on that was stopped: what comes first is known."""
    give_devices(monkeypatch, 3)
    with ValuationIndex.create(tmp_path / "index", str(model_dir), dim=256) as index:
        small_batches(index)
        index.add(DATA[:19])
        used.clear()
        windows_of(monkeypatch, index, 20)
        assert index.add(DATA).added == 41
    assert len({embedder for _, embedder in used}) == 3


def test_models_on_other_devices_are_kept(tmp_path, model_dir, monkeypatch):
    load, loaded = Backbone.load, []

    def noted(*given, **how):
        loaded.append(how)
        return load(*given, **how)

    monkeypatch.setattr(Backbone, "load", noted)
    give_devices(monkeypatch, 3)
    with ValuationIndex.create(tmp_path / "index", str(model_dir), dim=256) as index:
        small_batches(index)
        for start in (0, 20, 40):
            index.add(DATA[start : start + 20])
        assert len(loaded) == 3


def test_a_device_without_the_memory_for_the_model_is_left_out(
    tmp_path, model_dir, monkeypatch, used, caplog
):
    load = Backbone.load
    loaded = []

    def refuse_second(settings, *, device, **how):
        loaded.append(device)
        if len(loaded) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")
        return load(settings, device=device)

    monkeypatch.setattr(Backbone, "load", refuse_second)
    give_devices(monkeypatch, 3)
    build(tmp_path / "index", model_dir)
    assert len(loaded) == 3
    assert len({embedder for _, embedder in used}) == 2
    assert "No memory for the model on cpu; going on without it" in caplog.text


def test_a_sample_that_one_of_them_refuses_ends_the_add_and_keeps_the_rest(
    tmp_path, model_dir, monkeypatch
):
    """As with one device: what is whole before it stays."""
    give_devices(monkeypatch, 2)
    original, refused = Embedder.embed_batch, []

    def undefined(self, batch, prepared):
        found = original(self, batch, prepared)
        finite = torch.tensor([prepared[i].sample.key != "r30" for i in batch.indices])
        refused.extend(finite[~finite])
        return found._replace(finite=finite)

    with monkeypatch.context() as patched:
        patched.setattr(Embedder, "embed_batch", undefined)
        with ValuationIndex.create(tmp_path / "index", str(model_dir), dim=256) as index:
            small_batches(index)
            with pytest.raises(BadSampleError, match="infinite or undefined numbers"):
                index.add(DATA)
            assert refused
            assert 0 < len(index) < 60
            stored = set(keys(index))
    report = build_again(tmp_path / "index")
    assert report.added == 60 - len(stored)


def build_again(path):
    with ValuationIndex.open(path) as index:
        return index.add(DATA)


@pytest.mark.gpu
@pytest.mark.skipif(len(gpus()) < 2, reason="fewer than two NVIDIA GPUs")
def test_all_gpus_of_a_machine_are_used(tmp_path, model_dir, used):
    build(tmp_path / "index", model_dir)
    devices = {embedder.reader.head.weight.device for _, embedder in used}
    assert devices == set(gpus())
    found = stored_rows(tmp_path / "index")
    assert all(np.isfinite(row.numpy()).all() for row in found.values())
