"""`--where`, on both databases, against a plain reading of the rules in Python."""

import subprocess
import sys
import uuid
from contextlib import contextmanager
from decimal import Decimal

import pytest
from catalogs import Now
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql, sqlite

from forvalue_index.model.encoded import SampleStatistics
from forvalue_index.sources.sample import Message, Sample
from forvalue_index.store.catalog.catalog import Catalog
from forvalue_index.store.catalog.filters import compile_filter
from forvalue_index.store.records import SegmentRecord

pytest_plugins = ("databases",)

METADATA = [
    {"x": "de", "é y": 1, "flag": True, "format": "a"},
    {"x": 3, "é y": 2.5, "flag": False},
    {"x": 3.0, "flag": "true"},
    {"x": 2**53 + 1, "é y": "1", "flag": None},
    {"x": 0.1 + 0.2, "flag": 1},
    {"x": True, "é y": [1]},
    {"x": None, "é y": {"a": 1}},
    {"x": "De", "flag": True},
    {"x": "50%_é"},
    {},
    {"u": {"x": "de", "a.b": 1, "l": [3, "de", None, {"x": True}]}, "u.x": "dotted", "l": [[7]]},
    {"u": [{"x": 2.5}, "de"], "l": {"0": "key", "x": 2**63}},
    {"u": "de", "l": [-(2**64), 1e23, "9223372036854775808"]},
    {"u": {"x": 2.0**60, "0": 1}, "l": [2**63 + 1, -(2**63) - 1, 10**400]},
]
KEYS = ["a", "B", "é", "50%", "a_b", "aXb", "Z", "", "10", "9", "n1", "n2", "n3", "n4"]


def sample(number):
    message = Message("text", f"document {number}")
    source = ("wiki", "books")[number % 2]
    return Sample((message,), source, number + 1, KEYS[number], METADATA[number])


def statistics(number):
    return SampleStatistics(10 * number, number, number % 3 == 0, number / 4, 0.1 * number, 1e3)


def row(number):
    measured = statistics(number)
    named = {"id": number, "key": KEYS[number], "source": sample(number).source}
    return named | {"position": number + 1} | vars(measured) | {"metadata": METADATA[number]}


ROWS = [row(number) for number in range(len(METADATA))]


@pytest.fixture(scope="module")
def catalog(module_database_url):
    with catalog_of_rows(module_database_url) as catalog:
        yield catalog


@pytest.fixture
def own_catalog(module_database_url):
    """One that may be changed."""
    with catalog_of_rows(module_database_url) as catalog:
        yield catalog


@contextmanager
def catalog_of_rows(database_url):
    uid = uuid.uuid4().hex
    with Catalog.create(database_url, uid, "print") as catalog:
        numbers = range(len(METADATA))
        record = SegmentRecord(uuid.uuid4().hex, len(METADATA), 0, "")
        catalog.commit_segment(
            record, [sample(n) for n in numbers], [statistics(n) for n in numbers]
        )
        yield catalog


@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("id = 3", [3]),
        ("source = 'wiki' AND n_label_tokens > 5", [6, 8, 10, 12]),
        ("n_tokens > 2.5 and n_tokens <= 2e1", [1, 2]),
        ("n_tokens < 99999999999999999999 AND id > -1 AND id<>0", list(range(1, 14))),
        ("id > 9223372036854775807", []),
        ("loss BETWEEN 0.5 AND .75", [2, 3]),
        ("id NOT BETWEEN -1 AND 8", [9, 10, 11, 12, 13]),
        ("truncated", [0, 3, 6, 9, 12]),
        ("NOT truncated AND id < 3", [1, 2]),
        ("truncated = false AND id < 3", [1, 2]),
        ("id IN (1, 2.0, 77)", [1, 2]),
        ("id NOT IN (1,2,3,4,5,6,7,8)", [0, 9, 10, 11, 12, 13]),
        ("(id = 1 OR id = 2) AND (NOT (id = 2))", [1]),
        ("id = 1 OR id = 2 AND id = 3", [1]),
        ("position = 2", [1]),
        ("3 = id", [3]),
        ("n_label_tokens = id AND id < 2", [0, 1]),
        ("ID = 3 AND METADATA.x IS NOT NULL", [3]),
        ("key = 'a'", [0]),
        ("key LIKE 'a_b'", [4, 5]),
        (r"key LIKE 'a\_b'", [4]),
        (r"key LIKE '50\%'", [3]),
        ("key LIKE 'A%'", []),
        ("key NOT LIKE '%' OR key LIKE '_' AND NOT key LIKE 'a'", [1, 2, 6, 9]),
        ("key < 'a'", [1, 3, 6, 7, 8, 9]),
        ("key BETWEEN 'Z' AND 'a'", [0, 6]),
        ("key > 'z'", [2]),
        ("key IS NULL", []),
        ("metadata.x = 'de'", [0]),
        ("metadata.x <> 'de'", [7, 8]),
        ("NOT metadata.x = 'de'", [7, 8]),
        ("metadata.x = 3", [1, 2]),
        ("metadata.x > 3", [3]),
        ("metadata.x = 9007199254740993", [3]),
        ("metadata.x = 0.30000000000000004", [4]),
        ("metadata.x = true", [5]),
        ("metadata.x IN ('de', 'De')", [0, 7]),
        ("metadata.x LIKE 'd%'", [0]),
        (r"metadata.x LIKE '%\%\_é'", [8]),
        ("metadata.x < 'a'", [7, 8]),
        ("metadata.x BETWEEN 0 AND 5", [1, 2, 4]),
        ("metadata.x IS NULL", [6, 9, 10, 11, 12, 13]),
        ("metadata.x IS NOT NULL AND id > 4", [5, 7, 8]),
        ('metadata."é y" >= 1', [0, 1]),
        ("metadata.\"é y\" = '1'", [3]),
        ('metadata."é y" IS NOT NULL', [0, 1, 3, 5, 6]),
        ("metadata.flag = true", [0, 7]),
        ("metadata.flag <> true", [1]),
        ("metadata.flag IN (true, false)", [0, 1, 7]),
        ("metadata.X = 3", []),
        ("metadata.format = 'a'", [0]),
        ("metadata.x = n_label_tokens", []),
        ("metadata.x = key OR metadata.x = 'a''b'", []),
        ("metadata.absent = 1 OR id = 1", [1]),
        ("metadata.u.x = 'de'", [10]),
        ("METADATA.u.x IS NOT NULL", [10, 13]),
        ("metadata.\"u.x\" = 'dotted'", [10]),
        ('metadata.u."a.b" = 1', [10]),
        ("metadata.u.a.b = 1", []),
        ("metadata.u[0].x = 2.5", [11]),
        ("metadata.u[1] = 'de'", [11]),
        ("metadata.u = 'de'", [12]),
        ("metadata.u.l[0] = 3 AND metadata.u.l[1] LIKE 'd%'", [10]),
        ("metadata.u.l[3].x = true AND metadata.l[0][0] = 7", [10]),
        ("metadata.u.l[2] IS NULL AND metadata.u IS NOT NULL", [10, 11, 12, 13]),
        ("metadata.l[0] = 'key' OR metadata.u[0] = 1", []),
        ('metadata.l."0" = \'key\' OR metadata.u."0" = 1', [11, 13]),
        ("metadata.l[2147483647] IS NULL AND metadata.l[0] IS NOT NULL", [10, 12, 13]),
        # Beyond 2**53 floats are no longer exact, beyond 2**63 SQLite's integers end.
        ("metadata.x = 9007199254740992", []),
        ("metadata.x = 9007199254740992.0", []),
        ("metadata.x > 9007199254740992.0", [3]),
        ("metadata.l.x = 9223372036854775808", [11]),
        ("metadata.l.x > 9223372036854775807", [11]),
        ("metadata.l.x >= 9223372036854775809", []),
        ("metadata.l.x BETWEEN 9223372036854775807 AND 9223372036854775808", [11]),
        ("metadata.l.x IN (1, 9223372036854775808)", [11]),
        ("metadata.l[0] > 9223372036854775808", [13]),
        ("metadata.l[0] < -9223372036854775808", [12]),
        ("metadata.l[1] < -9223372036854775808", [13]),
        ("metadata.l[1] = 1e23 AND metadata.l[1] = 100000000000000000000000", [12]),
        ("metadata.l[1] < 100000000000000000000001", [12, 13]),
        ("metadata.l[2] > 1e308 AND metadata.l[2] > n_tokens", [13]),
        (f"metadata.l[2] = 1{400 * '0'}", [13]),
        (f"metadata.l[2] < 1{400 * '0'}", []),
        (f"id < 1{400 * '0'} AND loss > -1{400 * '0'} AND id > 12", [13]),
        ("metadata.u.x = 1152921504606847000 AND metadata.u.x = 1.152921504606847e18", [13]),
        ("metadata.l[2] = '9223372036854775808'", [12]),
    ],
)
def test_conditions_find_what_they_say(catalog, where, expected):
    assert Now(catalog).live_ids(where).tolist() == expected


def test_the_largest_allowed_conditions_run(catalog):
    alternating = "id=1" + " AND id=1 OR metadata.x = 'no'" * 250
    assert Now(catalog).count(alternating) == 1
    assert Now(catalog).count("id = -1" + " OR metadata.x = 3" * 500) == 2
    assert Now(catalog).count(f"id IN ({','.join(map(str, range(9_000)))})") == len(ROWS)
    assert Now(catalog).count("(" * 20 + "id = 1" + ")" * 20) == 1
    assert Now(catalog).count("NOT " * 20 + "truncated") == 5
    assert Now(catalog).count("key LIKE '" + "a" * 9_999 + "%'") == 0


def test_compiling_needs_no_heavy_library():
    heavy = ("torch", "transformers", "faiss", "pyarrow")
    code = (
        f"import sys, forvalue_index.store.catalog.catalog, forvalue_index.store.catalog.filters; \
assert not set({heavy}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_catalog_imports_sqlglot_and_alembic_only_when_needed():
    code = "import sys, forvalue_index.store.catalog.catalog; \
assert not {'sqlglot', 'alembic'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


LARGE = [2**53, 2**53 + 1, 2.0**53, 2**60, 2.0**60, 2**63 - 1, 2**63, 2.0**63, -(2**63), 2**63 + 1]
LARGE += [-(2**63) - 1, 2**64, 1e23, 10**23, 10**23 + 1, 1e300, 10**300, 10**400]
NUMBERS = st.sampled_from([0, 1, 3, -1, 2.5, 0.1 + 0.2, *LARGE])
STRINGS = st.sampled_from(["de", "De", "a", "é", "50%", "", "1", "true"])
BOOLEANS = st.booleans()
NAMES = {
    "number": ["id", "n_tokens", "loss", "norm"],
    "string": ["key", "source"],
    "boolean": ["truncated"],
}
METADATA_NAMES = {
    "metadata.x": ["x"],
    'metadata."é y"': ["é y"],
    "metadata.flag": ["flag"],
    "metadata.absent.x": ["absent", "x"],
    "metadata.u.x": ["u", "x"],
    'Metadata."u.x"': ["u.x"],
    'metadata.u."a.b"': ["u", "a.b"],
    "metadata.u[0].x": ["u", 0, "x"],
    'metadata.l."0"': ["l", "0"],
    "metadata.l[0]": ["l", 0],
    "metadata.l[0][0]": ["l", 0, 0],
    "metadata.u.l[3].x": ["u", "l", 3, "x"],
}
VALUES = {"number": NUMBERS, "string": STRINGS, "boolean": BOOLEANS}
OPERATORS = ["=", "<>", "<", "<=", ">", ">="]


def literal(value):
    return repr(value) if isinstance(value, bool | int | float) else f"'{value}'"


@st.composite
def comparisons(draw):
    kind = draw(st.sampled_from(list(VALUES)))
    name = draw(st.sampled_from([*NAMES[kind], *METADATA_NAMES]))
    operator = draw(st.sampled_from(OPERATORS[:2] if kind == "boolean" else OPERATORS))
    value = draw(VALUES[kind])
    choices = draw(st.lists(VALUES[kind], min_size=1, max_size=3))
    form = draw(st.sampled_from(["compare", "in", "null"]))
    value, written_value = exact(value), literal(value)
    if form == "null":
        return f"{name} IS NULL", lambda row: read(row, name) is None
    if form == "in":
        written = ", ".join(map(literal, choices))
        return f"{name} IN ({written})", lambda row: typed(
            row, name, kind, lambda v: v in [*map(exact, choices)]
        )
    tests = {
        "=": lambda v: v == value, "<>": lambda v: v != value, "<": lambda v: v < value,
        "<=": lambda v: v <= value, ">": lambda v: v > value, ">=": lambda v: v >= value,
    }  # fmt: skip
    return (
        f"{name} {operator} {written_value}",
        lambda row: typed(row, name, kind, tests[operator]),
    )


def read(row, name):
    if name not in METADATA_NAMES:
        return row[name]
    value = row["metadata"]
    for part in METADATA_NAMES[name]:
        if not isinstance(value, list if isinstance(part, int) else dict):
            return None
        present = part < len(value) if isinstance(part, int) else part in value
        value = value[part] if present else None
    return value


def exact(value):
    """A number is the decimal that it is written as."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return Decimal(repr(value)) if is_number else value


def typed(row, name, kind, test):
    """True, False, or None for unknown: the key is missing or has a value of another type."""
    types = {"number": (int, float), "string": str, "boolean": bool}[kind]
    value = read(row, name)
    is_kind = isinstance(value, types) and (kind == "boolean" or not isinstance(value, bool))
    return test(exact(value)) if is_kind else None


def negation(inner):
    text, test = inner
    return f"NOT ({text})", lambda row: None if test(row) is None else not test(row)


def combination(parts):
    left, word, right = parts
    decisive = word == "OR"

    def test(row):
        results = {left[1](row), right[1](row)}
        if decisive in results:
            return decisive
        return None if None in results else not decisive

    return f"({left[0]} {word} {right[0]})", test


CONDITIONS = st.recursive(
    comparisons(),
    lambda inner: st.one_of(
        inner.map(negation),
        st.tuples(inner, st.sampled_from(["AND", "OR"]), inner).map(combination),
    ),
    max_leaves=6,
)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(condition=CONDITIONS)
def test_results_are_those_of_three_valued_logic_in_python(catalog, condition):
    where, test = condition
    expected = [row["id"] for row in ROWS if test(row) is True]
    assert Now(catalog).live_ids(where).tolist() == expected, where


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    stored=st.lists(
        st.sampled_from(LARGE) | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
        min_size=1,
        max_size=5,
    ),
    asked=st.sampled_from(LARGE) | st.integers() | st.floats(1e15, 1e300),
)
def test_numbers_of_any_size_are_compared_as_the_decimals_that_are_written(
    own_catalog, stored, asked
):
    own_catalog.update_metadata({0: {"n": stored}})
    for place, number in enumerate([*stored]):
        name = f"metadata.n[{place}]"
        for how, expected in {
            "<": exact(number) < exact(asked),
            "=": exact(number) == exact(asked),
            ">": exact(number) > exact(asked),
        }.items():
            found = Now(own_catalog).live_ids(f"{name} {how} {asked!r} AND id = 0").tolist()
            assert found == [0] * expected, (number, how, asked)


# Characters to which SQL, JSON paths and parameters give a meaning. No name of the schema and no
# keyword has a zq.
HOSTILE = st.text("zq'\"\\;:%()$.?-*/ \n[]{}@#é😀", max_size=12).map(lambda text: f"zq{text}zq")
KEY_NAMES = HOSTILE.map(lambda name: "".join(c for c in name if c not in '"\\\n'))


@st.composite
def hostile_conditions(draw):
    text = draw(HOSTILE).replace("'", "''")
    pattern, name = text.rstrip("\\"), f'metadata."{draw(KEY_NAMES)}"'
    left = draw(st.sampled_from(["key", "source", name]))
    return draw(
        st.sampled_from(
            [
                f"{left} = '{text}'",
                f"{left} <> '{text}' OR {name} > 77123.5",
                f"{left} IN ('{text}', 'zqzq', '{text}')",
                f"{left} LIKE '{pattern}'",
                f"NOT {left} NOT LIKE '%{pattern}%'",
                f"{left} BETWEEN '{text}' AND '{text}'",
                f"{name} IS NOT NULL AND 77123 < {name}",
                f"{name} = true OR {name} IN (77123, -77123.25)",
                f"{name}[77123].{name[9:]} >= 77123771237712377123 OR id < 771237712377123771237",
            ]
        )
    )


@settings(max_examples=300, deadline=None)
@given(where=hostile_conditions())
def test_no_text_and_no_number_of_the_user_reaches_the_sql(where):
    for dialect in (sqlite.dialect(), postgresql.dialect()):
        compiled = compile_filter(where).compile(dialect=dialect)
        sql = str(compiled)
        assert "zq" not in sql
        assert "77123" not in sql
        assert ";" not in sql
        assert any("zq" in str(value) for value in compiled.params.values())


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(where=hostile_conditions())
def test_hostile_conditions_are_only_conditions(catalog, where):
    assert Now(catalog).live_ids(f"id < 0 AND ({where})").tolist() == []
    assert Now(catalog).count(f"id >= 0 OR ({where})") == len(ROWS)
