import io
import json
from contextlib import closing
from datetime import date

import pytest
from vision_models import tiny_image

from forvalue_index.ingest.rejects import Rejects
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.sample import BadRow, bad_row


def test_no_file_is_made_where_nothing_is_rejected(tmp_path):
    with closing(Rejects(tmp_path / "rejected")) as rejects:
        assert (rejects.count, rejects.path) == (0, None)
    assert list(tmp_path.iterdir()) == []


def test_each_row_is_a_line_with_place_reason_and_all_that_it_held(tmp_path):
    rows = [
        BadRow("a.jsonl", 3, "it is empty", {"prompt": "ü → \n", "when": date(2026, 1, 2)}),
        BadRow("b.csv", 1, "no row", None),
    ]
    with closing(Rejects(tmp_path / "rejected")) as rejects:
        for row in rows:
            rejects.write(row)
        assert rejects.count == 2
    with open(rejects.path, encoding="utf-8") as file:  # noqa: PTH123
        lines = [json.loads(line) for line in file]
    assert lines == [
        {
            "source": "a.jsonl",
            "position": 3,
            "reason": "it is empty",
            "row": {"prompt": "ü → \n", "when": "2026-01-02"},
        },
        {"source": "b.csv", "position": 1, "reason": "no row", "row": None},
    ]


def test_files_of_two_runs_lie_beside_each_other_in_order_of_time(tmp_path):
    paths = []
    for number in range(3):
        with closing(Rejects(tmp_path)) as rejects:
            rejects.write(BadRow("a", number, "bad"))
        paths.append(rejects.path)
    assert paths == sorted(set(paths))
    assert all(path.startswith(str(tmp_path)) and path.endswith("Z.jsonl") for path in paths)


def test_half_a_surrogate_pair_is_written_down(tmp_path):
    with closing(Rejects(tmp_path)) as rejects:
        rejects.write(BadRow("a", 1, "half a pair", {"text": "\ud83d"}))
    with open(rejects.path, encoding="utf-8") as file:  # noqa: PTH123
        assert json.loads(file.read())["row"] == {"text": "\ud83d"}


@pytest.mark.parametrize("given", ["row", "sample"])
def test_a_rejected_image_can_be_added_again(given, tmp_path):
    """Of standard input nothing else is left of it."""
    file = io.BytesIO()
    tiny_image(30, 20, 0).save(file, "PNG")
    row = {"prompt": "what is this", "response": "x", "image": {"bytes": file.getvalue()}, "n": 1}
    sample = to_sample(row)
    bad = BadRow("a", 1, "r", row) if given == "row" else bad_row(sample, "r")
    with closing(Rejects(tmp_path)) as rejects:
        rejects.write(bad)
    with open(rejects.path, encoding="utf-8") as lines:  # noqa: PTH123
        found = to_sample(json.loads(lines.read())["row"])
    assert found.content_hash == sample.content_hash
    assert [(i.digest, i.at) for i in found.images] == [(i.digest, i.at) for i in sample.images]
    assert found.metadata == {"n": 1}
