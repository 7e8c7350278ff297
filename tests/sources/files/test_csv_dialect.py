"""The usual dialect wherever it fits; another one only by its marks."""

import pytest

from forvalue_index.sources.files.csv_dialect import Dialect, guess_dialect


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("text\nhello, world; and | more\n", Dialect(",")),
        ("a,b\n1,2\n", Dialect(",")),
        ("a;b\n1,5;2\n", Dialect(";")),
        ("a;b,c\n1;2\n3;4,5\n", Dialect(";")),
        ("a,b;c\n1,2\n", Dialect(",")),
        ("a,b\n'tis x,y\n'a','b'\n", Dialect(",")),
        ("a,b\n'x, y',z\n", Dialect(",", "'")),
        ("'a','b'\n'x','z'\n", Dialect(",", "'")),
        ('a,b\n"x \\"y, z\\"",w\n', Dialect(",", backslash=True)),
        ('a,b\n"C:\\dir\\",w\n', Dialect(",")),
        ("a,b\n1,2,3\n4\n", Dialect(",")),
        ('a;b\nsay \\"x\\" y;z\n', Dialect(";", backslash=True)),
        ('a;b\n{"k": "x\\"y"};z\n', Dialect(";")),
        ("", Dialect(",")),
    ],
)
def test_dialects_of_commas(head, expected):
    assert guess_dialect(head, ",", is_whole=True) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("a\tb\n1\t2\n", Dialect("\t")),
        ("a,b\n1,2\n", Dialect("\t")),
        ('a\tb\n"x" y\tz\n', Dialect("\t", quote=None)),
        ('a\tb\n"x" y\tz\n"w"\tv\n', Dialect("\t")),
        ('a\tb\n"x\ty"\tz\n', Dialect("\t")),
    ],
)
def test_dialects_of_tabs(head, expected):
    assert guess_dialect(head, "\t", is_whole=True) == expected


def test_the_last_record_of_a_part_may_be_cut():
    assert guess_dialect("a;b\n1;2\n3", ",", is_whole=False) == Dialect(";")
    assert guess_dialect('a,b\n1,2\n3,"x', ",", is_whole=False) == Dialect(",")


def test_several_dialects_that_fit_are_refused():
    head = 'a,b\n\'x y\',"p \\" q"\n'
    with pytest.raises(ValueError, match=r"can be read with commas .* quotes ' or with commas"):
        guess_dialect(head, ",", is_whole=True)


def test_backslashes_that_would_be_lost():
    dialect = Dialect(",", backslash=True)
    assert not dialect.has_odd_backslash('a \\" b \\\\ c \\, d')
    assert dialect.has_odd_backslash("\\\\\\frac")
    assert not Dialect(",").has_odd_backslash("\\frac")
