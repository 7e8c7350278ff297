"""Rows with images: where they stand in a conversation, and what keeps a row from being used."""

import numpy as np
import pytest
from vision_models import tiny_image

from forvalue_index.exceptions import BadSampleError
from forvalue_index.sources.columns import to_sample
from forvalue_index.sources.images import ImageFiles, digest_of
from forvalue_index.sources.sample import Message
from forvalue_index.sources.source import open_sources

A, B = tiny_image(24, 16, 1), tiny_image(16, 40, 2)
NAMES = {digest_of(A): "A", digest_of(B): "B"}


def sample(row, columns=None):
    return to_sample(row, columns)


def told(found):
    """A sample as text with the names of its images at their places."""
    shown = [
        (message.role, message.text(lambda image: f"<{NAMES[image.digest]}>"))
        for message in found.messages
    ]
    return shown if len(shown) > 1 else shown[0]


PAIR = [("user", "<A>what?"), ("assistant", "this")]
TWO = [("user", "<A>or <B>?"), ("assistant", "this")]


def turns(*contents):
    roles = ("user", "assistant") * len(contents)
    return [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]


def text(words):
    return {"type": "text", "text": words}


def picture(value=None, name="image"):
    return {"type": "image"} | ({} if value is None else {name: value})


ROWS = {
    "a column beside prompt and response": (
        {"prompt": "what?", "response": "this", "image": A},
        PAIR,
    ),
    "a column of one": ({"prompt": "what?", "response": "this", "images": [A]}, PAIR),
    "a column, upper case": ({"prompt": "what?", "response": "this", "Image": A}, PAIR),
    "two in front": (
        {"question": "same?", "answer": "no", "images": [A, B]},
        [("user", "<A><B>same?"), ("assistant", "no")],
    ),
    "marks in the prompt": (
        {"prompt": "<image>or <image>?", "response": "this", "images": [A, B]},
        TWO,
    ),
    "LLaVA": (
        {
            "id": "x",
            "image": A,
            "conversations": [
                {"from": "human", "value": "<image>\nwhat?"},
                {"from": "gpt", "value": "this"},
            ],
        },
        [("user", "<A>\nwhat?"), ("assistant", "this")],
    ),
    "The Cauldron": (
        {
            "images": [A],
            "texts": [
                {"user": "what?", "assistant": "this", "source": "s"},
                {"user": "sure?", "assistant": "yes", "source": "s"},
            ],
        },
        [*PAIR, ("user", "sure?"), ("assistant", "yes")],
    ),
    "an image of a pair of answers": (
        {"prompt": "what?", "chosen": "this", "rejected": "that", "image": A},
        PAIR,
    ),
    "parts that hold images": (
        {"messages": turns([picture(A), text("what?")], [text("this")])},
        PAIR,
    ),
    "parts in between": (
        {"messages": turns([picture(A), text("or "), picture(B), text("?")], "this")},
        TWO,
    ),
    "parts without images": (
        {
            "messages": turns([picture(), text("or "), picture(), text("?")], "this"),
            "images": [A, B],
        },
        TWO,
    ),
    "parts as a Parquet file has them": (
        {
            "messages": turns(
                [{"type": "image", "text": None}, {"type": "text", "text": "what?"}], "this"
            ),
            "images": [{"bytes": None, "path": None, "image": A}],
        },
        PAIR,
    ),
    "the part of another library": (
        {
            "messages": turns(
                [{"type": "image_url", "image_url": {"image": A}}, text("what?")], "this"
            )
        },
        PAIR,
    ),
    "images beside the content of a turn": (
        {"messages": [{"role": "user", "content": "what?", "images": [A]}, *turns("", "this")[1:]]},
        PAIR,
    ),
    "images with their places": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": "or ?",
                    "images": [{"image": A, "at": 0}, {"image": B, "at": 3}],
                },
                *turns("", "this")[1:],
            ]
        },
        TWO,
    ),
    "after a system turn": (
        {
            "messages": [{"role": "system", "content": "be kind"}, *turns("what?", "this")],
            "image": A,
        },
        [("system", "be kind"), *PAIR],
    ),
    "a caption": ({"text": "a cab", "image": A}, ("text", "<A>a cab")),
    "a caption with its place": (
        {"text": "see <image> here", "image": A},
        ("text", "see <A> here"),
    ),
    "an empty column beside a full one": (
        {"prompt": "what?", "response": "this", "images": [], "image": A},
        PAIR,
    ),
    "a null beside a full one": (
        {"prompt": "what?", "response": "this", "image": None, "images": [A]},
        PAIR,
    ),
    "an image beside the content of a turn": (
        {"messages": [{"role": "user", "content": "what?", "image": A}, *turns("", "this")[1:]]},
        PAIR,
    ),
    "an array of objects": (
        {"prompt": "or ?", "response": "this", "images": np.array([A, B], dtype=object)},
        [("user", "<A><B>or ?"), ("assistant", "this")],
    ),
    "not a number, as pandas says": (
        {"prompt": "what?", "response": "this", "image": float("nan")},
        None,
    ),
    "none": ({"prompt": "<image> is a mark", "response": "yes", "image": None}, None),
    "none in a list": ({"prompt": "what?", "response": "this", "images": [None, ""]}, None),
    "an empty list": ({"prompt": "what?", "response": "this", "images": []}, None),
}


@pytest.mark.parametrize("case", ROWS)
def test_images_stand_where_the_row_says(case):
    row, expected = ROWS[case]
    found = sample(row)
    if expected is None:
        assert found.images == ()
        assert found.messages[0].content == row["prompt"]
    else:
        assert told(found) == expected
        assert "image" not in {name.lower() for name in found.metadata}


def test_a_column_of_images_can_be_mapped():
    found = sample(
        {"q": "what?", "a": "this", "photo": A}, {"prompt": "q", "response": "a", "images": "photo"}
    )
    assert told(found) == PAIR
    assert found.metadata == {}


def test_the_hash_covers_pixels_and_places_and_no_file(tmp_path):
    row = {"prompt": "what?", "response": "this"}
    plain, with_a, with_b = (sample(row | more) for more in ({}, {"image": A}, {"image": B}))
    at_the_end = sample(row | {"prompt": "what?<image>", "image": A})
    hashes = {one.content_hash for one in (plain, with_a, with_b, at_the_end)}
    assert len(hashes) == 4
    A.save(tmp_path / "a.png")
    (tmp_path / "deep").mkdir()
    A.save(tmp_path / "deep" / "other.bmp")
    for path in ("a.png", "deep/other.bmp"):
        read = to_sample(row | {"image": path}, images=ImageFiles(tmp_path))
        assert read.content_hash == with_a.content_hash
        assert read.images[0].path == str(tmp_path / path)


def test_texts_alone_are_hashed_as_ever():
    """Samples of indexes from before there were images stay known."""
    found = sample({"prompt": "what?", "response": "this"})
    assert found.content_hash == "30412bbd96fd6107d043209106d292b2"


BAD = {
    "a place too many": (
        {"messages": turns([picture(), picture(), text("?")], "this"), "image": A},
        "there are 2 places for images, as parts of type image or <image>, and 'image' holds 1; "
        "give each place one",
    ),
    "a mark too few": (
        {"prompt": "<image> and", "response": "this", "images": [A, B]},
        "there are 1 places for images, as parts of type image or <image>, and 'images' holds 2; "
        "give each place one",
    ),
    "no image at all": (
        {"messages": turns([picture(), text("?")], "this")},
        "there are 1 places for images, as parts of type image or <image>, and no column holds "
        "any; give each place one",
    ),
    "a video": (
        {"messages": turns([{"type": "video", "video": "v.mp4"}], "this")},
        "part 1 of turn 1 of 'messages' has the type 'video', and only text and images are read",
    ),
    "a part that is none": (
        {"messages": turns([7], "this")},
        "part 1 of turn 1 of 'messages' is int, wanted text or an image",
    ),
    "text that is none": (
        {"messages": turns([{"type": "text", "text": 7}], "this")},
        "the text of part 1 of turn 1 of 'messages' is int, wanted text",
    ),
    "an answer that is an image": (
        {"messages": turns("draw", [picture(A)])},
        "'messages' is empty or blank at its end; nothing there to score",
    ),
    "places out of order": (
        {
            "messages": [
                {
                    "role": "user",
                    "content": "or",
                    "images": [{"image": A, "at": 2}, {"image": B, "at": 1}],
                },
                *turns("", "this")[1:],
            ]
        },
        "image 2 of 'images of turn 1 of 'messages'' is at 1, wanted 2 to 2, in order",
    ),
    "images twice": (
        {
            "messages": [
                {"role": "user", "content": [picture(A), text("x")], "images": [B]},
                *turns("", "this")[1:],
            ]
        },
        "turn 1 of 'messages' has images, and more among its parts; use one of these",
    ),
    "a number": ({"prompt": "a", "response": "b", "image": 7}, "'image' is int, wanted a path"),
    "a part of a strange type": (
        {"messages": turns([{"type": ["image"]}], "this")},
        "part 1 of turn 1 of 'messages' has the type ['image'], and only text and images are read",
    ),
    "two columns": (
        {"prompt": "a", "response": "b", "image": A, "images": [B]},
        "the columns image and images both hold images; say which one is meant with --columns",
    ),
    "both beside a turn": (
        {
            "messages": [
                {"role": "user", "content": "x", "image": A, "images": [B]},
                *turns("", "this")[1:],
            ]
        },
        "turn 1 of 'messages' has images and image; use one of them",
    ),
    "the second of two": (
        {"prompt": "a", "response": "b", "images": [A, "none.png"]},
        "image 2 of 'images', ",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_cannot_be_used_is_one_line(case, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row, said = BAD[case]
    with pytest.raises(BadSampleError) as raised:
        sample(row)
    assert str(raised.value).startswith(said)


def test_paths_count_from_the_data_file(tmp_path, monkeypatch):
    """Whatever the working directory is, unless another root is named."""
    data = tmp_path / "data"
    data.mkdir()
    A.save(data / "a.png")
    (data / "rows.jsonl").write_text('{"prompt": "what?", "response": "this", "image": "a.png"}\n')
    monkeypatch.chdir("/")
    (found,) = open_sources([str(data / "rows.jsonl")])[0].samples()
    assert told(found) == PAIR
    (found,) = open_sources([str(data / "rows.jsonl")], media_root=tmp_path)[0].samples()
    assert told(found) == PAIR  # from the directory of the data, which the root holds
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (bad,) = open_sources([str(data / "rows.jsonl")], media_root=elsewhere)[0].samples()
    assert "does not lie below" in bad.reason
    (found,) = open_sources([{"text": "t", "image": "data/a.png"}], media_root=tmp_path)[
        0
    ].samples()
    assert found.images[0].path == str(data / "a.png")


def test_the_text_of_a_message_is_split_at_its_images():
    found = sample(
        {"messages": turns([text("a"), picture(A), picture(B), text("b")], "c")}
    ).messages[0]
    assert [p if isinstance(p, str) else NAMES[p.digest] for p in found.parts] == [
        "a",
        "A",
        "B",
        "b",
    ]
    assert found.content == "ab"
    assert list(Message("user", "").parts) == []


def test_a_list_in_a_cell_of_a_csv_file(tmp_path):
    A.save(tmp_path / "a.png")
    B.save(tmp_path / "b.png")
    (tmp_path / "x.csv").write_text(
        'prompt,response,images\n<image>or <image>?,this,"[""a.png"", ""b.png""]"\n'
        "<image>what?,this,a.png\nx,y,\n"
    )
    both, one, none = open_sources(str(tmp_path / "x.csv"))[0].samples()
    assert (told(both), told(one), none.images) == (TWO, PAIR, ())


def test_an_empty_list_of_a_turn_is_no_image():
    """It stays a field of the turn, as it was before there were images, and so does its hash."""
    turn = {"role": "user", "content": "what?", "images": []}
    found = sample({"messages": [turn, *turns("", "this")[1:]]})
    assert found.messages[0].extra == {"images": []}
    assert found.images == ()


def test_a_preview_tells_of_images():
    assert (
        sample({"prompt": "what?", "response": "this", "image": A}).preview
        == "[24x16] what? → this"
    )


def indexed(*indices):
    parts = [{"type": "image", "index": i} if i is not None else {"type": "image"} for i in indices]
    turns = [{"role": "user", "content": parts}, {"role": "assistant", "content": "x"}]
    pictures = [tiny_image(8 + n, 8, n) for n in range(len(indices))]
    return to_sample({"messages": turns, "images": pictures})


@pytest.mark.parametrize("indices", [(0, 1, 2), (2, 0, 1), (None,) * 3, (np.int64(1), 0, 2)])
def test_a_part_may_say_which_image_it_is(indices):
    order = indices if indices[0] is not None else (0, 1, 2)
    assert [image.width - 8 for image in indexed(*indices).images] == list(order)


@pytest.mark.parametrize("indices", [(0, 0), (0, None), (1, 2), (-1, 0), (0, "1"), (True, 0)])
def test_indices_of_images_that_do_not_fit_are_refused(indices):
    with pytest.raises(BadSampleError, match=r"index of part|image parts have the indices"):
        indexed(*indices)


def test_an_empty_entry_is_no_image():
    """As data sets write it that have images for some rows alone."""
    nothing = {"bytes": None, "path": None}
    picture = tiny_image(9, 9, 0)
    text = {"prompt": "what?", "response": "this"}
    assert to_sample({**text, "image": nothing}).images == ()
    assert to_sample({**text, "images": [nothing, nothing]}).images == ()
    assert len(to_sample({**text, "images": [nothing, picture]}).images) == 1
    assert len(to_sample({**text, "image": nothing, "images": [picture]}).images) == 1
