"""The images of an index: files that it refers to, or copies that it holds.

Either way an image is shown to nobody unless it has the pixels that the catalog says.
"""

from __future__ import annotations

import io
from collections.abc import Collection
from dataclasses import replace
from os.path import relpath
from pathlib import Path
from threading import Lock

from forvalue_index.exceptions import BadSampleError
from forvalue_index.settings import Settings
from forvalue_index.sources.images import Pixels, decode, digest_of, first_line
from forvalue_index.sources.sample import Image, Message, Sample
from forvalue_index.store.durable import write_durably
from forvalue_index.store.manifest import MEDIA


class Media:
    """Keeps and opens the images of the index at `path`; stored paths count from its parent.

    Copies are named by the digests of their pixels. `keeps_paths` says whether the catalog has the
    path of every image.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        self._root = path.resolve().parent
        self._copies = path / MEDIA if settings.media == "copy" else None
        self._lock = Lock()
        # A data file that the index refers to has the images that it holds, too.
        self.keeps_paths = settings.media == "reference" and settings.payload == "catalog"

    def refusal(self, sample: Sample) -> str | None:
        """Why an image of a sample cannot be kept, or None."""
        if self.keeps_paths and any(image.path is None for image in sample.images):
            return (
                "it holds an image itself, and an index with --media reference keeps only paths of "
                "image files; make the index with --media copy"
            )
        return None

    def keep(self, sample: Sample) -> None:
        """Copy the images of a sample, where the index holds copies. Raises as `open`."""
        if self._copies is not None:
            for image in sample.images:
                self._keep(image, self._copies)

    def as_stored(self, sample: Sample) -> Sample:
        """The sample as the catalog stores it: with paths of its images, or without."""
        if not sample.images:
            return sample
        return replace(sample, messages=tuple(map(self._stored_message, sample.messages)))

    def restore(self, sample: Sample) -> None:
        """Copy images of a known sample again whose copies are lost or damaged.

        Raises as `open`.
        """
        if self._copies is not None:
            for image in sample.images:
                copy = _copy(self._copies, image)
                if not copy.is_file() or copy.read_bytes() != self._content(image):
                    self._keep(image, self._copies)

    def has_moved(self, image: Image, stored: Image) -> bool:
        """Whether an image of a row lies elsewhere than the stored one that it equals."""
        return self._stored_image(image).path != stored.path

    def _stored_message(self, message: Message) -> Message:
        return replace(message, images=tuple(map(self._stored_image, message.images)))

    def _stored_image(self, image: Image) -> Image:
        if self._copies is not None or image.path is None:
            return replace(image, path=None, content=None)
        return replace(image, path=Path(relpath(image.path, self._root)).as_posix(), content=None)

    def _keep(self, image: Image, copies: Path) -> None:
        # Known samples are restored while the next window is read ahead, maybe with equal images.
        with self._lock:
            try:
                self._verified(self._stored_image(image))
            except BadSampleError:  # there is none, or it is damaged
                content = self._verified(image)[0]
                copy = _copy(copies, image)
                copy.parent.mkdir(parents=True, exist_ok=True)
                write_durably(copy, content)

    def open(self, image: Image) -> Pixels:
        """The pixels of an image, RGB.

        Raises BadSampleError where it is lost, or has other pixels than it had.
        """
        return self._verified(image)[1]

    def content(self, image: Image) -> bytes:
        """The file of an image. Raises as `open`."""
        return self._verified(image)[0]

    def forget_all_but(self, digests: Collection[str]) -> None:
        """Delete copies of other images, and what is left of a copy that was not finished."""
        for path in [] if self._copies is None else self._copies.glob("??/*"):
            if path.name not in digests:
                path.unlink(missing_ok=True)

    def _verified(self, image: Image) -> tuple[bytes, Pixels]:
        content = self._content(image)
        pixels = decode(io.BytesIO(content), str(image))
        if pixels.size != (image.width, image.height) or digest_of(pixels) != image.digest:
            raise BadSampleError(f"{image} has other pixels than when it was added; restore it")
        return content, pixels

    def _content(self, image: Image) -> bytes:
        if image.content is not None:
            return image.content
        if image.path is not None:
            path = self._root / image.path
        elif self._copies is not None:
            path = _copy(self._copies, image)
            if not path.resolve().is_relative_to(self._copies.resolve()):
                raise BadSampleError(f"{image}: {path} is a link that leads out of the index")
        else:
            raise BadSampleError(f"{image} is no file; restore the data that it came from")
        try:
            # Files that are none, as those of /proc, have no size.
            if not path.is_file() or not (size := path.stat().st_size):
                raise BadSampleError(
                    f"{image}: {path} is missing or empty; put it back where it was"
                )
            with path.open("rb") as file:
                return file.read(size)
        except (OSError, RuntimeError) as error:
            raise BadSampleError(
                f"{image}: {path} cannot be read: {first_line(error)}; mend it"
            ) from error


def _copy(copies: Path, image: Image) -> Path:
    return copies / image.digest[:2] / image.digest
