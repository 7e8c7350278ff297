"""An index whose rows lie on GPUs answers as one whose rows do not."""

import shutil

import numpy as np
import pytest
import torch
from gpu_devices import DEVICES
from rows import rows
from search_answers import COSINE, RAW, answers, assert_same, in_three_segments
from stored_samples import DIM

from forvalue_index import ValuationIndex
from forvalue_index.devices import gpu_room, gpus
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.search import gpu as gpu_search
from forvalue_index.search import ranking
from forvalue_index.search.flat import FlatIndex
from forvalue_index.search.gpu import GpuIndex
from forvalue_index.valuation import held_search

pytest_plugins = ("tiny",)

TRAINING = rows(14)
VALIDATION = rows(3, seed=2, prefix="v")


@pytest.fixture(params=DEVICES)
def with_gpus(request, monkeypatch):
    """Gives the GPUs that there are to indexes, or the CPU as one; returns what says their room."""
    if request.param == "cpu":
        monkeypatch.setattr(held_search, "gpus", lambda: [torch.device("cpu")])

    def give(n_bytes=None):
        free = gpu_room() if request.param == "cuda" else {torch.device("cpu"): 10**9}
        room = free if n_bytes is None else dict.fromkeys(free, n_bytes)
        monkeypatch.setattr(gpu_search, "gpu_room", lambda: room)

    return give


@pytest.fixture(params=["bfloat16", "int8", "float32"])
def storage(tmp_path, request):
    made = in_three_segments(tmp_path / "ix", request.param)
    yield made
    made.close()


@pytest.mark.skipif(bool(gpus()), reason="there is an NVIDIA GPU")
def test_without_gpus_rows_are_searched_by_faiss(storage):
    assert isinstance(answers(storage)[0], FlatIndex)


@pytest.mark.parametrize("kind", [RAW, COSINE])
@pytest.mark.parametrize("allowed", [None, np.arange(0, 300, 3)])
def test_answers_are_those_of_faiss(storage, with_gpus, monkeypatch, kind, allowed):
    monkeypatch.setattr(ranking, "SCANNED", 4)
    with monkeypatch.context() as without:
        without.setattr(gpu_search, "gpu_room", dict)
        expected_index, expected = answers(storage, kind, allowed=allowed)
    assert isinstance(expected_index, FlatIndex)
    with_gpus()
    index, found = answers(storage, kind, allowed=allowed)
    assert isinstance(index, GpuIndex)
    assert len(index) == 296
    assert_same(found, expected)
    some = np.array([299, 1, 100])
    np.testing.assert_allclose(index.rows(some), expected_index.rows(some), rtol=1e-6, atol=1e-7)


def test_codes_are_searched_where_they_are_asked_for(storage, with_gpus):
    with_gpus()
    assert answers(storage, kind="rabitq")[0].kind == "rabitq"
    assert isinstance(answers(storage, kind="flat")[0], GpuIndex)


def test_an_index_that_grows_on_gpus_stays_there(storage, with_gpus, monkeypatch):
    """Codes are for the sizes that FAISS is slow at."""
    monkeypatch.setattr("forvalue_index.search.kinds.RABITQ_FROM", 200)
    with_gpus()
    assert isinstance(answers(storage)[0], GpuIndex)


def test_rows_that_do_not_fit_are_searched_on_the_cpu_and_that_is_said(storage, with_gpus, caplog):
    _, expected = answers(storage)
    with_gpus(296 * DIM)
    index, found = answers(storage)
    assert isinstance(index, FlatIndex)
    assert_same(found, expected)
    assert "296 rows of 0.0 GB, and room for 0.0 GB on c" in caplog.text
    assert "searching on the CPU" in caplog.text


def test_memory_that_runs_out_while_rows_are_copied_is_said(
    storage, with_gpus, monkeypatch, caplog
):
    _, expected = answers(storage)

    def refuse(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    with_gpus()
    monkeypatch.setattr(GpuIndex, "put", refuse)
    index, found = answers(storage)
    assert isinstance(index, FlatIndex)
    assert_same(found, expected)
    assert "ran out; searching on the CPU" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not gpus(), reason="no NVIDIA GPU")
def test_a_gpu_whose_memory_another_program_took_is_left_alone(storage, monkeypatch, caplog):
    room = dict.fromkeys(gpus(), 10**12)
    monkeypatch.setattr(gpu_search, "gpu_room", lambda: room)
    torch.cuda.empty_cache()
    for gpu in room:
        torch.cuda.set_per_process_memory_fraction(1e-9, gpu)
    try:
        index, _ = answers(storage)
    finally:
        for gpu in room:
            torch.cuda.set_per_process_memory_fraction(1.0, gpu)
    assert isinstance(index, FlatIndex)
    assert "searching on the CPU" in caplog.text


@pytest.fixture(scope="module")
def place(tmp_path_factory, model_dir):
    path = tmp_path_factory.mktemp("gpus") / "index"
    settings = {"dim": 512, "geometry": "raw,fisher", "dtype": "float32"}
    with ValuationIndex.create(path, str(model_dir), **settings) as created:
        created.add(TRAINING)
        created.remove(["r3"])
    return path


HOW = [{}, {"normalize": True}, {"whiten": True}, {"geometry": "fisher"}, {"where": "key = 'r5'"}]


@pytest.mark.parametrize("how", HOW, ids=str)
def test_queries_and_values_are_the_same(place, with_gpus, tmp_path, how):
    with ValuationIndex.open(place) as index:
        values, query = index.values(VALIDATION, **how), index.query(VALIDATION, **how)
    with_gpus()
    with ValuationIndex.open(place) as index:
        found = index.values(VALIDATION, output=tmp_path / "v.csv", **how)
        (valuer,) = index._search._held.values()
        assert isinstance(valuer.search, GpuIndex)
        asked = index.query(VALIDATION, **how)
        assert [*index._search._held.values()] == [valuer], "rows are loaded once"
    assert found.ids.tolist() == values.ids.tolist()
    assert len(found.ids) == (1 if "where" in how else 13)
    np.testing.assert_allclose(found.scores, values.scores, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(found.stderrs, values.stderrs, rtol=1e-4)
    assert np.isnan(found.stderrs).all() == ("whiten" in how)
    assert len((tmp_path / "v.csv").read_text().splitlines()) == 1 + len(found.ids)
    for mine, theirs in ((asked.helpful, query.helpful), (asked.harmful, query.harmful)):
        assert [hit.id for hit in mine] == [hit.id for hit in theirs]
    assert asked.search == "flat"


def test_values_of_rows_that_do_not_fit_are_scanned(place, with_gpus, caplog):
    with ValuationIndex.open(place) as index:
        values = index.values(VALIDATION)
    with_gpus(100)
    with ValuationIndex.open(place) as index:
        found = index.values(VALIDATION)
        assert not index._search._held, "nothing is loaded that is not used"
    np.testing.assert_allclose(found.scores, values.scores, rtol=1e-5)
    assert "searching on the CPU" in caplog.text


def test_memory_that_runs_out_in_a_search_is_said_and_the_cpu_searches_from_then_on(
    place, with_gpus, monkeypatch, caplog
):
    with ValuationIndex.open(place) as index:
        expected, values = index.query(VALIDATION), index.values(VALIDATION)
    tried = []

    def refuse(self, *_):
        tried.append(self)
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 MiB")

    with_gpus()
    monkeypatch.setattr(GpuIndex, "search", refuse)
    monkeypatch.setattr(GpuIndex, "blocks", refuse)
    for ask in ("query", "values", "query"):
        caplog.clear()
        with ValuationIndex.open(place) as index:
            for _ in range(2):
                found = getattr(index, ask)(VALIDATION)
                if ask == "query":
                    assert [hit.id for hit in found.harmful] == [h.id for h in expected.harmful]
                else:
                    np.testing.assert_allclose(found.scores, values.scores, rtol=1e-5)
            index.query(VALIDATION)
        assert len(tried) == 1
        assert caplog.text.count("No memory on the GPUs to score rows; going on with the CPU") == 1
        tried.clear()


def test_values_with_another_search_are_scanned(place, with_gpus):
    with_gpus()
    with ValuationIndex.open(place) as index:
        index.values(VALIDATION, search="rabitq")
        assert not index._search._held
        assert index.query(VALIDATION, search="rabitq").search == "rabitq"


def test_rows_leave_the_gpus_before_the_model_reads(place, with_gpus, tmp_path, monkeypatch):
    """They may fill all memory but a reserve, and are of no use once there are new ones."""
    held = []
    original = Embedder.embed_batch

    def noted(self, batch, prepared):
        held.append(dict(index._search._held))
        return original(self, batch, prepared)

    with_gpus()
    copy = shutil.copytree(place, tmp_path / "index")
    with ValuationIndex.open(copy) as index:
        index.query(VALIDATION)
        assert index._search._held
        monkeypatch.setattr(Embedder, "embed_batch", noted)
        index.add(rows(3, seed=5, prefix="new"))
    assert held == [{}]
