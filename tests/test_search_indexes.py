"""Search indexes over the segments of an index: kinds, kept codes, removals, damage."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from test_storage import DIM, create, fill, random_rows, samples, statistics

from forvalue_index.exceptions import UsageError
from forvalue_index.search import building, coded, ranking
from forvalue_index.search.building import RowKind, search_index, update_codes
from forvalue_index.search.code_files import CodeFiles, Tuned
from forvalue_index.search.coded import CodedIndex
from forvalue_index.search.flat import FlatIndex
from forvalue_index.search.quantizer import CODED_KINDS, Quantizer
from forvalue_index.store.rows import quantized

RAW, COSINE = RowKind("raw"), RowKind("raw", normalize=True)


@pytest.fixture(autouse=True)
def scans_little(monkeypatch):
    """So that small indexes search codes, too."""
    monkeypatch.setattr(ranking, "SCANNED", 4)
    monkeypatch.setattr(coded, "LEAST_CANDIDATES", 400)


def in_three_segments(path, row_dtype):
    """A storage of 300 samples, of which some are removed."""
    made = create(path, row_dtype=row_dtype)
    for number in range(3):
        fill(made, 100, prefix=f"p{number}", seed=number)
    made.catalog.remove([0, 5, 9, 250])
    return made


@pytest.fixture(params=["bfloat16", "int8"])
def storage(tmp_path, request):
    made = in_three_segments(tmp_path / "ix", request.param)
    yield made
    made.close()


@pytest.fixture(params=CODED_KINDS)
def kind(request):
    return request.param


QUERIES = random_rows(4, seed=9).numpy()


def answers(storage, rows=RAW, kind=None, k=20, allowed=None):
    with storage.view() as view:
        index = search_index(view, rows, kind=kind)
        return index, [index.search(sign * QUERIES, k, allowed) for sign in (1, -1)]


def assert_same(found, expected):
    for end, other in zip(found, expected, strict=True):
        for (ids, scores), (true_ids, true_scores) in zip(end, other, strict=True):
            assert ids.tolist() == true_ids.tolist()
            np.testing.assert_allclose(scores, true_scores, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [RAW, COSINE])
@pytest.mark.parametrize("allowed", [None, np.arange(0, 300, 3)])
def test_all_kinds_give_the_same_answers_where_candidates_are_all(storage, kind, rows, allowed):
    _, expected = answers(storage, rows, "flat", allowed=allowed)
    index, found = answers(storage, rows, kind, allowed=allowed)
    assert isinstance(index, CodedIndex)
    assert len(index) == 296
    assert_same(found, expected)
    assert not {0, 5, 9, 250} & {int(i) for end in found for ids, _ in end for i in ids}


def code_files(storage, kind, rows=RAW):
    return sorted((storage.path / "search" / rows.name / kind).glob("*.safetensors"))


def test_codes_are_kept_and_read_again(storage, kind, monkeypatch):
    _, expected = answers(storage, kind=kind)
    files = code_files(storage, kind)
    assert len(files) == 3 + 1
    encoded = []
    whole = building._encoded
    monkeypatch.setattr(
        building, "_encoded", lambda file, *rest: encoded.append(file) or whole(file, *rest)
    )
    monkeypatch.setattr(Quantizer, "train", lambda *_, **__: pytest.fail("trained again"))
    _, found = answers(storage, kind=kind)
    assert_same(found, expected)
    assert encoded == []
    # A new segment is encoded alone.
    fill(storage, 50, prefix="new", seed=7)
    index, _ = answers(storage, kind=kind)
    assert len(index) == 346
    assert len(encoded) == 1


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("damage", [truncate, flip, empty, folder, os.unlink])
@pytest.mark.parametrize("which", [0, -1])
def test_damaged_codes_are_made_anew(storage, kind, damage, which):
    """Of a segment, or the quantizer's, which all codes name."""
    _, expected = answers(storage, kind=kind)
    names = [path.name for path in code_files(storage, kind)]
    assert names[-1] == "quantizer.safetensors"
    damage(code_files(storage, kind)[which])
    _, found = answers(storage, kind=kind)
    if kind == "rabitq":  # lists that are learnt anew may be others
        assert_same(found, expected)


def test_codes_of_another_index_are_not_taken(tmp_path, storage, kind):
    other = create(tmp_path / "other", row_dtype="bfloat16")
    fill(other, 300, prefix="o", seed=5)
    with other.view() as view:
        search_index(view, RAW, kind=kind)
    other.close()
    _, expected = answers(storage, kind=kind)
    mine, theirs = code_files(storage, kind), storage.path.parent / "other/search/raw" / kind
    for path in mine:
        source = next(p for p in theirs.iterdir() if p.name != "quantizer.safetensors")
        shutil.copy(source, path)
    index, found = answers(storage, kind=kind)
    assert len(index) == 296
    if kind == "rabitq":
        assert_same(found, expected)


def test_another_version_of_faiss_makes_codes_anew(storage, monkeypatch):
    answers(storage, kind="rabitq")
    files = CodeFiles(storage.path / "search", "raw", "rabitq")
    assert files.quantizer() is not None
    monkeypatch.setattr("forvalue_index.search.code_files._versions", lambda: {"faiss": "0.1"})
    assert files.quantizer() is None


def test_a_disk_that_cannot_be_written_costs_time_alone(storage, kind, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", refuse)
    index, _ = answers(storage, kind=kind)
    assert len(index) == 296
    assert not code_files(storage, kind)


def test_updating_encodes_what_is_new_and_forgets_what_is_gone(storage):
    with storage.view() as view:
        update_codes(view)
        assert not view.search_path.exists(), "so few rows are searched without"
        search_index(view, COSINE, kind="rabitq")
    gone = storage.path / "search/raw.cosine/rabitq" / f"{'0' * 32}.safetensors"
    gone.write_bytes(b"")
    fill(storage, 10, prefix="n", seed=4)
    with storage.view() as view:
        update_codes(view)
        uids = {file.uid for file in view.files}
    names = {path.stem for path in code_files(storage, "rabitq", COSINE)}
    assert names == uids | {"quantizer"}
    assert len(uids) == 4
    assert not (storage.path / "search/raw").exists()


def test_updating_reads_no_codes_that_are_there(storage, kind, monkeypatch):
    """They are checked when they are searched: damage then costs the time to encode a segment."""
    answers(storage, kind=kind)
    _, expected = answers(storage, kind=kind)
    flip(code_files(storage, kind)[0])
    before = [path.stat().st_mtime_ns for path in code_files(storage, kind)]
    with storage.view() as view, monkeypatch.context() as patched:
        patched.setattr(building, "_encoded", lambda *_: pytest.fail("encoded again"))
        update_codes(view)
    assert [path.stat().st_mtime_ns for path in code_files(storage, kind)] == before
    _, found = answers(storage, kind=kind)
    assert_same(found, expected)


def test_updating_replaces_codes_of_another_quantizer(storage, kind):
    answers(storage, kind=kind)
    code_files(storage, kind)[-1].unlink()
    fill(storage, 10, prefix="n", seed=4)
    with storage.view() as view:
        update_codes(view)
        assert not view.search_path.joinpath("raw", kind, "quantizer.safetensors").exists()
        (view.search_path / "raw" / kind / "quantizer.safetensors").write_bytes(b"damaged")
        update_codes(view)
        files = CodeFiles(view.search_path, "raw", kind)
        quantizer = files.quantizer()
        sizes = {file.uid: len(file.ids) for file in view.files}
        assert all(files.codes(uid, n, quantizer) is not None for uid, n in sizes.items())


def test_an_index_that_has_grown_large_gets_codes(storage, monkeypatch):
    monkeypatch.setattr("forvalue_index.search.kinds.RABITQ_FROM", 200)
    monkeypatch.setattr("forvalue_index.search.gpu.gpu_room", dict)
    with storage.view() as view:
        update_codes(view)
        assert isinstance(search_index(view, RAW), CodedIndex)
        assert isinstance(search_index(view, RAW, kind="flat"), FlatIndex)
    assert len(code_files(storage, "rabitq")) == 4


def test_too_few_rows_for_lists(tmp_path):
    made = create(tmp_path / "ix")
    fill(made, 77)
    with (
        made.view() as view,
        pytest.raises(UsageError, match=r"at least 78 rows.*has 77; use flat"),
    ):
        search_index(view, RAW, kind="ivf-rabitq")
    made.close()


def test_an_empty_index(tmp_path, kind):
    made = create(tmp_path / "ix")
    index, found = answers(made, kind=kind)
    assert len(index) == 0
    assert all(len(ids) == 0 for end in found for ids, _ in end)
    made.close()


def test_what_was_tuned_is_kept_and_damage_is_as_if_it_never_was(tmp_path):
    files = CodeFiles(tmp_path / "search", "raw", "rabitq")
    assert files.tuned(50) == Tuned()
    files.keep_tuned(Tuned(7, 3, 0.99, 50))
    assert files.tuned(100) == Tuned(7, 3, 0.99, 50)
    assert files.tuned(101) == Tuned(), "it has outgrown that"
    for text in (
        "",
        "[]",
        '{"refine": 3, "more": 1}',
        "{",
        '{"refine": 0, "rows": 50}',
        '{"refine": "x"}',
    ):
        (tmp_path / "search/raw/rabitq/tuned.json").write_text(text)
        assert files.tuned(50) == Tuned()


@pytest.mark.parametrize("link", ["search", "search/raw", "search/raw/rabitq"])
def test_a_link_out_of_the_index_is_not_followed(storage, tmp_path, link):
    """An index from a stranger must not have files of others read, written or deleted."""
    answers(storage, kind="rabitq")
    moved = tmp_path / "elsewhere"
    (storage.path / link).rename(moved)
    (storage.path / link).symlink_to(moved)
    folder = moved / Path("search/raw/rabitq").relative_to(link)
    other = folder / f"{'a' * 32}.safetensors"
    other.write_bytes(b"of somebody else")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    fill(storage, 20, prefix="more", seed=8)
    index, _ = answers(storage, kind="rabitq")
    assert len(index) == 316
    with storage.view() as view:
        update_codes(view)
    CodeFiles(storage.path / "search", "raw", "rabitq").keep_tuned(Tuned(3))
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def test_rows_of_ids_in_any_order(storage):
    ids = np.array([299, 1, 100, 7, 199, 3, 200])
    written = torch.cat([random_rows(100, seed) for seed in range(3)])
    everything = quantized(written, storage.manifest.settings.row_dtype).floats()
    with storage.view() as view:
        assert torch.from_numpy(view.rows("raw", ids)).equal(everything[ids])
        norms = np.linalg.norm(view.rows("raw", ids, normalize=True), axis=1)
        np.testing.assert_allclose(norms, np.ones(7), rtol=1e-6)
        assert view.rows("raw", ids[:0]).shape == (0, DIM)


def test_each_geometry_has_codes_of_its_own(tmp_path):
    made = create(tmp_path / "ix", geometry="fisher,raw")
    rows = {"fisher": random_rows(100), "raw": random_rows(100, seed=1)}
    made.append(made.quantized(rows), samples(100), statistics(100))
    for name, expected in rows.items():
        _, (top, _) = answers(made, RowKind(name), "rabitq", k=5)
        true = np.argsort(-(QUERIES[0] @ expected.numpy().T))[:5]
        assert top[0][0].tolist() == true.tolist()
    made.close()
