"""Images as rows give them: every way to give one, and everything that can be wrong with one."""

import base64
import io
import json
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Pillow
from vision_models import tiny_image

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources import images
from forvalue_index.sources.images import MOST_PIXELS, ImageFiles, data_url, decode, digest_of

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Pillow.fromarray(PIXELS)


def file_of(picture=PICTURE, kind="PNG", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


PNG = file_of()


@pytest.fixture
def files(tmp_path):
    """Images below `data`, beside a secret that nobody may read."""
    (tmp_path / "secret.png").write_bytes(PNG)
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "a.png").write_bytes(PNG)
    (data / "sub" / "b.png").write_bytes(PNG)
    return ImageFiles(data)


def reason(files, value):
    with pytest.raises(BadSampleError) as raised:
        files.read(value, "'image'")
    assert "\n" not in str(raised.value)
    return str(raised.value)


GIVEN = {
    "path": lambda root: "a.png",
    "path below": lambda root: "sub/../sub/b.png",
    "absolute path": lambda root: str(root / "a.png"),
    "file address": lambda root: f"file://{root / 'a.png'}",
    "bytes": lambda root: PNG,
    "bytearray": lambda root: bytearray(PNG),
    "data URL": lambda root: "data:image/png;base64," + base64.b64encode(PNG).decode(),
    "data URL without type": lambda root: "DATA:;base64," + base64.b64encode(PNG).decode(),
    "Pillow image": lambda root: PICTURE,
    "Pillow file": lambda root: Pillow.open(root / "a.png"),
    "datasets, bytes": lambda root: {"bytes": PNG, "path": "whatever.png"},
    "datasets, path": lambda root: {"bytes": None, "path": "a.png"},
    "array": lambda root: PIXELS,
    "path object": lambda root: root / "a.png",
    "array of bytes": lambda root: {"bytes": np.array(PNG, dtype=object)},
    "data URL in lines": lambda root: "data:image/png;base64," + base64.encodebytes(PNG).decode(),
    "part with image": lambda root: {"image": "a.png"},
    "part with url": lambda root: {"url": "a.png"},
    "part of OpenAI": lambda root: {"image_url": {"url": "a.png", "detail": "low"}},
    "part with base64": lambda root: {"base64": base64.b64encode(PNG).decode()},
}


@pytest.mark.parametrize("way", GIVEN)
def test_an_image_may_be_given_in_many_ways(files, way):
    """All of them are one image: what it is known by are its pixels."""
    found = files.read(GIVEN[way](files.root), "'image'")
    assert (found.digest, found.width, found.height) == (digest_of(PICTURE), 30, 20)
    held = found.content if found.path is None else (files.root / found.path).read_bytes()
    assert np.array_equal(np.asarray(decode(io.BytesIO(held), "it")), PIXELS)
    assert (found.path is None) == (found.content is not None)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "GIF", "JPEG"])
def test_formats(files, kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    found = files.read(file_of(kind=kind, **options), "'image'")
    assert (found.width, found.height) == (30, 20)
    if kind not in ("GIF", "JPEG"):
        assert found.digest == digest_of(PICTURE)


def test_exif_turns_an_image_upright(files):
    exif = Pillow.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    found = files.read(file_of(exif=exif), "'image'")
    assert (found.width, found.height) == (20, 30)
    assert found.digest == digest_of(PICTURE.transpose(Pillow.Transpose.ROTATE_270))
    upright = files.read(Pillow.open(io.BytesIO(file_of(exif=exif))), "'image'")
    assert upright.digest == found.digest


def pixels_of(picture, kind="PNG", **options):
    return np.asarray(decode(io.BytesIO(file_of(picture, kind, **options)), "it"))


@pytest.mark.parametrize("mode", ["L", "P", "1", "CMYK"])
def test_every_mode_is_read_as_rgb(mode):
    picture = PICTURE.convert(mode)
    found = pixels_of(picture, "TIFF" if mode == "CMYK" else "PNG")
    assert np.array_equal(found, np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white(mode, files):
    """As processors of models make it; and a half of a colour is half of white."""
    picture = Pillow.new("RGBA", (3, 1), (0, 0, 0, 0))
    picture.putpixel((1, 0), (0, 0, 0, 255))
    picture.putpixel((2, 0), (0, 0, 0, 128))
    if mode == "P":
        picture = Pillow.new("P", (3, 1), 0)
        picture.putpalette([0, 0, 0, 0, 0, 0, 127, 127, 127])
        picture.putpixel((1, 0), 1)
        picture.putpixel((2, 0), 2)
        options = {"transparency": 0}
    else:
        picture, options = picture.convert(mode), {}
    assert pixels_of(picture, **options)[0].tolist() == [[255] * 3, [0] * 3, [127] * 3]
    if not options:
        assert files.read(picture, "it").digest == files.read(file_of(picture), "it").digest


def test_of_16_bits_the_upper_8_are_read():
    ramp = np.arange(0, 65536, 8192, dtype=np.uint16)[None]
    found = pixels_of(Pillow.fromarray(ramp))
    assert found[0].tolist() == [[level] * 3 for level in range(0, 256, 32)]


@given(st.tuples(st.integers(1, 12), st.integers(1, 12)), st.integers(0, 2**16))
def test_other_pixels_or_another_shape_have_another_digest(size, seed):
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    digest = digest_of(Pillow.fromarray(pixels))
    assert digest == digest_of(Pillow.open(io.BytesIO(file_of(Pillow.fromarray(pixels)))))
    other = pixels.copy()
    other[random.integers(size[0]), random.integers(size[1]), random.integers(3)] ^= 1
    assert digest_of(Pillow.fromarray(other)) != digest
    if size[0] != size[1]:
        turned = pixels.reshape(size[1], size[0], 3)
        assert digest_of(Pillow.fromarray(turned)) != digest


def test_a_digest_is_what_it_was():
    """It is part of content hashes and of the names of copies."""
    assert digest_of(Pillow.new("RGB", (3, 2), (1, 2, 3))) == "64c62a7e74abf785fadbe6026f039cd8"


def test_paths_that_lead_out_are_refused(files):
    root = files.root
    (root / "link.png").symlink_to(root.parent / "secret.png")
    for path in ("../secret.png", str(root.parent / "secret.png"), "link.png", "sub/../../x.png"):
        assert reason(files, path) == (
            f"'image' is {path}, which does not lie below {root}, where the images of this data "
            "are looked for; name another directory with --media-root"
        )
    assert ImageFiles(root.parent).read("secret.png", "'image'").width == 30
    assert ImageFiles(root.parent / "data" / "..").read("data/link.png", "'image'").width == 30


def bomb(width, height):
    """A PNG of a few hundred bytes that says it has so many pixels."""

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("size", [(MOST_PIXELS + 1, 1), (30_000, 30_000), (2**31 - 1, 2**31 - 1)])
def test_a_bomb_is_not_decoded(files, size, monkeypatch):
    def decoded(*_):
        raise AssertionError("it was decoded")

    monkeypatch.setattr(images.ImageOps, "exif_transpose", decoded)
    (files.root / "bomb.png").write_bytes(bomb(*size))
    for value in ("bomb.png", bomb(*size)):
        assert "decoded" in reason(files, value)
        assert "make it smaller" in reason(files, value)


def test_a_pillow_image_may_be_a_bomb(files):
    large = Pillow.new("1", (MOST_PIXELS // 1000 + 1, 1000))
    assert "are not read; make it smaller" in reason(files, large)


WRONG = {
    "missing": ("none.png", "none.png, is missing; put the image there, or mend the path"),
    "directory": ("sub", "sub, is no file"),
    "empty path": ("", "'image' is str, wanted a path, bytes, a data URL or an image"),
    "null": (None, "'image' is no image that is known, wanted a path"),
    "number": (7, "'image' is int, wanted a path"),
    "nothing in it": ({"bytes": None, "path": None}, "'image' is no image that is known, wanted"),
    "no bytes": (b"", "no image of a format that is read; use JPEG, PNG, WEBP"),
    "text": (b"not an image", "no image of a format that is read"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image of a format that is read"),
    "EPS": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image of a format"),
    "ICO": (file_of(kind="ICO"), "no image of a format that is read"),
    "truncated PNG": (PNG[: len(PNG) // 2], "cannot be decoded"),
    "truncated JPEG": (file_of(kind="JPEG")[:-200], "cannot be decoded"),
    "only a header": (PNG[:40], "no image of a format that is read"),
    "address": ("https://host/a.png", "is the address https://host/a.png, and nothing is fetched"),
    "data URL as text": ("data:image/png,abc", "is a data URL without base64 data"),
    "data URL damaged": ("data:image/png;base64,@@@", "is a data URL whose base64 is damaged"),
    "NUL": ("a\0.png", "is a path with a NUL or half a character in it"),
    "half a character": ("\ud800.png", "is a path with a NUL or half a character in it"),
    "too long": ("x" * 5000, "'image'"),
    "32 bits": (file_of(Pillow.new("I", (4, 4), 70_000), "TIFF"), "has values of 32 bits"),
    "floats": (file_of(Pillow.new("F", (4, 4), 0.5), "TIFF"), "has values of 32 bits"),
    "a Pillow image of floats": (Pillow.new("F", (4, 4), 0.5), "has values of 32 bits"),
    "an array of floats": (np.zeros((4, 4, 3)), "is an array of float64 with shape (4, 4, 3)"),
    "an array of five colours": (np.zeros((4, 4, 5), np.uint8), "wanted bytes of RGB"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_an_image_is_one_line(files, case):
    value, said = WRONG[case]
    assert said in reason(files, value)


def test_a_link_in_a_circle_is_told(files):
    (files.root / "loop.png").symlink_to("loop.png")
    assert "loop.png" in reason(files, "loop.png")


def test_paths_count_from_the_root_or_from_the_data(files):
    """What is not there below the root may lie beside the data, if that is below the root."""
    root = files.root.parent
    both = ImageFiles(root, beside=root / "data" / "sub")
    assert both.read("data/a.png", "it").path == str(root / "data" / "a.png")
    assert both.read("../a.png", "it").path == str(root / "data" / "a.png")
    inner = ImageFiles(root / "data" / "sub", beside=root / "data")
    assert "does not lie below" in reason(inner, "a.png")


def test_a_device_is_no_file():
    assert "is no file" in reason(ImageFiles(images.Path("/dev")), "zero")


def test_a_data_url_of_a_page(tmp_path):
    """Small images as they are, large ones smaller."""
    kind, _, data = data_url(PICTURE).partition(";base64,")
    assert kind == "data:image/png"
    shown = Pillow.open(io.BytesIO(base64.b64decode(data)))
    assert np.array_equal(np.asarray(shown), PIXELS)
    large = Pillow.new("RGB", (3000, 1000), "red")
    kind, _, data = data_url(large).partition(";base64,")
    assert kind == "data:image/jpeg"
    assert Pillow.open(io.BytesIO(base64.b64decode(data))).size == (512, 171)
    assert large.size == (3000, 1000)
    assert json.loads(json.dumps(data_url(PICTURE))).startswith("data:")


@pytest.mark.parametrize("most", [65535, 1023])
def test_of_16_bits_in_a_pgm_file_the_upper_8_count(most):
    """Pillow spreads them over 16 bits, in a mode that else has 32."""
    values = np.arange(16, dtype=np.uint32) * most // 15
    file = b"P5\n4 4\n%d\n" % most + values.astype(">u2").tobytes()
    found = images.decode(io.BytesIO(file), "it")
    expected = (values * 65535 // most >> 8).reshape(4, 4)
    assert np.abs(np.asarray(found)[..., 0] - expected.astype(int)).max() <= 1
    assert np.asarray(found)[..., 0].max() == 255


def test_a_file_address_may_have_percents(tmp_path):
    tiny_image(9, 7, 0).save(tmp_path / "a b.png")
    found = ImageFiles(tmp_path).read(f"file://{tmp_path}/a%20b.png", "it")
    assert (found.width, found.height) == (9, 7)


@pytest.mark.parametrize(
    ("value", "concerned"),
    [
        (["https://x/a.jpg", "https://x/b.png"], False),
        ([1, 2], False),
        ([], False),
        (["https://x/a.jpg", "a.jpg"], True),
        ([{"bytes": b"x"}], True),
    ],
)
def test_lists_of_addresses_are_facts_where_no_image_is_wanted(value, concerned, tmp_path):
    assert ImageFiles(tmp_path, wanted=False).concern(value) is concerned
    assert ImageFiles(tmp_path).concern(value)
