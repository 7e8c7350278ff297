"""What a user does with samples that have images, from the command line, and all that can go wrong.

A tiny LLaVA stands for all families, which `test_vision` goes through.
"""

import json
import multiprocessing
import os
import shutil
import signal
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import document, refused, run
from parsed_pages import Page
from rows import write_jsonl
from vision_commands import COUNT, filled, made
from vision_models import save_tiny_vision, tiny_image

from forvalue_index import ValuationIndex
from forvalue_index.cli import main
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.ingest import storing
from forvalue_index.model import encoded
from forvalue_index.store import media

pytest_plugins = ("vision_home",)


@pytest.fixture(params=["reference", "copy"])
def index(request, home, model):
    return filled(home, model, "--media", request.param)


def values(index, home, *options):
    output = home / f"v{len(list(home.glob('v*')))}.jsonl"
    document("values", index, home / "data" / "validation.jsonl", "-o", output, *options)
    found = map(json.loads, output.read_text().splitlines())
    return {one["key"]: one["score"] for one in found}


def test_everything_that_works_for_text_works(index, home):
    """Query, re-ranking, values, explanations, filters; known samples stay known."""
    data, validation = home / "data", home / "data" / "validation.jsonl"
    again = document("add", index, data / "train.jsonl")
    assert (again["added"], again["known"]) == (0, COUNT)
    exact = values(index, home, "--exact")
    sketched = values(index, home)
    scale = max(map(abs, exact.values()))
    assert np.corrcoef(list(exact.values()), list(sketched.values()))[0, 1] > 0.95
    found = document("query", index, validation, "--top", 5, "--rerank", COUNT)
    for side, sign in (("helpful", -1), ("harmful", 1)):
        expected = sorted(exact, key=lambda key: sign * exact[key])[:5]
        assert [hit["key"] for hit in found[side]] == expected
        for hit in found[side]:
            assert hit["score"] == pytest.approx(exact[hit["key"]], abs=1e-4 * scale)
    where = document("query", index, validation, "--where", "metadata.topic = 'art'", "--top", 99)
    assert {hit["key"] for hit in where["helpful"]} == {f"s{i}" for i in range(1, COUNT, 2)}
    told = document("explain", index, "s1", validation)
    assert told["score"] == pytest.approx(exact["s1"], abs=1e-4 * scale)
    assert [t["image"] for t in told["tokens"] if "image" in t] == [0, 1]
    assert sum(t["term"] for t in told["tokens"]) == pytest.approx(told["score"])
    assert document("check", index)["sound"]


def test_what_is_shown_of_images(index, home):
    page = home / "page.html"
    path = "" if (index / "media").exists() else ", data/pictures/1.png"
    said = run("show", index, "s1", "-o", page)
    assert said.exit_code == 0
    assert f"[image 23 x 78{path}]" in said.stdout
    shown = Page(page.read_text()).all("img")
    assert shown[0][1]["alt"] == f"image 23 x 78{path}"
    assert all(element[1]["src"].startswith("data:image/png;base64,") for element in shown)
    assert len(shown) == 2
    images = document("show", index, "s1")["messages"][0]["images"]
    assert [(one["width"], one["height"]) for one in images] == [(23, 78), (20, 80)]
    assert [one.get("path") for one in images] == (
        ["data/pictures/1.png", "data/pictures/0.png"] if path else [None, None]
    )
    assert "[23x78]" in run("list", index, "--limit", 2).stdout
    validation = home / "data" / "validation.jsonl"
    said = run("explain", index, "s1", validation, "--validation-tokens", "-o", page)
    assert said.exit_code == 0
    assert f"[image 23 x 78{path}]" in said.stdout
    assert said.stdout.count("<image>") == 0
    assert len(Page(page.read_text()).all("img")) == 2 + 6


def test_lost_images_are_found_and_told(index, home):
    copies = index / "media"
    for file in copies.glob("*/*") if copies.exists() else (home / "data/pictures").glob("*"):
        if copies.exists() or file.name != "0.png":
            file.unlink()
    validation = write_jsonl(home / "data" / "text.jsonl", [{"prompt": "abc", "response": "on"}])
    found = document("query", index, validation, "--top", 3)
    assert len(found["helpful"]) == 3  # rows need no images
    report = run("check", index, "--json")
    assert report.exit_code == 1
    (finding,) = json.loads(report.stdout)["findings"]
    assert finding["kind"] == "lost image"
    lost = "images of 20 samples" if copies.exists() else "images of 19 samples"
    assert finding["what"].startswith(lost)
    found = document("query", index, validation, "--top", 3, "--rerank", COUNT)
    assert any("is missing or empty; put it back" in warning for warning in found["warnings"])
    assert all(
        hit["exact"] == (hit["key"] in ("s5", "s11", "s17", "s23")) or not copies.exists()
        for hit in found["helpful"]
    )
    assert "is missing or empty; put it back where it was" in refused(
        "explain", index, "s1", validation
    )
    assert "is missing" in refused("values", index, validation, "-o", home / "v.csv", "--exact")
    page = home / "page.html"
    assert run("show", index, "s1", "-o", page).exit_code == 0
    assert "is missing or empty; put it back where it was" in page.read_text()


@pytest.mark.parametrize("damage", ["lost", "other pixels", "no image", "removed"])
def test_adding_again_brings_back_images(damage, index, home):
    """Copies anew, or paths to where the images lie now; of removed samples that return, too."""
    before, copies = values(index, home, "--exact"), index / "media"
    if damage == "removed":
        document("remove", index, "--where", "metadata.topic = 'law'", "--yes")
        document("compact", index)
    for file in copies.glob("*/*"):  # none where the index refers to images
        if damage == "other pixels":
            tiny_image(9, 9, 9).save(file, "PNG")
        elif damage == "no image":
            file.write_bytes(b"x" * 40)
        elif damage == "lost":
            file.unlink()
    other = home / "other"
    other.mkdir()
    (home / "data").rename(other / "data")
    assert run("check", index).exit_code == (0 if copies.exists() and damage == "removed" else 1)
    document("add", index, other / "data" / "train.jsonl")
    assert document("check", index)["sound"]
    assert values(index, other, "--exact") == pytest.approx(before, rel=1e-4, abs=1e-4)


def test_a_lost_segment_is_embedded_anew(index, home):
    before = values(index, home)
    for file in (index / "segments").glob("*.safetensors"):
        file.unlink()
    repaired = document("check", index, "--repair")
    assert [f["repaired"] for f in repaired["findings"]] == [True] * len(repaired["findings"])
    after = values(index, home)
    for key, value in before.items():
        assert after[key] == pytest.approx(value, rel=1e-2, abs=1e-2)


def test_compacting_forgets_copies_that_no_sample_has(index, home):
    copies = lambda: len(list((index / "media").glob("*/*")))  # noqa: E731
    had = copies()
    document("remove", index, "s0", "s1", "s2", "--yes")
    document("compact", index)
    if had:
        # Picture 0 is the second one of others.
        assert (had, copies()) == (20, 18)
    assert document("check", index)["sound"]
    assert document("add", index, home / "data" / "train.jsonl")["added"] == 3
    assert (had, copies()) in ((20, 20), (0, 0))


def test_known_images_elsewhere_are_known(index, home):
    """What a sample is known by are its pixels, not where they lie."""
    data = home / "data"
    moved = shutil.copytree(data, home / "other")
    found = document("add", index, moved / "train.jsonl")
    assert (found["added"], found["known"]) == (0, COUNT)
    assert found["updated"] == (0 if (index / "media").exists() else 20)  # s5, ... have none
    again = document("add", index, moved / "train.jsonl")
    assert (again["known"], again["updated"]) == (COUNT, 0)
    tiny_image(23, 78, 99).save(moved / "pictures" / "1.png")
    said = refused("add", index, moved / "train.jsonl")
    assert "its id 's1' is taken by a sample of other content" in said


def test_bytes_of_a_parquet_file(home, model):
    items = [json.loads(line) for line in (home / "data" / "train.jsonl").read_text().splitlines()]
    table = [
        {
            "id": item["id"],
            "prompt": item["prompt"],
            "response": item["response"],
            "images": [
                {"bytes": (home / "data" / path).read_bytes(), "path": None}
                for path in item.get("images", [])
            ],
        }
        for item in items
    ]
    pq.write_table(pa.Table.from_pylist(table), home / "data" / "train.parquet")
    index = made(home, model)
    said = refused("add", index, home / "data" / "train.parquet")
    assert "make the index with --media copy" in said
    assert len(list((index / "segments").iterdir())) == 0
    shutil.rmtree(index)
    index = made(home, model, "--media", "copy")
    assert document("add", index, home / "data" / "train.parquet")["added"] == COUNT
    assert document("add", index, home / "data" / "train.jsonl")["known"] == COUNT


def test_a_saved_data_set(home, model):
    datasets = pytest.importorskip("datasets")
    rows = [
        {"prompt": "what", "response": f"this {i}", "image": tiny_image(30 + i, 40, i)}
        for i in range(3)
    ]
    found = datasets.Dataset.from_list(rows)
    found.save_to_disk(home / "saved")
    index = made(home, model, "--media", "copy")
    assert document("add", index, home / "saved")["added"] == 3
    with ValuationIndex.open(index) as opened:
        assert opened.add(found).known == 3
        assert opened.add(rows).known == 3


def test_texts_and_images_may_stay_in_the_data(home, model):
    index = filled(home, model, "--payload", "reference")
    exact = values(index, home, "--exact")
    assert len(exact) == COUNT
    assert "data/pictures/1.png" in run("show", index, "s1").stdout.replace("\n", "")
    assert "--media-root" in refused(
        "add", index, home / "data" / "train.jsonl", "--media-root", home, code=2
    )
    tiny_image(9, 9, 9).save(home / "data" / "pictures" / "1.png")
    report = json.loads(run("check", index, "--json").stdout)
    assert [finding["kind"] for finding in report["findings"]] == ["changed data"]
    (home / "data" / "pictures" / "1.png").unlink()
    said = run("show", index, "s1").stdout.replace("\n", " ")
    assert "has changed since it was added (image" in " ".join(said.split())
    done = run(
        "init", home / "other", "--model", model, "--payload", "reference", "--media", "copy"
    )
    assert done.exit_code == 2
    assert "with --payload reference, images stay in the data" in done.stderr


def test_images_from_another_directory(home, model):
    apart = home / "apart"
    apart.mkdir()
    shutil.move(home / "data" / "train.jsonl", apart / "train.jsonl")
    shutil.move(home / "data" / "validation.jsonl", apart / "validation.jsonl")
    index = made(home, model)
    said = refused("add", index, apart / "train.jsonl")
    assert "apart/pictures/0.png, is missing; put the image there, or mend the path" in said
    root = ("--media-root", home / "data")
    assert document("add", index, apart / "train.jsonl", *root)["added"] == COUNT
    assert document("query", index, apart / "validation.jsonl", *root)["searched"] == COUNT
    said = refused(
        "query", index, apart / "validation.jsonl", "--media-root", home / "none", code=2
    )
    assert "is not a directory; name where images lie" in said


def test_a_model_of_images_alone_is_not_made_one_of_text(home, model):
    said = refused("init", home / "index", "--model", model, "--media", "none")
    assert "a llava model is not loaded for text alone; make the index without --media none" in said
    assert not (home / "index").exists()


def test_an_image_in_an_index_of_text_is_refused(home, text_model):
    index = made(home, text_model)
    said = refused("add", index, home / "data" / "train.jsonl")
    assert (
        "train.jsonl:1: 'images' is an image, and the model of this index reads text alone" in said
    )
    kept = document("add", index, home / "data" / "train.jsonl", "--on-bad", "skip")
    assert (kept["added"], kept["rejected"]) == (4, 20)
    assert "reads text alone" in refused("query", index, home / "data" / "validation.jsonl")


BAD = {
    "missing": ("none.png", "none.png, is missing"),
    "truncated": ("half.png", "cannot be decoded"),
    "unsupported": ("text.png", "no image of a format that is read"),
    "an escape": ("../../secret.png", "which does not lie below"),
    "an address": ("http://host/x.png", "nothing is fetched"),
    "too thin for the processor": ("thin.png", None),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("model_kind", ["llava", "qwen2.5-vl"])
def test_a_bad_image_is_one_line_and_costs_nothing_else(case, model_kind, home, tmp_path_factory):
    data, (path, said) = home / "data", BAD[case]
    if said is None and model_kind != "qwen2.5-vl":
        pytest.skip("it takes every shape")
    whole = (data / "pictures" / "3.png").read_bytes()
    (data / "half.png").write_bytes(whole[: len(whole) // 2])
    (data / "text.png").write_text("not an image")
    tiny_image(4000, 2, 1).save(data / "thin.png")
    tiny_image(9, 9, 1).save(home / "secret.png")
    model = save_tiny_vision(tmp_path_factory.mktemp("model"), model_kind)
    index = made(home, model)
    lines = (data / "train.jsonl").read_text().splitlines()
    bad = {"id": "bad", "prompt": "a", "response": "b", "image": path}
    (data / "train.jsonl").write_text("\n".join([*lines[:10], json.dumps(bad), *lines[10:]]))
    told = refused("add", index, data / "train.jsonl")
    assert f"{data / 'train.jsonl'}:11: " in told
    assert (said or "the model's processor refuses its image(s) of 4000 x 2 pixels") in told
    assert document("info", index)["samples"] == 0
    kept = document("add", index, data / "train.jsonl", "--on-bad", "skip")
    assert (kept["added"], kept["rejected"]) == (COUNT, 1)
    (rejected,) = (index / "rejected").iterdir()
    assert json.loads(rejected.read_text())["row"]["id"] == "bad"


def test_an_image_beyond_the_maximum_length_is_refused(home, model):
    index = made(home, model, "--max-length", 7)
    said = refused("add", index, home / "data" / "train.jsonl")
    assert "its images end at token" in said
    assert "--max-length is 7; make them smaller, or build an index with a larger one" in said


def test_a_text_that_holds_the_token_of_an_image_is_refused(home, model):
    index = made(home, model)
    rows = write_jsonl(home / "data" / "x.jsonl", [{"prompt": "an <image> tag", "response": "yes"}])
    said = refused("add", index, rows)
    assert "its text holds <image>, and no image came with it; name the column that has" in said


def test_memory_holds_the_pixels_of_two_batches_at_most(home, model, monkeypatch):
    """Those of the batch that is embedded, and of the next one."""
    read, sizes, seen = [0], [], []
    mapped, embed = encoded.parallel_map, Embedder.embed_batch

    def counted(function, readers):
        found = mapped(function, readers)
        read[0] += len(found)
        return found

    def slow(self, batch, prepared):
        time.sleep(0.05)  # in which the next batches would be read, too
        sizes.append(len(batch.readers))
        seen.append(read[0])
        return embed(self, batch, prepared)

    monkeypatch.setattr(encoded, "parallel_map", counted)
    monkeypatch.setattr(Embedder, "embed_batch", slow)
    with ValuationIndex.open(made(home, model)) as index:
        index.calibrate(str(home / "data" / "train.jsonl"))
        index.model.reader.token_budget = 64
        read[0] = 0
        index.add(str(home / "data" / "train.jsonl"))
    with_images = [size for size in sizes if size]
    assert sum(with_images) == 20
    assert len(with_images) >= 6
    up_to_next = np.cumsum([*sizes[1:], 0]) + sizes[0]
    assert (np.array(seen) <= up_to_next).all()


STORE, COPY = (storing.Unstored, "store"), (media, "write_durably")


def add_until_killed(index, data, where, nth):
    """Add in a process that is killed at the nth call of a function; returns how it ended."""
    process = multiprocessing.get_context("fork").Process(
        target=add_and_die, args=(index, data, where, nth)
    )
    process.start()
    process.join(120)
    return process.exitcode


def add_and_die(index, data, where, nth):
    owner, name = where
    function, calls = getattr(owner, name), []

    def dying(*given, **options):
        found = function(*given, **options)
        calls.append(name)
        if len(calls) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(owner, name, dying)
    storing.COMMIT_BYTES = 1  # every batch is stored
    main(["add", str(index), str(data)])


@pytest.mark.parametrize(
    ("how", "deaths"),
    [("reference", [(STORE, 1), (STORE, 1)]), ("copy", [(COPY, 1), (COPY, 7), (STORE, 1)])],
)
def test_an_add_that_is_killed_goes_on(how, deaths, home, model):
    """Rows are the same to the bit, and every copy is whole."""
    expected = values(filled(home, model, "--media", how, "--row-dtype", "float32"), home)
    shutil.rmtree(home / "index")
    index = made(home, model, "--media", how, "--row-dtype", "float32")
    data = home / "data" / "train.jsonl"
    for where, nth in deaths:
        assert add_until_killed(index, data, where, nth) == -signal.SIGKILL
    with ValuationIndex.open(index) as half:
        assert 0 < len(half) < COUNT
    document("add", index, data)
    assert values(index, home) == expected
    findings = document("check", index, "--repair")["findings"]
    assert {finding["kind"] for finding in findings} <= {"orphan file"}
    assert document("check", index)["sound"]
