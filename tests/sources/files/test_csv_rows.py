"""CSV as the csv module writes it in its dialects; a damaged record costs one row."""

import csv
import io
import logging

import pandas
import polars
import pytest
from reading import bad, metadata, pairs, raw, read

from forvalue_index.exceptions import SourceError

ROWS = [
    {"prompt": 'He said "hi, you"', "response": "it's; ok", "n": "1"},
    {"prompt": "two\nlines", "response": "a\tb | c", "n": "2"},
    {"prompt": "back\\slash", "response": "plain", "n": "3"},
]
PAIRS = [(row["prompt"], row["response"]) for row in ROWS]


@pytest.fixture
def write(tmp_path):
    def write(content, name="d.csv"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def written(rows=ROWS, **dialect):
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), **dialect)
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


BACKSLASH = {"escapechar": "\\", "doublequote": False}


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
@pytest.mark.parametrize(
    "dialect",
    [
        {},
        {"quoting": csv.QUOTE_ALL},
        {"lineterminator": "\n"},
        {"lineterminator": "\r", "quoting": csv.QUOTE_ALL},
        {"quotechar": "'", "quoting": csv.QUOTE_ALL},
        BACKSLASH,
        {**BACKSLASH, "quoting": csv.QUOTE_ALL},
    ],
    ids=["usual", "all", "lf", "cr", "single", "backslash", "backslash all"],
)
def test_every_dialect_gives_the_same_rows(write, delimiter, dialect):
    if delimiter == "\t" and dialect == BACKSLASH:
        pytest.skip("tabs between cells are often written without quotes: a backslash is one")
    path = write(written(delimiter=delimiter, **dialect))
    assert pairs(path) == PAIRS
    assert metadata(path) == [{"n": "1"}, {"n": "2"}, {"n": "3"}]


def test_what_is_guessed_is_said_once(write, caplog):
    path = write(written(delimiter=";"), "said.csv")
    with caplog.at_level(logging.WARNING):
        assert pairs(path) == pairs(path) == PAIRS
    assert [record.getMessage() for record in caplog.records] == [
        f'{path} is read with semicolons between cells and quotes "'
    ]


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
def test_utf_16_as_spreadsheets_write_it(write, name):
    assert pairs(write(written(delimiter="\t").encode("utf-16"), name)) == PAIRS


def test_what_pandas_and_polars_write(write, tmp_path):
    pandas.DataFrame(ROWS).to_csv(tmp_path / "pandas.csv")
    assert pairs(tmp_path / "pandas.csv") == PAIRS
    assert metadata(tmp_path / "pandas.csv")[0] == {"n": "1"}
    polars.DataFrame(ROWS).write_csv(tmp_path / "polars.tsv", separator="\t")
    assert pairs(tmp_path / "polars.tsv") == PAIRS


def test_tabs_alone_between_cells_and_quotes_as_text(write):
    """No cell is closed by a quote, so none was opened by one."""
    text = 'prompt\tresponse\n"Hello" she said\tb\n5" disk\t"open\nq\ta\n'
    assert pairs(write(text, "d.tsv")) == [
        ('"Hello" she said', "b"),
        ('5" disk', '"open'),
        ("q", "a"),
    ]


def test_an_unclosed_quote_loses_one_row(write):
    """It lost 48 rows that were named nowhere."""
    lines = ["prompt,response", '"open q,a1', *(f"q{i},a{i}" for i in range(2, 50))]
    path = write("\n".join(lines) + "\n")
    assert pairs(path) == [(f"q{i}", f"a{i}") for i in range(2, 50)]
    assert bad(path) == [
        "d.csv:2: a quote opened here is not closed where it should be; close it, or double it in "
        "a text"
    ]
    assert raw(path) == ['"open q,a1']


@pytest.mark.parametrize(
    ("body", "good", "lines"),
    [
        ('"o1,a1\nq2,a2\n"q3",a3\n"o4,a4\nq5,"a5, b"\n', "q2 q3 q5", "2 5"),
        ('q1,"a1\nq2,a2\nq3,"x ""y"" z"\nq4,a4\n', "q2 q3 q4", "2"),
        ('"q1","a1\n"q2","a2"\n"q3","a3\nline"\n"q4","a4"\n', "q2 q3 q4", "2"),
        ('"q1,a1\nq2,"a2\nq3,a3\n', "q3", "2"),
        ('q1,a1\nq2,"open', "q1", "3"),
        ('"say "hi", yes\nline two, with comma\nline three",A\nq2,a2\n', "q2", "2"),
        ('"two\nlines"x,A\nq2,a2\n', "q2", "2"),
        ('"two\nlines",A,more\nq2,a2\n', "q2", "2"),
        ('q1,"A"x\nq2,a2\n', "q2", "2"),
    ],
)
def test_a_damaged_record_costs_itself(write, body, good, lines):
    path = write("prompt,response\n" + body)
    assert [prompt for prompt, _ in pairs(path)] == good.split()
    assert [row.split(":")[1] for row in bad(path)] == lines.split()


def test_records_in_quotes_are_whole_however_their_lines_look(write):
    text = 'prompt,response\nq,"a\nb,c\nd"\nq2,a2\n'
    assert pairs(write(text)) == [("q", "a\nb,c\nd"), ("q2", "a2")]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("What is 2+2?,4\nWhat is 3?,5\n", "its first line is no header of a sample: no messages"),
        ("prompt,prompt,response\n1,2,3\n", "a column name appears twice in the header: prompt"),
        ('prompt,response\n"a \\"b, c\\"",\\frac\n', "nobody knows what they mean"),
        ("prompt;response|x\na;b\nc|d\n", "semicolons or bars between names, and nobody knows"),
        (b"prompt,response\xff\nq,a\n", "the header is not CSV in UTF-8"),
    ],
)
def test_what_is_in_doubt_is_refused(write, text, told):
    with pytest.raises(SourceError) as error:
        read(write(text))
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_columns_that_are_mapped_must_be_in_the_header(write):
    with pytest.raises(SourceError, match=r"no column 'Q' for prompt; the row has: Q2, A2"):
        read(write("Q2,A2\nq,a\n"), {"prompt": "Q", "response": "A"})


def test_ragged_rows_are_named(write):
    path = write("prompt,response\nq,a,b\nq\nq2,a2\n")
    assert [row.partition(";")[0] for row in bad(path)] == [
        "d.csv:2: 3 cells where the header has 2",
        "d.csv:3: 1 cells where the header has 2",
    ]
    assert pairs(path) == [("q2", "a2")]


def test_cells_that_are_no_text(write):
    path = write(b"prompt,response,m\nq,\xe9,1\nq,a\x00b,2\nq2,a2,\xe9\n")
    told = "'response' holds a NUL or something that is not UTF-8; clean it"
    assert bad(path) == [f"d.csv:2: {told}", f"d.csv:3: {told}"]
    assert metadata(path) == [{"m": "\ufffd"}]


@pytest.mark.parametrize("name", ["d.csv", "d.tsv"])
@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_a_first_line_that_sets_the_separator(write, name, delimiter):
    lines = ("sep=;", "prompt;response;a,b", "q;a;1", "q;a;1;2")
    path = write("\r\n".join(lines).replace(";", delimiter).replace("a,b", "ab"), name)
    assert pairs(path) == [("q", "a")]
    assert metadata(path) == [{"ab": "1"}]
    assert bad(path)[0].startswith(f"{name}:4: 4 cells where the header has 3")


def test_a_separator_that_is_set_but_not_read(write):
    with pytest.raises(SourceError, match="its first line sets the separator '#'; write it with"):
        read(write("sep=#\nprompt#response\n"))


def test_names_are_stripped(write):
    path = write("prompt , response,n\n q, a,1\n")
    assert pairs(path) == [(" q", " a")]
    assert metadata(path) == [{"n": "1"}]


def test_a_space_behind_each_separator(write, caplog):
    path = write("prompt, response, n\n q, a,1\nq2,  two, 2\n", "spaced.csv")
    assert pairs(path) == pairs(path) == [(" q", "a"), ("q2", " two")]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path} is read without the space behind each separator"
    ]
    assert pairs(write('prompt, response\nq, "a, ""b"""\n')) == [("q", 'a, "b"')]


def test_columns_without_a_name(write):
    path = write("prompt,response,,\nq,a,, \nq2,a2,,x\n")
    assert pairs(path) == [("q", "a")]
    assert metadata(path) == [{}]
    assert bad(path) == ["d.csv:3: cell 4 has no name in the header; name it there"]
    assert pairs(write(",prompt,response,\n0,q,a,\n")) == [("q", "a")]
    with pytest.raises(SourceError, match="its first line is no header of a sample"):
        read(write(",,\n1,2,3\n"))


def test_empty_files(write):
    assert read(write("")) == read(write("prompt,response\n")) == []
