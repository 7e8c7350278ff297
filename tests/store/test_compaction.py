import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rows import rows

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BrokenIndexError, ForValueError
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.search.building import RowKind, search_index
from forvalue_index.store import compaction
from forvalue_index.store.compaction import Group, plan_groups
from forvalue_index.store.records import SegmentRecord, StoredSegment

pytest_plugins = ("tiny",)

VALIDATION = rows(2, seed=2, prefix="v")


def segments_of(*sizes, gap=0):
    """Segments of that many rows of 10 bytes; names are numbers."""
    found, first_id = [], 0
    for number, n_rows in enumerate(sizes):
        found.append(StoredSegment(first_id, SegmentRecord(str(number), n_rows, 10 * n_rows, "")))
        first_id += n_rows + gap
    return found


def planned(segments, removed=(), target_bytes=100):
    groups = plan_groups(segments, np.array(removed, dtype=np.int64), target_bytes=target_bytes)
    return [("".join(s.file.uid for s in group.segments), group.removed) for group in groups]


@pytest.mark.parametrize(
    ("sizes", "removed", "expected"),
    [
        ((), (), []),
        ((5,), (), []),
        ((5, 5), (), [("01", 0)]),
        ((5, 6), (), []),
        ((5, 5, 5), (), [("01", 0)]),
        ((4, 3, 3, 9, 1, 10, 2, 2), (), [("012", 0), ("34", 0), ("67", 0)]),
        ((20, 5, 5), (), [("12", 0)]),
        ((20,), (19,), [("0", 1)]),
        ((10, 10), (3,), [("0", 1)]),
        # What is dropped makes room for a neighbour.
        ((10, 5), (0, 1, 2, 3, 4), [("01", 5)]),
        ((5, 5), (0, 1, 2, 3, 4, 5, 6, 7, 8, 9), [("01", 10)]),
        ((10, 1, 10), (10,), [("01", 1)]),
    ],
)
def test_neighbours_that_fit_together_are_merged(sizes, removed, expected):
    assert planned(segments_of(*sizes), removed) == expected


def test_a_removed_id_counts_for_the_segment_that_it_lies_in():
    segments = segments_of(9, 9, 9, gap=100)
    assert planned(segments, [108 + 8 + 1]) == [("1", 1)]
    assert planned(segments, [0, 8, 218, 226]) == [("0", 2), ("2", 2)]


def test_a_group_has_no_more_segments_than_fit_into_a_statement():
    found = plan_groups(segments_of(*[1] * 1200), np.empty(0, np.int64), target_bytes=10**9)
    assert [len(group.segments) for group in found] == [500, 500, 200]


@st.composite
def histories(draw):
    sizes = draw(st.lists(st.integers(1, 12), max_size=30))
    segments = segments_of(*sizes, gap=draw(st.integers(0, 3)))
    ids = [s.first_id + i for s in segments for i in range(s.file.n_rows)]
    removed = draw(st.sets(st.sampled_from(ids))) if ids else set()
    return segments, sorted(removed), draw(st.integers(1, 200))


def merged(group, removed):
    """What `_rewrite` makes of a group; none where nothing is left."""
    n_rows = sum(s.file.n_rows for s in group.segments) - group.removed
    ids = [s.first_id + i for s in group.segments for i in range(s.file.n_rows)]
    left = [id_ for id_ in ids if id_ not in removed]
    record = SegmentRecord(group.segments[0].file.uid, n_rows, 10 * n_rows, "")
    assert len(left) == n_rows
    return [StoredSegment(left[0], record)] if left else []


@given(histories())
def test_groups_are_neighbours_within_bounds_and_nothing_is_left_to_merge(history):
    segments, removed, target_bytes = history
    groups = plan_groups(segments, np.array(removed, np.int64), target_bytes=target_bytes)
    places = [segments.index(s) for group in groups for s in group.segments]
    assert places == sorted(set(places)), "each segment once, in order"
    for group in groups:
        first, last = (segments.index(group.segments[i]) for i in (0, -1))
        assert list(group.segments) == segments[first : last + 1]
        kept = 10 * (sum(s.file.n_rows for s in group.segments) - group.removed)
        assert kept <= target_bytes + 1e-6 or len(group.segments) == 1
        assert group.removed or len(group.segments) > 1
    assert sum(group.removed for group in groups) == len(removed)

    by_first = {group.segments[0]: group for group in groups}
    grouped = {s for group in groups for s in group.segments}
    after = []
    for segment in segments:
        if segment in by_first:
            after += merged(by_first[segment], set(removed))
        elif segment not in grouped:
            after.append(segment)
    again = plan_groups(after, np.empty(0, np.int64), target_bytes=target_bytes)
    assert again == [], "compacting twice does nothing"
    assert isinstance(groups, list)
    assert all(isinstance(group, Group) for group in groups)


def contents(index):
    """Id -> row as stored, of live samples, and their texts."""
    with index.storage.view() as view:
        blocks = list(view.blocks("raw"))
        ids = [id_ for block in blocks for id_ in block.ids.tolist()]
        found = torch.cat([block.rows for block in blocks]) if blocks else torch.empty(0)
        stored = view.catalog.samples(ids)
    samples = [(s.id, s.sample, s.statistics) for s in stored.values()]
    return ids, found, sorted(samples, key=lambda entry: entry[0])


def assert_same(found, expected):
    assert found[0] == expected[0]
    assert found[1].equal(expected[1])
    assert found[2] == expected[2]


def files(index):
    return sorted(p.name for p in (index.path / "segments").iterdir())


def recorded(index):
    with index.storage.catalog.snapshot() as snapshot:
        return sorted(f"{s.file.uid}.safetensors" for s in snapshot.segments())


def all_ids(index):
    with index.storage.catalog.snapshot() as snapshot:
        return sorted({*snapshot.live_ids().tolist(), *snapshot.removed_ids().tolist()})


def test_live_samples_are_the_same_to_the_bit_and_removed_ones_are_gone(filled):
    filled.add(rows(5, seed=3, prefix="t"))
    filled.remove(["r0", "r7", "s9", "t4"])
    before = contents(filled)
    report = filled.compact()
    assert (report.segments_before, report.segments_after, report.dropped) == (3, 1, 4)
    assert report.bytes_after < report.bytes_before
    assert_same(contents(filled), before)
    assert all_ids(filled) == before[0]
    assert files(filled) == recorded(filled)
    assert len(files(filled)) == 1
    assert report.bytes_after == (filled.path / "segments" / files(filled)[0]).stat().st_size
    with pytest.raises(ForValueError, match="no sample with the key or id 'r7'"):
        filled.sample("r7")
    assert filled.check().findings == ()


def test_compacting_twice_does_nothing(filled):
    filled.remove(["r3"])
    filled.compact()
    version, names = filled.version, files(filled)
    report = filled.compact()
    assert (report.segments_before, report.segments_after, report.dropped) == (1, 1, 0)
    assert (filled.version, files(filled)) == (version, names)


def test_segments_that_are_large_enough_stay_as_they_are(filled, monkeypatch):
    names = files(filled)
    largest = max((filled.path / "segments" / name).stat().st_size for name in names)
    monkeypatch.setattr(compaction, "TARGET_BYTES", largest)
    report = filled.compact()
    assert (report.segments_before, report.segments_after) == (2, 2)
    assert files(filled) == names


def test_an_open_view_answers_though_its_files_are_deleted(filled):
    filled.remove(["r1"])
    before = contents(filled)
    names = files(filled)
    with filled.storage.view() as view:
        filled.compact()
        assert not set(names) & set(files(filled))
        blocks = list(view.blocks("raw"))
        assert torch.cat([block.rows for block in blocks]).equal(before[1])
        assert len(view.catalog.samples(before[0])) == len(search_index(view, RowKind("raw"))) == 29


def test_a_query_answers_as_before(filled):
    filled.remove(["r1"])
    before = filled.query(VALIDATION, top=29)
    filled.compact()
    after = filled.query(VALIDATION, top=29)
    assert (after.helpful, after.harmful) == (before.helpful, before.harmful)
    assert after.index_version > before.index_version


def test_a_forgotten_sample_is_embedded_again(filled, monkeypatch):
    embedded = []
    original = Embedder.embed_batch

    def counting(self, batch, prepared):
        embedded.extend(batch.indices)
        return original(self, batch, prepared)

    monkeypatch.setattr(Embedder, "embed_batch", counting)
    filled.remove(["r5"])
    filled.compact()
    report = filled.add(rows(20))
    assert (report.added, report.known, report.restored, len(embedded)) == (1, 19, 0, 1)
    assert filled.sample("r5").id == 30, "ids are never given twice"
    assert len(filled) == 30


def test_an_index_whose_samples_were_all_removed_has_no_segment(filled):
    assert filled.remove(where="id >= 0") == 30
    report = filled.compact()
    assert (report.segments_after, report.bytes_after, report.dropped) == (0, 0, 30)
    assert (files(filled), recorded(filled), all_ids(filled), len(filled)) == ([], [], [], 0)
    assert filled.query(VALIDATION).searched == 0
    assert filled.add(rows(3)).added == 3
    assert filled.check().findings == ()


def test_an_empty_index_is_compacted(index):
    report = index.compact()
    assert (report.segments_before, report.segments_after, report.dropped) == (0, 0, 0)


def flip_a_row(path):
    content = bytearray(path.read_bytes())
    content[-40] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("damage", [flip_a_row, lambda path: path.unlink()])
def test_a_damaged_segment_stops_it_and_nothing_is_lost(filled, damage):
    filled.remove(["r1", "s1"])
    names, version, ids = files(filled), filled.version, all_ids(filled)
    damage(filled.path / "segments" / names[1])
    left = files(filled)
    with pytest.raises(BrokenIndexError, match=r"forvalue check INDEX --repair"):
        filled.compact()
    assert (files(filled), filled.version, all_ids(filled)) == (left, version, ids)


def test_progress_counts_groups(filled):
    steps = []
    filled.model.on_progress = steps.append
    filled.compact()
    assert [(s.stage, s.done, s.total) for s in steps] == [
        ("compacting", 0, 1),
        ("compacting", 1, 1),
    ]


def test_what_was_merged_before_an_error_stays_merged(filled, monkeypatch):
    filled.add(rows(5, seed=3, prefix="t"))
    filled.add(rows(5, seed=4, prefix="u"))
    before = contents(filled)
    largest = max(p.stat().st_size for p in (filled.path / "segments").iterdir())
    monkeypatch.setattr(compaction, "TARGET_BYTES", largest + 1)
    filled.remove(["r0"])

    def stop(step):
        if step.done == 1:
            raise KeyboardInterrupt

    filled.model.on_progress = stop
    with pytest.raises(KeyboardInterrupt):
        filled.compact()
    filled.model.on_progress = lambda _: None
    assert filled.check().findings == ()
    left = [place for place, id_ in enumerate(before[0]) if id_ != 0]
    assert contents(filled)[1].equal(before[1][left])
    filled.compact()
    assert contents(filled)[1].equal(before[1][left])


def test_a_compacted_index_is_what_another_process_opens(filled):
    filled.remove(["r1"])
    before = contents(filled)
    filled.compact()
    with ValuationIndex.open(filled.path) as other:
        assert_same(contents(other), before)


def test_rows_of_int8_are_valued_and_merged_as_they_are_stored(tmp_path, model_dir, built_index):
    path = tmp_path / "int8"
    with ValuationIndex.create(path, str(model_dir), dim=256, row_dtype="int8") as index:
        for start in (0, 10):
            index.add(rows(20)[start : start + 10])
        index.remove(["r3"])
        before, values = contents(index), index.values(VALIDATION)
        index.compact()
        assert_same(contents(index), before)
        assert len(files(index)) == 1
        after = index.values(VALIDATION)
        best = index.query(VALIDATION, top=19).helpful
    np.testing.assert_allclose(after.scores, values.scores, rtol=1e-6)
    expected = dict(zip(after.ids.tolist(), after.scores.tolist(), strict=True))
    assert {hit.id: hit.score for hit in best} == pytest.approx(expected, rel=1e-5)
    with ValuationIndex.open(built_index) as halved:  # the same samples first, in bfloat16
        norms = torch.linalg.vector_norm(before[1], dim=1)
        kept = torch.tensor([i for i in range(20) if i != 3])
        error = (before[1] - contents(halved)[1][kept]).norm(dim=1) / norms
    assert 0.001 < error.max() < 0.05
