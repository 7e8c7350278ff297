"""The images of an index: kept as paths or as copies, and shown only with the pixels they had."""

import dataclasses
import io

import numpy as np
import pytest
from vision_models import tiny_image

from forvalue_index.exceptions import BadSampleError
from forvalue_index.settings import Settings
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.images import ImageFiles
from forvalue_index.store.media import Media

PICTURE = tiny_image(40, 30, 1)


@pytest.fixture
def data(tmp_path):
    """A directory with an image, beside the index."""
    directory = tmp_path / "home" / "data"
    directory.mkdir(parents=True)
    PICTURE.save(directory / "a.png")
    return directory


def media(data, **settings):
    return Media(data.parent / "index", Settings("m", **settings))


def sample(data, image="a.png"):
    row = {"prompt": "what?", "response": "this", "image": image}
    return to_sample(row, images=ImageFiles(data))


def content(picture=PICTURE):
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def kept_by(found, one):
    found.keep(one)
    return found.as_stored(one)


def reason(call, *arguments):
    with pytest.raises(BadSampleError) as raised:
        call(*arguments)
    return str(raised.value)


def test_a_reference_is_a_path_from_the_home_of_the_index(data):
    found = media(data)
    kept = kept_by(found, sample(data))
    assert [image.path for image in kept.images] == ["data/a.png"]
    assert kept.content_hash == sample(data).content_hash
    assert np.array_equal(np.asarray(found.open(kept.images[0])), np.asarray(PICTURE))
    assert not (data.parent / "index").exists()


def test_index_and_data_may_move_together(data, tmp_path):
    kept = kept_by(media(data), sample(data))
    moved = data.parent.rename(tmp_path / "elsewhere") / "data"
    assert media(moved).open(kept.images[0]).size == (40, 30)


def test_a_reference_may_lead_elsewhere(data, tmp_path):
    PICTURE.save(tmp_path / "b.png")
    kept = kept_by(media(data), sample(tmp_path, "b.png"))
    assert [image.path for image in kept.images] == ["../b.png"]
    assert media(data).open(kept.images[0]).size == (40, 30)


def test_a_copy_is_in_the_index_whatever_becomes_of_the_file(data):
    found = media(data, media="copy")
    kept = kept_by(found, sample(data))
    (image,) = kept.images
    assert (image.path, image.content) == (None, None)
    copy = data.parent / "index" / "media" / image.digest[:2] / image.digest
    assert copy.read_bytes() == (data / "a.png").read_bytes()
    (data / "a.png").unlink()
    assert found.content(image) == copy.read_bytes()
    assert kept_by(found, sample(data, content())) == kept
    assert [p.name for p in copy.parent.iterdir()] == [image.digest]


def test_an_image_without_a_file_needs_a_copy(data):
    held = sample(data, content())
    assert media(data).refusal(held) == (
        "it holds an image itself, and an index with --media reference keeps only paths of image "
        "files; make the index with --media copy"
    )
    assert media(data, media="copy").refusal(held) is None
    assert media(data, payload="reference").refusal(held) is None
    assert media(data).refusal(sample(data)) is None


def test_a_sample_without_images_is_kept_as_it_is(data):
    text = to_sample({"text": "t"})
    assert kept_by(media(data), text) is text


@pytest.mark.parametrize("how", ["reference", "copy"])
def test_lost_and_changed_images_are_told(data, how):
    found = media(data, media=how)
    (image,) = kept_by(found, sample(data)).images
    file = next((data.parent / "index" / "media").glob("*/*")) if how == "copy" else data / "a.png"
    whole = file.read_bytes()
    file.write_bytes(content(tiny_image(40, 30, 2)))
    assert "has other pixels than when it was added; restore it" in reason(found.open, image)
    file.write_bytes(whole[:-100])
    assert "cannot be decoded" in reason(found.open, image)
    file.write_bytes(b"")
    assert "is missing or empty" in reason(found.content, image)
    file.write_bytes(b"text")
    assert "no image of a format that is read" in reason(found.content, image)
    file.unlink()
    assert f"{file} is missing or empty; put it back where it was" in reason(found.open, image)
    file.symlink_to("/proc/version")
    said = "leads out of the index" if how == "copy" else "is missing or empty"
    assert said in reason(found.open, image)
    file.unlink()
    file.mkdir()
    assert "is missing" in reason(found.open, image)


def test_another_file_of_the_same_pixels_will_do(data):
    found = media(data)
    (image,) = kept_by(found, sample(data)).images
    PICTURE.save(data / "a.png", "BMP")
    assert found.open(image).size == (40, 30)


def test_an_image_that_is_nowhere_is_told(data):
    (image,) = sample(data).images
    nowhere = dataclasses.replace(image, path=None)
    assert reason(media(data).open, nowhere) == (
        "image 40 x 30 is no file; restore the data that it came from"
    )


def test_copies_that_no_sample_has_are_forgotten(data):
    found = media(data, media="copy")
    (image,) = kept_by(found, sample(data)).images
    (other,) = kept_by(found, sample(data, content(tiny_image(9, 9, 3)))).images
    half = data.parent / "index" / "media" / image.digest[:2] / (image.digest + ".partial")
    half.write_bytes(b"half")
    found.forget_all_but({image.digest})
    assert found.open(image).size == (40, 30)
    assert "is missing" in reason(found.open, other)
    assert not half.exists()
    media(data).forget_all_but(set())
    assert found.open(image).size == (40, 30)
