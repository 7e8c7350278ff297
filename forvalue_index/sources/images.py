"""Images of samples: opened where a row says, checked, and known by their pixels.

Rows may come from anybody, so nothing is decoded before its format and size are known, and files
are opened below one directory alone. The home of Pillow.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageOps, UnidentifiedImageError

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.cell_values import UNSTORABLE
from forvalue_index.sources.sample import Image

Pixels = Pillow.Image

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm"}
# Pillow's own limit of what is no bomb: a quarter of a GiB of RGB.
MOST_PIXELS = 89_478_485
DATA_URL = "data:"
# Names under which objects hold an image.
HOLDERS = ("bytes", "image", "path", "url", "image_url", "base64")
# The longer sides of images in a page, and up to which they are without loss.
SHOWN_PIXELS, LOSSLESS_PIXELS = 512, 256


@dataclass(frozen=True)
class ImageFiles:
    """Opens what the rows of a data set say of images: paths below `root`, or images themselves.

    Relative paths count from `root`, or from `beside`, where the data lie, if nothing is there.
    Data that lie on another machine have no `root`, and their paths are refused.
    For a model of text alone images are not `wanted`, and one that is there is refused.
    """

    root: Path | None
    beside: Path | None = None
    wanted: bool = True

    def concern(self, value: Any) -> bool:
        """Whether a column called so holds images, or what only has their name.

        Where none are wanted, an address or a number is a fact like others.
        """
        if isinstance(value, list | tuple) and not self.wanted:
            return any(map(self.concern, value))
        if self.wanted or not isinstance(value, str | int | float):
            return True
        return isinstance(value, str) and (
            _is_data_url(value)
            or ("://" not in value and PurePath(value).suffix.lower() in SUFFIXES)
        )

    def read(self, value: Any, location: str) -> Image:
        """An image from a path, bytes, a data URL, a Pillow image, or what `datasets` holds.

        `value` may be an object that has it as `bytes`, `path`, `image` or `url`. Raises
        BadSampleError, with `location` in the row and the reason.
        """
        if not self.wanted:
            raise BadSampleError(
                f"{location} is an image, and the model of this index reads text alone; use an "
                "index of a vision-language model, or give a column that holds none another name"
            )
        value = _as_bytes_or_path(_unwrapped(value), location)
        if isinstance(value, bytes | bytearray):
            content = bytes(value)
            pixels = decode(io.BytesIO(content), location)
            return Image(digest_of(pixels), *pixels.size, content=content)
        if isinstance(value, str) and value:
            path = self._located(value, location)
            pixels = decode(path, f"{location}, {path},")
            return Image(digest_of(pixels), *pixels.size, path=str(path))
        what = "no image that is known" if value is None else type(value).__name__
        raise BadSampleError(
            f"{location} is {what}, wanted a path, bytes, a data URL or an image, maybe as one of "
            f"{', '.join(HOLDERS)}"
        )

    def _located(self, value: str, location: str) -> Path:
        scheme = value.partition("://")[0]
        if scheme != value and scheme != "file":
            shown = value if len(value) <= 80 else value[:79] + "…"
            raise BadSampleError(
                f"{location} is the address {shown}, and nothing is fetched; download it and name "
                "the file"
            )
        if UNSTORABLE.search(value):
            raise BadSampleError(
                f"{location} is a path with a NUL or half a character in it; mend it"
            )
        if self.root is None:
            raise BadSampleError(
                f"{location} is the path {value} in data that do not lie on this machine, and "
                "nothing is fetched; download the images and name their directory with --media-root"
            )
        name = unquote(value[len("file://") :]) if scheme == "file" else value
        try:
            root = self.root.resolve()
            path = (root / name).resolve()
            if self.beside is not None and not path.exists():
                path = (self.beside.resolve() / name).resolve()
        except (OSError, RuntimeError) as error:  # too long, or a link in a circle
            raise BadSampleError(f"{location} is no path: {first_line(error)}; mend it") from error
        if not path.is_relative_to(root):
            raise BadSampleError(
                f"{location} is {value}, which does not lie below {root}, where the images of this "
                "data are looked for; name another directory with --media-root"
            )
        return path


def _as_bytes_or_path(value: Any, location: str) -> Any:
    """The bytes of an image that is given as such, and the text of a path; others as they are."""
    if isinstance(value, np.ndarray):
        value = _of_array(value, location)
    if isinstance(value, PurePath):
        value = str(value)
    if isinstance(value, Pillow.Image):
        return _packed(value, location)
    if isinstance(value, str) and _is_data_url(value):
        return _decoded_url(value, location)
    return value


def _is_data_url(text: str) -> bool:
    return text[: len(DATA_URL)].lower() == DATA_URL


def decode(file: Path | io.BytesIO, location: str) -> Pixels:
    """The pixels of an image file as RGB, upright as its EXIF data say, of animations the first.

    Raises BadSampleError where there is none, it is damaged, of another format or too large.
    """
    try:
        if isinstance(file, Path) and not file.is_file():
            what = "no file" if file.exists() else "missing"
            raise BadSampleError(f"{location} is {what}; put the image there, or mend the path")
        with Pillow.open(file, formats=FORMATS) as opened:
            width, height = opened.size
            if width * height > MOST_PIXELS:
                raise BadSampleError(
                    f"{location} has {width:,} x {height:,} pixels, and more than "
                    f"{MOST_PIXELS:,} are not decoded; make it smaller"
                )
            # Pillow reads PPM of more than 8 bits to 16, in a mode that else has 32.
            of_16_bits = opened.format == "PPM" and opened.mode == "I"
            return _rgb(ImageOps.exif_transpose(opened), location, of_16_bits=of_16_bits)
    except (Pillow.DecompressionBombError, Pillow.DecompressionBombWarning) as error:
        raise BadSampleError(
            f"{location} is not decoded: {first_line(error).rstrip('.')}; make it smaller"
        ) from error
    except UnidentifiedImageError as error:
        raise BadSampleError(
            f"{location} is no image of a format that is read; use {', '.join(FORMATS)}"
        ) from error
    except BadSampleError:
        raise
    except Exception as error:  # Each format has errors of its own for a damaged file.
        raise BadSampleError(
            f"{location} cannot be decoded: {first_line(error)}; restore the image"
        ) from error


def _rgb(image: Pixels, location: str, *, of_16_bits: bool = False) -> Pixels:
    """RGB values of an image: on white where it is transparent, of 16 bits the upper 8.

    So do the processors of models, where they are given such images.
    """
    if image.mode in ("I", "F") and not of_16_bits:
        raise BadSampleError(
            f"{location} has values of 32 bits, whose black and white nobody knows; save it with 8 "
            "or 16 bits"
        )
    if of_16_bits or image.mode.startswith("I;16"):
        return Pillow.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        upper = image.convert("RGBA")
        white = Pillow.new("RGBA", upper.size, "white")
        return Pillow.alpha_composite(white, upper).convert("RGB")
    return image.convert("RGB")


def first_line(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__


def digest_of(pixels: Pixels) -> str:
    """128-bit BLAKE2b over size and pixels of an RGB image: other files of it have the same."""
    digest = hashlib.blake2b(f"{pixels.width} {pixels.height};".encode(), digest_size=16)
    digest.update(pixels.tobytes())
    return digest.hexdigest()


def blank(width: int, height: int) -> Pixels:
    """A black image."""
    return Pillow.new("RGB", (width, height))


def image_of(pixels: NDArray[np.uint8]) -> Pixels:
    """An image of RGB values [height, width, 3]."""
    return Pillow.fromarray(pixels)


def data_url(pixels: Pixels) -> str:
    """An image as part of a page, made smaller where it is large."""
    kind = "PNG" if max(pixels.size) <= LOSSLESS_PIXELS else "JPEG"
    smaller = pixels.copy()
    smaller.thumbnail((SHOWN_PIXELS, SHOWN_PIXELS))
    file = io.BytesIO()
    smaller.save(file, kind)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def _unwrapped(value: Any) -> Any:
    """The image of an object that holds one, as `datasets` and chat formats write them."""
    while isinstance(value, Mapping):
        held = [(n, value[n]) for n in HOLDERS if not is_nothing(value.get(n))]
        if not held:
            return None
        name, value = held[0]
        if name == "base64" and isinstance(value, str):
            return f"{DATA_URL};base64,{value}"
    return value


def is_nothing(value: Any) -> bool:
    """Whether a cell holds no image: null, not a number as pandas has it, or empty."""
    if isinstance(value, float):
        return math.isnan(value)
    if isinstance(value, Mapping):
        return all(map(is_nothing, value.values()))
    return value is None or (isinstance(value, str | bytes | bytearray) and not value)


def _of_array(value: NDArray[Any], location: str) -> Any:
    """RGB or grey values [height, width, 3] as an image; of another array its only value."""
    if value.dtype == np.uint8 and value.ndim in (2, 3) and value.shape[2:] in ((), (3,), (4,)):
        return Pillow.fromarray(value)
    if value.ndim == 0:
        return value.item()
    raise BadSampleError(
        f"{location} is an array of {value.dtype} with shape {value.shape}, wanted bytes of RGB: "
        "uint8, [height, width, 3]"
    )


def _decoded_url(url: str, location: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.lower().endswith(";base64"):
        raise BadSampleError(
            f"{location} is a data URL without base64 data; write data:...;base64,..."
        )
    try:
        return base64.b64decode("".join(data.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadSampleError(
            f"{location} is a data URL whose base64 is damaged: {error}"
        ) from error


def _packed(image: Pixels, location: str) -> bytes:
    """A Pillow image as the bytes of a file, without loss."""
    if image.width * image.height > MOST_PIXELS:
        raise BadSampleError(
            f"{location} has {image.width:,} x {image.height:,} pixels, and more than "
            f"{MOST_PIXELS:,} are not read; make it smaller"
        )
    file = io.BytesIO()
    try:
        upright = _rgb(ImageOps.exif_transpose(image), location)
        upright.save(file, "PNG", compress_level=1)
    except BadSampleError:
        raise
    except Exception as error:  # It may be a file that is opened only now.
        raise BadSampleError(
            f"{location} cannot be read: {first_line(error)}; restore the image"
        ) from error
    return file.getvalue()


OpenPixels = Callable[[Image], "Pixels"]
"""Gives the RGB pixels of an image, or raises BadSampleError."""
