import pytest
import sqlalchemy as sa
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from forvalue_index.exceptions import FilterError
from forvalue_index.store.catalog.filter_syntax import parse_filter
from forvalue_index.store.catalog.filters import compile_filter


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("", "it is empty"),
        ("   ", "it is empty"),
        ("-- id = 1", "it is empty"),
        ("lang = 'de'", "no column 'lang'; for metadata write metadata.lang"),
        ("samples.id = 1", "no table 'samples'"),
        ("metadata = 'x'", "no column 'metadata'"),
        ("samples.a.b = 1", "no table 'samples'"),
        ("id[0] = 1", "no table 'id'"),
        ("metadata[0] = 1", "no table 'metadata'"),
        ("metadata.a[-1] = 1", "is no place in a list; write NAME[0] for the first"),
        ("metadata.a[1.5] = 1", "is no place in a list"),
        ("metadata.a['b'] = 1", "is no place in a list"),
        ("metadata.a[0, 1] = 1", "is no place in a list"),
        ("metadata.a[1:2] = 1", "not allowed"),
        ("metadata.a[] = 1", "is no place in a list or else cannot be parsed"),
        ("metadata.a[2147483648] = 1", "no list has 2147483648 entries"),
        ("metadata.array[0] = 1", "Array is not allowed"),
        ("metadata.a.b.c", "metadata.a.b.c is not a condition"),
        ("metadata." + ".".join("a" * 51) + " = 1", "at most 50 parts"),
        ("metadata.a" + "[0]" * 3000 + " = 1", "cannot be parsed or else at most 50 parts"),
        ("id IN (metadata.a.b.c.d)", "IN needs a list"),
        ("metadata.a.b.\"\"\"\".c.d = 1", "cannot be named or else cannot be parsed"),
        ("\"ID\" = 1", "no column 'ID'"),
        ("id = 1 -- all", "a comment is not allowed: 'all'"),
        ("id = 1 /* all */", "a comment is not allowed"),
        ("id = 1; DROP TABLE samples", "';' is not allowed"),
        ("id = (SELECT 1)", "'SELECT' is not allowed"),
        ("EXISTS (SELECT 1)", "'EXISTS' is not allowed"),
        ("length(key) = 1", "Length this is not allowed or else Length is not allowed"),
        ("load_extension('x') = 1", "Anonymous is not allowed"),
        ("id + 1 = 2", "'+' is not allowed"),
        ("id - 1 = 2", "Sub is not allowed"),
        ("key || 'a' = 'b'", "'||' is not allowed"),
        ("CAST(id AS TEXT) = '1'", "Cast to is not allowed or else 'AS' is not allowed"),
        ("id::text = '1'", "'::' is not allowed"),
        ("CASE WHEN id = 1 THEN truncated END", "'CASE' is not allowed"),
        ("key LIKE 'a' ESCAPE 'b'", "'ESCAPE' is not allowed"),
        ("key GLOB 'a'", "'GLOB' is not allowed"),
        ("id = ?", "'?' is not allowed"),
        ("id = :name", "':' is not allowed"),
        ("metadata.; id = 1", "';' is not allowed"),
        ("metadata.* = 1", "'*' is not allowed"),
        ("id = 1_0", "is not allowed or else cannot be parsed"),
        ("id = 0x1F", "is not allowed or else cannot be parsed"),
        ("id = 1e999", "too large"),
        ("(id, id) = (1, 2)", "Tuple is not allowed"),
        ("key = 'a' 'b'", "Concat"),
        ("id", "id is not a condition"),
        ("1", "1 is not a condition"),
        ("true", "TRUE is not a condition"),
        ("metadata.flag", "metadata.flag is not a condition"),
        ("id = 1 AND 'a'", "'a' is not a condition"),
        ("id = 'a'", "number and string cannot be compared"),
        ("key = 1", "number and string cannot be compared"),
        ("truncated = 1", "boolean and number cannot be compared"),
        ("truncated > false", "true and false have no order"),
        ("id IN (1, 'a')", "number and string cannot be compared"),
        ("id IN ()", "IN needs a list or else cannot be parsed"),
        ("id IN (id)", "IN needs a list"),
        ("id IN (NULL)", "nothing equals NULL"),
        ("metadata.x = NULL", "nothing equals NULL"),
        ("id IS 1", "IS works only as"),
        ("truncated IS TRUE", "IS works only as"),
        ("metadata.a = metadata.b", "metadata is compared only with"),
        ("id LIKE '1'", "cannot be compared"),
        ("key LIKE key", "LIKE needs"),
        ("key LIKE 'a\\'", "does not end in"),
        ("key LIKE '" + "a" * 10_001 + "'", "at most 10,000"),
        ("- - 1 = id", "neither a name nor a value"),
        ("-id = 1", "neither a name nor a value"),
        ("-'1' = id", "not a number"),
        ("(id) = 1", "neither a name nor a value"),
        ("metadata.\"a\"\"b\" = 1", "cannot be named"),
        ("metadata.\"\" = 1", "cannot be named or else cannot be parsed"),
        ("metadata.\"a\\b\" = 1", "cannot be named"),
        ("key = 'a\0'", "NUL"),
        ("key = '\ud83d'", "surrogate"),
        ("key = 'a", "cannot be parsed"),
        ("id = ", "cannot be parsed"),
        ("= 1", "cannot be parsed or else is not allowed"),
        ("id = 1)", "cannot be parsed"),
        ("(" * 5000 + "id = 1" + ")" * 5000, "nested deeper than 20"),
        ("NOT " * 5000 + "truncated", "nested deeper than 20"),
        ("id = " + "- " * 5000 + "1", "nested deeper than 20"),
        ("id=1" + " OR id=1" * 3000, "3,000 AND and OR, more than 500"),
        ("id IN (" + ",".join("1" * 20_001) + ")", "more than 20,000"),
    ],
)  # fmt: skip
def test_what_is_not_allowed_is_named_with_the_condition_and_the_columns(where, reason):
    with pytest.raises(FilterError) as caught:
        compile_filter(where)
    message = str(caught.value)
    assert any(part in message for part in reason.split(" or else "))
    assert repr(where[:150])[:-1] in message
    assert "label_error_mass" in message
    assert "metadata.NAME" in message
    assert len(message) < 1000


def test_parsing_alone_gives_the_tree():
    assert parse_filter("id = 1 AND truncated").sql() == "id = 1 AND truncated"


WORDS = """
    id key source metadata . metadata.x "é y" loss truncated AND OR NOT ( ) , = <> != < <= IN
    BETWEEN LIKE IS NULL TRUE 1 -1 2.5 'a' 'x%' - + * / || :: ; -- /* */ CASE SELECT FROM CAST
    count( ? :p $1 [ ] { } @ # % ^ & | ~ ` \\ ' " INTERVAL DATE x'00' E'a' 1e400
"""


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(), st.lists(st.sampled_from(WORDS.split()), max_size=15).map(" ".join)))
@example("{{ x }}")
@example("id = 1 \N{FULLWIDTH SEMICOLON}")
@example("٣ = id")
@example("x[1] = 2")
@example("metadata.* = 1")
@example("* = 1")
def test_any_text_is_a_condition_or_a_filter_error(where):
    try:
        condition = compile_filter(where)
    except FilterError:
        return
    assert isinstance(condition, sa.ColumnElement)
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        condition.compile(dialect=dialect, compile_kwargs={"render_postcompile": True})
