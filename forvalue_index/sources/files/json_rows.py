"""Rows of JSON: a line each, in an array, or one document after another."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from forvalue_index.sources.files.data_files import DataFile, Stream, encoding_of
from forvalue_index.sources.files.rows import Columns, Rows, Unreadable, is_recognised

# An array of texts alone is that of rows only under such a name: turns and sections have text, too.
HOLD_ROWS = {"data", "dataset", "rows", "examples", "samples", "instances", "records", "items"}
HOLD_ROWS |= {"train", "training", "validation", "test", "documents", "results"}
HOLD_TURNS = {"turns", "dialogue", "dialog", "dialogues", "utterances", "conversation", "history"}
HOLD_TURNS |= {"messages", "conversations", "chat", "log", "thread", "replies"}


class RepeatedKeyError(ValueError):
    """An object of JSON has a key twice, and nobody knows which value counts."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise RepeatedKeyError(f"the key '{twice}' comes twice in one object; keep one of them")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_object)


def read_jsonl(file: DataFile, columns: Columns) -> Rows:
    """Rows of a JSONL file with the number of their line, and its offset where it is plain."""
    with file.content() as lines:
        yield from _lines(lines, offsets=file.path is not None and not file.suffixes[1])


def _lines(lines: Stream, *, offsets: bool) -> Rows:
    line, position, offset = lines.readline(), 1, 0
    if (encoding := encoding_of(line[:4])) != "utf-8-sig":
        yield from _recoded(line, lines, encoding)
        return
    while line:
        length, is_blank = len(line), line.isspace()
        text = _text(line)
        del line  # It may be large: only one of bytes, text and value is held beside another.
        if not is_blank:
            row = _value(text)
            del text
            yield (position, row, offset) if offsets else (position, row)
            del row
        line, position, offset = lines.readline(), position + 1, offset + length


def _recoded(start: bytes, lines: Stream, encoding: str) -> Rows:
    """Rows of lines in UTF-16 or UTF-32, where a line break is no single byte."""
    decoder = codecs.getincrementaldecoder(encoding)()
    text, position = "", 0
    for chunk in (start, *iter(lambda: lines.read(2**16), b""), b""):
        text += decoder.decode(chunk, final=not chunk)
        *whole, text = text.split("\n")
        for line in whole + ([text] if not chunk else []):
            position += 1
            if line and not line.isspace():
                yield position, parse_line(line.encode("utf-8", "surrogatepass"))


def lines_at(path: Path, lines: list[tuple[int, int]]) -> Iterator[tuple[int, Any, int]]:
    """Rows of a JSONL file by position and offset in bytes."""
    with path.open("rb") as file:
        for position, offset in lines:
            file.seek(offset)
            yield position, parse_line(file.readline()), offset


def parse_line(line: bytes) -> Any:
    """The value of a line, or why it has none."""
    return _value(_text(line))


def _text(line: bytes) -> str | Unreadable:
    try:
        return line.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        raw = line.removeprefix(codecs.BOM_UTF8).decode("utf-8", "replace")
        return Unreadable(f"not JSON in UTF-8: {error}", raw.rstrip("\r\n"))


def _value(text: str | Unreadable) -> Any:
    if isinstance(text, Unreadable):
        return text
    try:
        return DECODER.decode(text)
    except RepeatedKeyError as error:
        return Unreadable(str(error), text.rstrip("\r\n"))
    except (ValueError, RecursionError) as error:
        # The parser counts lines within this one.
        reason = str(error).replace("line 1 ", "")
        return Unreadable(f"not JSON in UTF-8: {reason}", text.rstrip("\r\n"))


def read_json(file: DataFile, columns: Columns) -> Rows:
    """Read an array of objects, an object with one inside, one row, or several documents."""
    with file.content() as stream:
        content = stream.read()
    try:
        document = DECODER.decode(content.decode(encoding_of(content[:4])))
    except ValueError as error:
        if _is_lines(content, error):
            del content
            yield from read_jsonl(file, columns)
        else:
            yield from _documents(content.decode(encoding_of(content[:4])))
    else:
        del content
        yield from enumerate(_array(document, columns), 1)


def _is_lines(content: bytes, error: ValueError) -> bool:
    """Whether what is no document has objects, one a line."""
    text = content.decode(encoding_of(content[:4]), "replace").lstrip()
    line = text.partition("\n")[0].strip()
    if isinstance(error, RepeatedKeyError):
        return line.startswith("{") and line.endswith("}")
    return isinstance(parse_line(line.encode("utf-8", "replace")), dict)


def _documents(text: str) -> Rows:
    """Objects one after another over several lines, each with the line on which it begins."""
    line, start, whole = 1, 0, []
    while start < len(text):
        if text[start].isspace():
            line, start = line + (text[start] == "\n"), start + 1
            continue
        # The decoder says of damage where in the whole text it is.
        document, end = DECODER.raw_decode(text, start)
        if not isinstance(document, dict):
            DECODER.decode(text)  # It raises: what follows the first document is no JSON.
        whole.append((line, document))
        line, start = line + text.count("\n", start, end), end
    if not whole:
        DECODER.decode(text)
    yield from whole


def _array(document: Any, columns: Columns) -> list[Any]:
    if isinstance(document, list):
        return document
    if not isinstance(document, dict):
        raise ValueError("wanted an array of objects, or an object with one such array")
    arrays = {
        name: value
        for name, value in document.items()
        if isinstance(value, list) and value and all(isinstance(row, dict) for row in value)
    }
    if is_recognised(tuple(document), columns):
        _refuse_rows_inside(document, arrays, columns)
        return [document]
    if len(arrays) != 1:
        told = f", not {len(arrays)}: {', '.join(arrays)}" if arrays else ""
        raise ValueError(f"wanted an array of objects, or an object with one such array{told}")
    ((name, rows),) = arrays.items()
    _refuse_turns(name, rows, document, columns)
    return rows


def _refuse_rows_inside(document: Any, arrays: dict[str, Any], columns: Columns) -> None:
    """Raise ValueError for a row that holds what look like rows, but for turns of its own."""
    for name, rows in arrays.items():
        if name.lower() not in HOLD_TURNS and is_recognised(tuple(rows[0]), columns):
            raise ValueError(
                f"either the file is one row ({', '.join(document)}) or its rows are those under "
                f"'{name}', and nobody knows which; write rows as an array, or one a line"
            )


def _refuse_turns(name: str, rows: list[Any], document: Any, columns: Columns) -> None:
    """Raise ValueError for an array that is part of one row, as the turns of a dialogue are."""
    has_own_id = any(key.lower() == "id" or key.lower().endswith("_id") for key in document)
    of_text = "text" in {key.lower() for key in rows[0]} and not is_recognised(
        tuple(key for key in rows[0] if key.lower() != "text"), columns
    )
    named_rows = name.lower() in HOLD_ROWS
    if (
        name.lower() in HOLD_TURNS
        or (has_own_id and not named_rows)
        or (of_text and not named_rows)
    ):
        raise ValueError(
            f"the objects under '{name}' may be parts of one row ({', '.join(document)}) instead "
            "of rows; write rows as an array, or one a line"
        )
