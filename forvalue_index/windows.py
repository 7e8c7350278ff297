"""Rows in windows of bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from forvalue_index.records import BadRow, Sample

# Bytes of images, which are held as they came, that count as much as a character, which is split
# into tokens and messages.
IMAGE_BYTES = 16


def windows(
    rows: Iterable[Sample | BadRow], *, most_rows: int, most_characters: int
) -> Iterator[list[Sample | BadRow]]:
    """Rows in lists, which depend on the rows alone: of so many, or of fewer long ones."""
    window: list[Sample | BadRow] = []
    characters = 0
    for row in rows:
        window.append(row)
        if isinstance(row, Sample):
            characters += sum(len(message.content) for message in row.messages)
            characters += sum(len(image.content or b"") for image in row.images) // IMAGE_BYTES
        if len(window) == most_rows or characters >= most_characters:
            yield window
            window, characters = [], 0
    if window:
        yield window
