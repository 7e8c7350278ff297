"""The language of `--where`: conditions over sample columns and metadata keys.

    source = 'wiki' AND n_label_tokens > 50 AND NOT metadata.lang IN ('de', 'fr')

A condition is parsed with sqlglot, checked against a whitelist and rebuilt as a SQLAlchemy
expression with bound parameters: no text of the user reaches a database as SQL. Logic is SQL's,
with three values. A metadata key has the type of what it is compared with; where a sample lacks
the key, or holds another type under it, the comparison is unknown and so is its negation.
LIKE distinguishes case and strings sort by code point, on every database.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlglot import exp

from forvalue_index.exceptions import FilterError
from forvalue_index.store.catalog.filter_syntax import COLUMNS, explained, parse_filter
from forvalue_index.store.catalog.schema import samples, sources

# SQLite's limit is 50,000 bytes.
MAX_PATTERN = 10_000

_JSON_TYPES = {
    "string": ("string", "text"),
    "number": ("number", "integer", "real"),
    "boolean": ("boolean", "true", "false"),
}
_ORDERINGS = {exp.LT: operator.lt, exp.LTE: operator.le, exp.GT: operator.gt, exp.GTE: operator.ge}
_COMPARISONS = {exp.EQ: operator.eq, exp.NEQ: operator.ne, **_ORDERINGS}


class _JsonType(FunctionElement[str]):
    """The database's name of the type under a metadata key; NULL where the key is missing."""

    type = sa.Text()
    inherit_cache = True


class _JsonValue(FunctionElement[Any]):
    """The value under a metadata key: SQLite keeps its type, PostgreSQL gives text."""

    type = sa.Text()
    inherit_cache = True


# SQLAlchemy's own accessors pass numbers through text on SQLite, with 15 of their 17 digits.
@compiles(_JsonType, "sqlite")
@compiles(_JsonValue, "sqlite")
def _on_sqlite(element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> str:
    column, _, path = (compiler.process(part, **options) for part in element.clauses)
    function = "json_type" if isinstance(element, _JsonType) else "json_extract"
    return f"{function}({column}, {path})"


@compiles(_JsonType, "postgresql")
@compiles(_JsonValue, "postgresql")
def _on_postgresql(element: FunctionElement[Any], compiler: SQLCompiler, **options: Any) -> str:
    column, name, _ = (compiler.process(part, **options) for part in element.clauses)
    is_type = isinstance(element, _JsonType)
    return f"jsonb_typeof({column} -> {name})" if is_type else f"({column} ->> {name})"


class _ByCodePoint(FunctionElement[str]):
    """A string that is compared as SQLite and Python do, whatever the database's locale."""

    type = sa.Text()
    inherit_cache = True


@compiles(_ByCodePoint)
def _code_point_order(element: _ByCodePoint, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)})"


@compiles(_ByCodePoint, "postgresql")
def _collated(element: _ByCodePoint, compiler: SQLCompiler, **options: Any) -> str:
    return f'({compiler.process(element.clauses, **options)}) COLLATE "C"'


def compile_filter(text: str) -> ColumnElement[bool]:
    """Make a condition over `samples` joined with `sources`. Raises FilterError."""
    tree = parse_filter(text)
    try:
        return _condition(tree)
    except FilterError as error:
        raise explained(text, error) from None


def _condition(node: exp.Expression) -> ColumnElement[bool]:
    build = _CONDITIONS.get(type(node))
    if build is None:
        raise FilterError(f"{node.sql()} is not a condition; compare it with something")
    condition = build(node)
    return sa.not_(condition) if node.args.get("negate") else condition


def _connected(node: exp.Expression) -> ColumnElement[bool]:
    join = sa.and_ if isinstance(node, exp.And) else sa.or_
    return join(*(_condition(part) for part in node.flatten(unnest=False)))


def _flag(node: exp.Expression) -> ColumnElement[bool]:
    if _kind(node) != "boolean":
        raise FilterError(f"{node.sql()} is not a condition; compare it with something")
    return _value(node, "boolean")


def _comparison(node: exp.Expression) -> ColumnElement[bool]:
    kind = _common_kind(node.this, node.expression)
    left, right = _value(node.this, kind), _value(node.expression, kind)
    if type(node) in _ORDERINGS:
        left = _ordered(left, kind)
    condition: ColumnElement[bool] = _COMPARISONS[type(node)](left, right)
    return condition


def _between(node: exp.Expression) -> ColumnElement[bool]:
    low, high = node.args["low"], node.args["high"]
    kind = _common_kind(node.this, low, high)
    return _ordered(_value(node.this, kind), kind).between(_value(low, kind), _value(high, kind))


def _in(node: exp.Expression) -> ColumnElement[bool]:
    if not node.expressions or any(isinstance(e, exp.Column) for e in node.expressions):
        raise FilterError("IN needs a list of values in parentheses")
    kind = _common_kind(node.this, *node.expressions)
    return _value(node.this, kind).in_([_value(entry, kind) for entry in node.expressions])


def _like(node: exp.Expression) -> ColumnElement[bool]:
    pattern = node.expression
    if _common_kind(node.this, pattern) != "string" or not isinstance(pattern, exp.Literal):
        raise FilterError("LIKE needs a text and a pattern in quotes")
    if len(pattern.this) > MAX_PATTERN or _ends_escaping(pattern.this):
        raise FilterError(
            f"a pattern of LIKE has at most {MAX_PATTERN:,} characters and does not end in a \\"
        )
    return _value(node.this, "string").like(_value(pattern, "string"), escape="\\")


def _ends_escaping(pattern: str) -> bool:
    return (len(pattern) - len(pattern.rstrip("\\"))) % 2 == 1


def _is_null(node: exp.Expression) -> ColumnElement[bool]:
    if not (isinstance(node.this, exp.Column) and isinstance(node.expression, exp.Null)):
        raise FilterError("IS works only as NAME IS NULL and NAME IS NOT NULL")
    kind = _kind(node.this)
    if kind is None:
        return sa.func.nullif(_JsonType(*_metadata(node.this)), "null").is_(None)
    return _value(node.this, kind).is_(None)


_CONDITIONS: dict[type[Any], Callable[[Any], ColumnElement[bool]]] = {
    exp.Paren: lambda node: _condition(node.this),
    exp.Not: lambda node: sa.not_(_condition(node.this)),
    **dict.fromkeys((exp.And, exp.Or), _connected),
    **dict.fromkeys(_COMPARISONS, _comparison),
    exp.Between: _between,
    exp.In: _in,
    exp.Like: _like,
    exp.Is: _is_null,
    exp.Column: _flag,
}


def _ordered(value: ColumnElement[Any], kind: str) -> ColumnElement[Any]:
    if kind == "boolean":
        raise FilterError("true and false have no order; use = or <>")
    return _ByCodePoint(value) if kind == "string" else value


def _common_kind(*nodes: exp.Expression) -> str:
    kinds = {kind for node in nodes if (kind := _kind(node)) is not None}
    if len(kinds) == 1:
        return kinds.pop()
    shown = ", ".join(node.sql() for node in nodes[:4])
    if not kinds:
        raise FilterError(f"metadata is compared only with values and columns, not so: {shown}")
    raise FilterError(f"{' and '.join(sorted(kinds))} cannot be compared: {shown}")


def _kind(node: exp.Expression) -> str | None:
    """Tell `string`, `number` or `boolean`; None for metadata, which may be any of them."""
    if isinstance(node, exp.Column):
        return None if node.table else COLUMNS[_column_name(node)]
    if isinstance(node, exp.Null):
        raise FilterError("nothing equals NULL; write NAME IS NULL or NAME IS NOT NULL")
    if isinstance(node, exp.Boolean):
        return "boolean"
    if isinstance(node, exp.Literal) and node.is_string:
        return "string"
    if isinstance(node.this if isinstance(node, exp.Neg) else node, exp.Literal):
        return "number"
    raise FilterError(f"{node.sql()} is neither a name nor a value")


def _column_name(node: exp.Expression) -> str:
    name: str = node.name if node.this.quoted else node.name.lower()
    if name not in COLUMNS:
        raise FilterError(f"there is no column {node.name!r}; for metadata write metadata.{name}")
    return name


def _value(node: exp.Expression, kind: str) -> ColumnElement[Any]:
    if isinstance(node, exp.Column):
        return _metadata_as(node, kind) if node.table else _column(_column_name(node))
    if kind == "boolean":
        return sa.literal(bool(node.this), sa.Boolean)
    if kind == "string":
        return sa.literal(node.this, sa.Text)
    return _number(node)


def _column(name: str) -> ColumnElement[Any]:
    return sources.c.name if name == "source" else samples.c[name]


def _number(node: exp.Expression) -> ColumnElement[Any]:
    """Typed by itself, not by the column: 2.5 must not become 2 beside an integer column."""
    negative = isinstance(node, exp.Neg)
    literal = node.this if negative else node
    try:
        if literal.is_string or not literal.this.isascii() or "_" in literal.this:
            raise ValueError
        number = float(literal.this)
    except ValueError:
        raise FilterError(f"{literal.sql()} is not a number") from None
    if not math.isfinite(number):
        raise FilterError(f"{literal.sql()} is too large for a number")
    sign = -1 if negative else 1
    if literal.this.isdecimal() and int(literal.this) < 2**63:
        return sa.literal(sign * int(literal.this), sa.BigInteger)
    return sa.literal(sign * number, sa.Double)


def _metadata(node: exp.Expression) -> tuple[ColumnElement[Any], ...]:
    """Give what the JSON functions need: the column, the key, and SQLite's path to it."""
    name: str = node.name
    if node.table.lower() != "metadata":
        raise FilterError(f"there is no table {node.table!r}; metadata is the only prefix")
    if not name or not name.isprintable() or '"' in name or "\\" in name:
        raise FilterError(f"the metadata key {name!r} cannot be named in a condition")
    return samples.c.metadata, sa.literal(name, sa.Text), sa.literal(f'$."{name}"', sa.Text)


def _metadata_as(node: exp.Expression, kind: str) -> ColumnElement[Any]:
    """Give the value under a key where it has that kind, else NULL."""
    column_and_path = _metadata(node)
    value: ColumnElement[Any] = _JsonValue(*column_and_path)
    if kind != "string":
        value = sa.cast(value, sa.Boolean if kind == "boolean" else sa.Numeric)
    # CASE alone promises that the cast is not tried on values of another type.
    return sa.case((_JsonType(*column_and_path).in_(_JSON_TYPES[kind]), value))
