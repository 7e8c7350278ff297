"""Pages: where they may be written, and what becomes of one that cannot be."""

import os
import resource

import pytest

from forvalue_index.exceptions import UsageError
from forvalue_index.reports.pages import PageError, page, refuse_page, write_page

ONE = page("ü→😀 <b>", "<p>ü→😀</p>")


def test_a_title_is_text():
    assert "<title>ü→😀 &lt;b&gt;</title>" in ONE


def test_a_page_is_written_in_utf_8_and_over_an_old_one(tmp_path):
    path = tmp_path / "x.HTML"
    path.write_text("old and longer" * 1000)
    write_page(path, ONE)
    assert path.read_bytes().decode("utf-8") == ONE


@pytest.mark.parametrize(("name", "said"), [("x.pdf", r"\.pdf"), ("x", "no suffix")])
def test_an_unknown_suffix_is_refused(tmp_path, name, said):
    for call in (refuse_page, lambda path: write_page(path, ONE)):
        with pytest.raises(UsageError, match=rf"{name} ends in {said}; use \.html$"):
            call(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_directory_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"none is not a directory; create it, or write elsew"):
        refuse_page(tmp_path / "none" / "x.html")


def test_a_read_only_directory_is_refused(tmp_path, monkeypatch):
    """To root, who may write everywhere, no directory is read-only."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(PageError, match="the directory is read-only; write elsewhere"):
        refuse_page(tmp_path / "x.html")


@pytest.fixture
def no_room():
    """No file of this process may grow beyond some bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_want_of_room_is_told(tmp_path, request):
    (tmp_path / "x.html").write_text("an older page")
    request.getfixturevalue("no_room")
    with pytest.raises(PageError, match=r"x\.html cannot be written \(File too large\); write"):
        write_page(tmp_path / "x.html", ONE)
    assert (tmp_path / "x.html").read_text() == "an older page"
    assert [path.name for path in tmp_path.iterdir()] == ["x.html"]


def test_a_page_that_cannot_be_written_says_why(tmp_path):
    (tmp_path / "x.html").mkdir()
    with pytest.raises(PageError, match=r"x\.html cannot be written \(Is a directory\); write"):
        write_page(tmp_path / "x.html", ONE)
    assert PageError.exit_code == 1
