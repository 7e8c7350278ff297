"""Images where an index does not read them, where they vanish, and where a catalog lies of them."""

import json
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sa
import torch
from commands import document, refused, run
from PIL import Image as Pillow
from rows import write_jsonl
from vision_commands import COUNT, filled, made
from vision_models import save_tiny_vision, tiny_image

from forvalue_index import ValuationIndex
from forvalue_index.exceptions import BadSampleError, BrokenIndexError
from forvalue_index.gradients.embedder import Embedder
from forvalue_index.ingest import embedders, parallel
from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.settings import Settings
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.images import ImageFiles
from forvalue_index.sources.sample import Image, Message, Sample
from forvalue_index.sources.source import open_sources
from forvalue_index.store.catalog.addresses import CATALOG
from forvalue_index.store.catalog.sample_rows import pack
from forvalue_index.store.manifest import MANIFEST, MEDIA
from forvalue_index.store.media import Media

pytest_plugins = ("vision_home",)

TEXT = [{"prompt": "a", "response": "b c", "image": "https://example.org/a.png"}]
NUMBERED = [{"prompt": "a", "response": "b", "images": 7, "image": None}]


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    """A model of images that has a part for text alone."""
    return save_tiny_vision(tmp_path_factory.mktemp("gemma"), "gemma3")


@pytest.fixture
def of_text(tmp_path, gemma):
    """An index of it that takes no images."""
    path = tmp_path / "index"
    document("init", path, "--model", gemma, "--dim", 64, "--media", "none")
    return path


@pytest.mark.parametrize(("items", "metadata"), [(TEXT, "image"), (NUMBERED, "images")])
def test_columns_called_image_may_hold_facts_where_none_are_read(items, metadata, of_text, home):
    data = write_jsonl(home / "text.jsonl", items)
    assert document("add", of_text, data)["added"] == 1
    assert document("show", of_text, "0")["metadata"][metadata] == items[0][metadata]
    assert json.loads((of_text / MANIFEST).read_text())["model"]["processor_digest"] is None


@pytest.mark.parametrize("image", ["pictures/1.png", {"bytes": b"x"}, "data:image/png;base64,AA"])
def test_an_image_is_refused_where_none_are_read(image, of_text, home):
    with ValuationIndex.open(of_text) as index:
        row = {"prompt": "a", "response": "b", "image": image}
        with pytest.raises(BadSampleError, match="is an image, and the model of this index reads"):
            index.add([row])
        assert len(index) == 0


def test_an_index_of_text_from_before_images_stays_one(of_text, home):
    """A model that reads images is loaded as it was then, and gives the same rows."""
    data = write_jsonl(home / "text.jsonl", TEXT)
    document("add", of_text, data)
    path = of_text / MANIFEST
    manifest = json.loads(path.read_text())
    del manifest["model"]["processor_digest"]
    del manifest["settings"]["media"]
    manifest["format_version"] = 2
    path.write_text(json.dumps(manifest))
    with ValuationIndex.open(of_text) as index:
        assert index.model.backbone.processor is None
        assert index.add([{"prompt": "a", "response": "d"}]).added == 1
        (hit, _) = index.query([{"prompt": "a", "response": "b c"}], top=2).helpful
        assert hit.id == 0


@pytest.mark.parametrize("how", ["reference", "copy"])
def test_an_image_that_vanishes_while_others_are_embedded(how, home, model, monkeypatch):
    """Its sample alone is left out, and comes back with the image."""
    index, data = made(home, model, "--media", how), home / "data"
    picture = data / "pictures" / "3.png"
    kept = picture.read_bytes()
    read_ahead = parallel._read_ahead

    def vanishing(embedder, members, lost):
        picture.unlink()
        for copy in (index / MEDIA).glob("*/*"):
            if copy.read_bytes() == kept:
                copy.unlink()
        return read_ahead(embedder, members, lost)

    with monkeypatch.context() as patch:
        patch.setattr(parallel, "_read_ahead", vanishing)
        with ValuationIndex.open(index) as opened:
            report = opened.add(str(data / "train.jsonl"), on_bad="skip")
    assert (report.added, report.rejected) == (COUNT - 1, 1)
    (line,) = map(json.loads, Path(report.rejected_file).read_text().splitlines())
    assert line["row"]["id"] == "s3"
    assert "missing or empty" in line["reason"]
    picture.write_bytes(kept)
    assert document("add", index, data / "train.jsonl")["added"] == 1
    assert document("check", index)["sound"]


def test_refused_at_once_where_bad_rows_end_an_add(home, model, monkeypatch):
    index = made(home, model)
    picture = home / "data" / "pictures" / "3.png"
    read_ahead = parallel._read_ahead

    def vanishing(embedder, members, lost):
        picture.unlink(missing_ok=True)
        return read_ahead(embedder, members, lost)

    monkeypatch.setattr(parallel, "_read_ahead", vanishing)
    said = refused("add", index, home / "data" / "train.jsonl")
    assert "train.jsonl:4" in said
    assert "3.png is missing or empty; put it back where it was" in said
    with ValuationIndex.open(index) as opened:
        assert len(opened) == COUNT - 1  # what was embedded is stored


def test_an_image_that_vanishes_before_an_index_is_calibrated(home, model, monkeypatch):
    """The others are embedded, and the calibration is measured on them."""
    index, data = made(home, model), home / "data"
    calibrate = embedders.calibrate

    def vanishing(*given, **options):
        (data / "pictures" / "3.png").unlink()
        return calibrate(*given, **options)

    monkeypatch.setattr(embedders, "calibrate", vanishing)
    with ValuationIndex.open(index) as opened:
        report = opened.add(str(data / "train.jsonl"), on_bad="skip")
        assert opened.calibration().samples == COUNT - 1
    assert (report.added, report.rejected) == (COUNT - 1, 1)


@pytest.mark.parametrize("how", ["reference", "copy"])
def test_a_sample_without_numbers_is_rejected_with_its_image(how, home, model, monkeypatch):
    """Not as the catalog would have stored it, which is without its file."""
    embed = Embedder.embed_batch

    def broken(self, batch, prepared):
        found = embed(self, batch, prepared)
        return found._replace(finite=torch.zeros_like(found.finite))

    monkeypatch.setattr(Embedder, "embed_batch", broken)
    with ValuationIndex.open(made(home, model, "--media", how)) as index:
        report = index.add(str(home / "data" / "train.jsonl"), on_bad="skip")
    assert report.rejected == COUNT
    lines = Path(report.rejected_file).read_text().splitlines()
    rows = {row["id"]: row for row in (json.loads(line)["row"] for line in lines)}
    files = ImageFiles(home)
    found = to_sample(rows["s1"], images=files)
    assert [image.path for image in found.images] == [
        str(home / "data" / "pictures" / name) for name in ("1.png", "0.png")
    ]


def test_rows_of_python_may_share_an_image_that_is_not_loaded_yet(tmp_path, thorough):
    """Pillow loads such an image at its first use, and for one thread alone."""
    expected = []
    for number in range(3):
        random = np.random.default_rng(number).integers(0, 256, (700, 700, 3), dtype=np.uint8)
        Pillow.fromarray(random).save(tmp_path / f"{number}.jpg")
        expected.append(ImageFiles(tmp_path).read(f"{number}.jpg", "it").digest)
    for _ in range(5 if thorough else 2):
        shared = [Pillow.open(tmp_path / f"{number}.jpg") for number in range(3)]
        rows = [{"prompt": "a", "response": "b", "image": shared[i // 8]} for i in range(24)]
        found = list(open_sources(rows)[0].samples())
        assert [s.images[0].digest for s in found] == [expected[i // 8] for i in range(24)]


def test_equal_images_may_be_kept_by_two_threads_at_once(home):
    """Of a known sample whose copy is lost, and of a new one of the next window."""
    media = Media(home / "index", Settings("m", media="copy"))
    files = ImageFiles(home / "data" / "pictures")
    sample = to_sample({"prompt": "a", "response": "b", "image": "0.png"}, images=files)
    with ThreadPoolExecutor(4) as threads:
        for _ in range(50):
            list(threads.map(media.keep, [sample] * 4))
            (copy,) = (home / "index" / MEDIA).glob("*/*")
            assert copy.read_bytes() == (home / "data" / "pictures" / "0.png").read_bytes()
            copy.unlink()


def test_equal_rows_with_images_at_two_places_change_nothing(home, model):
    """The first of them is stored, whenever they are added."""
    data = home / "data" / "pictures"
    (data / "same.png").write_bytes((data / "0.png").read_bytes())
    rows = [{"prompt": "a", "response": "b", "image": name} for name in ("0.png", "same.png")]
    file = write_jsonl(data / "rows.jsonl", rows)
    index = made(home, model)
    assert document("add", index, file)["duplicates"] == 1
    again = document("add", index, file)
    assert (again["known"], again["duplicates"], again["updated"]) == (1, 1, 0)


def test_the_part_of_a_model_for_text_alone_is_read(tmp_path):
    """That of mllama, whose trunk stands in another place than that of others."""
    model = save_tiny_vision(tmp_path / "model", "mllama")
    index = tmp_path / "index"
    assert run("init", index, "--model", model, "--media", "none", "--dim", 64).exit_code == 0
    data = write_jsonl(tmp_path / "d.jsonl", [{"prompt": "a", "response": "b"}])
    assert document("add", index, data)["added"] == 1
    found = document("query", index, data, "--rerank", 1, "--top", 1)
    assert found["helpful"][0]["exact"]
    assert found["helpful"][0]["score"] > 0


def test_a_refused_bomb_is_one_line(home, model):
    Pillow.new("1", (12_000, 9_000)).save(home / "data" / "pictures" / "0.png")
    data = home / "data" / "train.jsonl"
    index = made(home, model)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as for a user, who would read them beside the line
        done = run("add", index, data)
    assert done.exit_code == 1
    assert "12,000 x 9,000 pixels" in done.stderr
    assert "DecompressionBomb" not in done.stderr


SOUND = {"digest": "0" * 32, "width": 3, "height": 2}


@pytest.mark.parametrize(
    "image",
    [
        Image(**{**SOUND, "digest": "../../../../etc/passwd"}),
        Image(**{**SOUND, "digest": "G" * 32}),
        Image(**{**SOUND, "width": 0}),
        Image(**{**SOUND, "height": -2}),
        Image(**{**SOUND, "width": 10**6, "height": 10**6}),
        Image(**SOUND, at=-1),
        Image(**SOUND, at=99),
        Image(**SOUND, path="a\0b"),
    ],
)
def test_what_a_stranger_writes_of_an_image_is_not_believed(image, home, model):
    """With the checksum that belongs to it, as whoever can write a catalog can make that, too."""
    index = filled(home, model)
    message = Message("user", "abc", images=(image,))
    sample = Sample((message, Message("assistant", "on")), own_id="s0", source="s", position=1)
    row = pack(0, sample, SampleStatistics(1, 1, False, 0.5, 0.5, 0.5))
    engine = sa.create_engine(f"sqlite:///{index / CATALOG}")
    with engine.begin() as connection:
        table = sa.Table("samples", sa.MetaData(), autoload_with=connection)
        connection.execute(sa.update(table).where(table.c.id == 0).values(payload=row["payload"]))
    engine.dispose()
    with ValuationIndex.open(index) as opened, pytest.raises(BrokenIndexError, match="an image of"):
        opened.sample("s0")


def test_images_that_are_a_link_out_of_the_index_are_not_opened(home, model):
    index = filled(home, model, "--media", "copy")
    (index / MEDIA).rename(home / "elsewhere")
    (index / MEDIA).symlink_to(home / "elsewhere")
    said = refused("show", index, "s1")
    assert f"{index / MEDIA} is a link that leads out of the index" in said


def test_a_copy_that_is_a_link_out_of_the_index_is_not_opened(home, model):
    index = filled(home, model, "--media", "copy")
    tiny_image(9, 9, 1).save(home / "secret.png")
    copy = next((index / MEDIA).glob("*/*"))
    copy.unlink()
    copy.symlink_to(home / "secret.png")
    done = run("check", index, "--json")
    (finding,) = json.loads(done.stdout)["findings"]
    assert "is a link that leads out of the index" in finding["what"]


def test_tokens_are_read_of_texts_alone(home, model):
    """Whoever has image tokens has images too, and nobody knows which."""
    index = made(home, model)
    plain = {"input_ids": [40, 41, 42], "labels": [-100, 41, 42]}
    assert document("add", index, write_jsonl(home / "a.jsonl", [plain]))["added"] == 1
    config = json.loads((model / "config.json").read_text("utf-8"))
    marked = {"input_ids": [40, config["image_token_index"], 42]}
    said = refused("add", index, write_jsonl(home / "b.jsonl", [marked]))
    assert "which stands for a part of an image or the like in this model" in said
    beside = write_jsonl(home / "c.jsonl", [plain | {"images": ["data/pictures/1.png"]}])
    said = refused("add", index, beside)
    assert "c.jsonl:1: 'images' holds images, and a row of input_ids is read without;" in said
