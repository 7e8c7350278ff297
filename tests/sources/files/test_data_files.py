"""Text and archives are decompressed as they are read, and a cut or damaged file is named."""

import bz2
import gzip
import json
import lzma
import subprocess
import sys

import pytest
import zstandard
from reading import PAIRS, ROWS, pairs, read

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.files.data_files import suffixes

LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
ZSTD = zstandard.ZstdCompressor(write_checksum=True)
COMPRESS = {
    ".gz": gzip.compress,
    ".zst": ZSTD.compress,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
}


def as_csv(delimiter):
    lines = [delimiter.join(("id", "prompt", "response", "topic"))]
    lines += [delimiter.join(f'"{value}"' for value in row.values()) for row in ROWS]
    return "\n".join(lines).encode()


CONTENTS = {
    ".jsonl": LINES,
    ".ndjson": LINES,
    ".json": json.dumps(ROWS).encode(),
    ".csv": as_csv(","),
    ".tsv": as_csv("\t"),
}


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("suffix", CONTENTS)
def test_every_text_format_may_be_compressed(tmp_path, suffix, compression):
    path = tmp_path / f"d{suffix}{compression}"
    path.write_bytes(COMPRESS[compression](CONTENTS[suffix]))
    assert pairs(path) == PAIRS
    assert all(sample.offset is None for sample in read(path))


@pytest.mark.parametrize("compression", COMPRESS)
def test_parts_one_after_another_are_one_file(tmp_path, compression):
    path = tmp_path / f"d.jsonl{compression}"
    path.write_bytes(b"".join(COMPRESS[compression](LINES) for _ in range(3)))
    assert pairs(path) == PAIRS * 3


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: content[:-20],
        lambda content: content[: len(content) // 2],
        lambda content: b"no such thing at all",
        lambda content: content[:-3] + bytes(255 - byte for byte in content[-3:]),
    ],
    ids=["cut", "half", "other", "flipped"],
)
def test_a_cut_or_damaged_file_is_one_line(tmp_path, compression, damage):
    path = tmp_path / f"d.jsonl{compression}"
    path.write_bytes(damage(COMPRESS[compression](LINES * 500)))
    with pytest.raises(SourceError) as error:
        read(path)
    assert str(error.value).startswith(f"{path} cannot be read: ")
    assert str(error.value).endswith("; check the file")
    assert "\n" not in str(error.value)


def test_suffixes_of_paths_and_addresses():
    assert suffixes("a.b/D.JSONL.Zst") == (".jsonl", ".zst")
    assert suffixes("d.parquet") == (".parquet", "")
    assert suffixes("https://a.b/d.csv.gz?raw=true#x") == (".csv", ".gz")
    assert suffixes("s3://d.parquet") == (".parquet", "")
    assert suffixes("d.gz") == ("", ".gz")


PEAK = (
    "import resource, sys\n"
    "from forvalue_index.sources.source import open_sources\n"
    "(source,) = open_sources(sys.argv[1])\n"
    "n = sum(1 for _ in source.samples())\n"
    "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
)


def rows_and_peak(path):
    """How many rows a process reads, and its memory at the most in MiB."""
    done = subprocess.run([sys.executable, "-c", PEAK, path], capture_output=True, check=True)
    rows, peak = map(int, done.stdout.split())
    return rows, peak / (2**20 if sys.platform == "darwin" else 2**10)


def test_memory_is_that_of_a_row_and_not_of_a_file(tmp_path):
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl.zst"
    small.write_bytes(LINES)
    line = json.dumps({"text": "word " * 2000}).encode() + b"\n"
    large.write_bytes(ZSTD.compress(line * 10_000))  # 100 MB
    (_, least), (rows, most) = rows_and_peak(small), rows_and_peak(large)
    assert rows == 10_000
    assert most < least + 40


def test_a_long_line_is_held_as_bytes_and_text_alone(tmp_path):
    small, large = tmp_path / "small.jsonl", tmp_path / "large.jsonl"
    small.write_bytes(LINES)
    megabytes = 60
    with large.open("wb") as file:
        file.write(b'{"text": "' + b"word " * (megabytes * 2**20 // 5) + b'"}\n')
    (_, least), (rows, most) = rows_and_peak(small), rows_and_peak(large)
    assert rows == 1
    assert most < least + 3.5 * megabytes
