"""Addresses: servers on this machine, and words for what is not installed or not there."""

import json
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler

import fsspec
import polars
import pytest
import zstandard
from local_hub import served
from moto.server import ThreadedMotoServer
from reading import PAIRS, ROWS, bad, pairs, read

from forvalue_index.exceptions import MissingDependencyError, SourceError, UsageError
from forvalue_index.sources.source import open_sources

LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def files(tmp_path):
    (tmp_path / "d.jsonl").write_bytes(LINES)
    (tmp_path / "d.jsonl.zst").write_bytes(zstandard.compress(LINES))
    polars.DataFrame(ROWS).write_parquet(tmp_path / "d.parquet")
    polars.DataFrame(ROWS).write_ipc(tmp_path / "d.arrow")
    return tmp_path


@pytest.mark.parametrize(
    "name", ["d.jsonl", "d.jsonl?download=true", "d.jsonl.zst", "d.parquet", "d.arrow"]
)
def test_files_of_a_web_server(files, name):
    """This server gives no parts of a file, which Parquet asks for."""
    with served(partial(Quiet, directory=str(files))) as url:
        (source,) = open_sources(f"{url}/{name}")
        rows = list(source.samples())
        assert [(row.prompt, row.response) for row in rows] == PAIRS
        assert list(source.samples()) == rows
        assert (source.path, source.rereadable) == (None, True)
        assert all(row.offset is None for row in rows)


def test_what_a_web_server_does_not_have(files):
    with served(partial(Quiet, directory=str(files))) as url:
        with pytest.raises(SourceError, match=r"none\.jsonl does not exist: check the address"):
            read(f"{url}/none.jsonl")
        with pytest.raises(UsageError, match=r"--split train: http.* has no splits"):
            open_sources(f"{url}/d.jsonl", split="train")
    with pytest.raises(SourceError, match=r"cannot be read: ClientConnector.*check the address"):
        read(f"{url}/d.jsonl")


@pytest.fixture
def bucket(files, monkeypatch):
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in (
        ("AWS_ENDPOINT_URL", f"http://{host}:{port}"),
        ("AWS_ACCESS_KEY_ID", "x"),
        ("AWS_SECRET_ACCESS_KEY", "x"),
        ("AWS_DEFAULT_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    system = fsspec.filesystem("s3", skip_instance_cache=True)
    system.mkdir("bucket")
    for path in files.iterdir():
        system.put(str(path), f"bucket/{path.name}")
    for name in ("part-10.jsonl", "part-2.jsonl"):
        system.pipe(f"bucket/shards/{name}", LINES)
    system.pipe("bucket/clone/data/a.jsonl", LINES)
    yield "s3://bucket"
    server.stop()


def test_files_of_s3(bucket):
    assert pairs(f"{bucket}/d.jsonl.zst") == pairs(f"{bucket}/d.parquet") == PAIRS
    assert [source.name for source in open_sources(f"{bucket}/shards")] == [
        f"{bucket}/shards/{name}" for name in ("part-2.jsonl", "part-10.jsonl")
    ]
    assert pairs(f"{bucket}/shards/*.jsonl") == PAIRS * 2
    assert pairs(f"{bucket}/clone") == PAIRS
    with pytest.raises(SourceError, match=r"s3://bucket/no\.jsonl does not exist"):
        read(f"{bucket}/no.jsonl")


@pytest.fixture
def memory():
    system = fsspec.filesystem("memory")
    system.store.clear()
    yield system
    system.store.clear()


def test_files_in_memory(memory):
    memory.pipe("/b/train-2.jsonl", LINES)
    memory.pipe("/b/test-1.jsonl", LINES)
    assert pairs("memory://b/train-2.jsonl") == PAIRS
    assert pairs("memory://b/*.jsonl") == PAIRS * 2
    with pytest.raises(SourceError, match="memory://b holds files of the splits test, train"):
        open_sources("memory://b")
    assert pairs("memory://b", split="train") == PAIRS
    for name in ("/c/data/train/a.jsonl", "/c/data/test/a.jsonl", "/c/README.md"):
        memory.pipe(name, LINES)
    assert pairs("memory://c", split="train") == PAIRS
    with pytest.raises(SourceError, match=r"memory://b/\*\.csv matches no file"):
        open_sources("memory://b/*.csv")


def test_images_of_remote_rows_are_refused_unless_they_lie_here(memory, tmp_path):
    memory.pipe("/i.jsonl", b'{"text": "<image>x", "image": "a.png"}\n')
    assert bad("memory://i.jsonl") == [
        "i.jsonl:1: 'image' is the path a.png in data that do not lie on this machine, and nothing "
        "is fetched; download the images and name their directory with --media-root"
    ]
    assert "a.png, is missing" in bad("memory://i.jsonl", media_root=tmp_path)[0]


def test_an_address_on_this_machine_is_a_path(files):
    (source,) = open_sources(f"file://{files}/d.jsonl")
    assert source.path == files / "d.jsonl"
    assert pairs(f"file://{files}/d.jsonl") == PAIRS


def test_protocols_that_are_not_there(monkeypatch):
    with pytest.raises(SourceError, match=r"xyz://b/d\.jsonl has a protocol that is not known"):
        read("xyz://b/d.jsonl")
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(MissingDependencyError, match=r"gs:// .* 'forvalue-index\[remote\]'"):
        read("gs://b/d.jsonl")
