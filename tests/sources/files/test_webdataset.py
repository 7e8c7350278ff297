"""WebDataset: what its own writer makes, and archives of strangers, which write nothing."""

import gzip
import io
import tarfile

import pytest
import webdataset
from PIL import Image
from reading import bad, metadata, pairs, raw, read

from forvalue_index.exceptions import SourceError
from forvalue_index.sources.source import open_sources


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (3, 2), color).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def archive(tmp_path):
    def write(*members):
        path = tmp_path / "d.tar"
        with tarfile.open(path, "w") as tar:
            for name, content in members:
                member = tarfile.TarInfo(name)
                if content is None:
                    member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                else:
                    member.size = len(content)
                tar.addfile(member, io.BytesIO(content or b""))
        return path

    return write


def test_samples_as_the_library_writes_them(tmp_path):
    path = tmp_path / "d.tar"
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    with webdataset.TarWriter(str(path)) as writer:
        writer.write(
            {
                "__key__": "s/000",
                "json": {"prompt": "<image>What?", "response": "A", "n": 1},
                "png": Image.new("RGB", (3, 2), "red"),
            }
        )
        writer.write({"__key__": "s/001", "txt": "caption", "cls": 3, "png": png("blue")})
        writer.write({"__key__": "s/002", "json": {"messages": turns}, "npy": b"\xff"})
    assert pairs(path) == [("What?", "A"), ("", "caption"), ("q", "a")]
    assert metadata(path) == [
        {"n": 1, "__key__": "s/000"},
        {"cls": 3, "__key__": "s/001"},
        {"npy": "<1 bytes>", "__key__": "s/002"},
    ]
    first, second, _ = read(path)
    assert [image.content for image in first.images] == [png()]
    assert [(image.width, image.at) for image in second.images] == [(3, 0)]
    assert [row.position for row in read(path)] == [1, 2, 3]
    compressed = tmp_path / "d.tar.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert pairs(compressed) == pairs(path)


def test_no_path_leads_out_of_an_archive(archive, tmp_path):
    path = archive(("../../c.txt", b"three"), ("/abs/d.txt", b"four"), ("e.txt", None))
    before = sorted(tmp_path.rglob("*"))
    assert pairs(path) == [("", "three"), ("", "four")]
    assert [row["__key__"] for row in metadata(path)] == ["../../c", "/abs/d"]
    assert bad(path) == ["d.tar:3: e.txt is a link or a device, wanted a file"]
    assert sorted(tmp_path.rglob("*")) == before


def test_files_that_make_no_sample_are_named(archive):
    members = [
        *(("a.txt", b"one"), ("b.txt", b"two"), ("a.cls", b"1"), ("README", b"x")),
        *(("f.txt", b"\xff"), ("g.json", b"{bad"), ("i.png", png()), ("i.gif", png())),
        *(("h.txt", b"T"), ("h.seg.png", png()), ("j.id", b"7"), ("j.txt", b"J")),
    ]
    path = archive(*members)
    assert pairs(path) == [("", "one"), ("", "two"), ("", "T"), ("", "J")]
    assert [row.own_id for row in read(path)[-1:]] == ["7"]
    shown = bad(path)
    assert shown[:2] == [
        "d.tar:3: files of the key a came before; let those of a sample lie one after another",
        "d.tar:4: README has no suffix, which would say what it holds",
    ]
    assert shown[2].startswith("d.tar:5: f.txt is not UTF-8: ")
    assert shown[3].startswith("d.tar:6: g.json is not JSON in UTF-8: ")
    assert shown[4] == "d.tar:7: i.gif has the column 'image' again; keep one of them"
    assert raw(path)[0] == {"cls": 1, "__key__": "a"}


@pytest.mark.parametrize(
    "damaged",
    [
        lambda content: b"",
        lambda content: b"junk" * 500,
        lambda content: content[:2000],
        lambda content: content[:3584],  # between two files
        lambda content: content[:4000],
        lambda content: content[:3600] + b"\xff" * 400 + content[4000:],
    ],
    ids=["empty", "other", "cut", "between", "header", "flipped"],
)
def test_a_damaged_archive_is_one_line(archive, damaged):
    path = archive(("a.txt", b"one" * 999), ("b.txt", b"two" * 999))
    path.write_bytes(damaged(path.read_bytes()))
    with pytest.raises(SourceError, match="cannot be read: not a whole tar archive: "):
        read(path)


def test_archives_one_after_another_are_refused(archive):
    path = archive(("a.txt", b"one"))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(SourceError, match="after the end of the tar archive comes more; split"):
        read(path)


def test_samples_are_found_again_by_their_number(archive):
    path = archive(("a.txt", b"one"), ("b.txt", b"two"), ("c.txt", b"three"))
    (source,) = open_sources(path)
    found = source.samples_at({(2, None)})
    assert [sample.response for sample in found.values()] == ["two"]
