"""The language of `--where`: conditions over sample columns and metadata keys.

    source = 'wiki' AND n_label_tokens > 50 AND NOT metadata.user.lang IN ('de', 'fr')

A condition is parsed with sqlglot, checked against a whitelist and rebuilt as a SQLAlchemy
expression with bound parameters: no text of the user reaches a database as SQL. Logic is SQL's,
with three values. A metadata key has the type of what it is compared with; where a sample lacks
the key, or holds another type under it, the comparison is unknown and so is its negation.
LIKE distinguishes case and strings sort by code point, on every database.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlglot import exp

from forvalue_index.exceptions import FilterError
from forvalue_index.store.catalog.filter_syntax import COLUMNS, explained, parse_filter
from forvalue_index.store.catalog.metadata_values import (
    decimal,
    decimal_at,
    is_metadata,
    type_at,
    value_at,
)
from forvalue_index.store.catalog.schema import samples, sources

# SQLite's limit is 50,000 bytes.
MAX_PATTERN = 10_000
# Of an integer: as many as Python reads.
MOST_DIGITS = 4000
# Beyond it, whole numbers that differ are one float.
MOST_EXACT = 2**53
# What names stand as in the tree.
_NAMES = (exp.Column, exp.Dot, exp.Bracket)

_ORDERINGS = {exp.LT: operator.lt, exp.LTE: operator.le, exp.GT: operator.gt, exp.GTE: operator.ge}
_COMPARISONS = {exp.EQ: operator.eq, exp.NEQ: operator.ne, **_ORDERINGS}


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
    return _compared(type(node), node.this, node.expression, kind)


def _between(node: exp.Expression) -> ColumnElement[bool]:
    low, high = node.args["low"], node.args["high"]
    kind = _common_kind(node.this, low, high)
    not_below = _compared(exp.GTE, node.this, low, kind)
    return sa.and_(not_below, _compared(exp.LTE, node.this, high, kind))


def _compared(
    how: type[exp.Expression], left: exp.Expression, right: exp.Expression, kind: str
) -> ColumnElement[bool]:
    value, other = _values([left, right], kind)
    if how in _ORDERINGS:
        value = _ordered(value, kind)
    condition: ColumnElement[bool] = _COMPARISONS[how](value, other)
    return condition


def _in(node: exp.Expression) -> ColumnElement[bool]:
    if not node.expressions or any(isinstance(e, _NAMES) for e in node.expressions):
        raise FilterError("IN needs a list of values in parentheses")
    kind = _common_kind(node.this, *node.expressions)
    value, *entries = _values([node.this, *node.expressions], kind)
    return value.in_(entries)


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
    if not (isinstance(node.this, _NAMES) and isinstance(node.expression, exp.Null)):
        raise FilterError("IS works only as NAME IS NULL and NAME IS NOT NULL")
    kind = _kind(node.this)
    if kind is None:
        return sa.func.nullif(type_at(node.this), "null").is_(None)
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
    **dict.fromkeys(_NAMES, _flag),
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
    if isinstance(node, _NAMES):
        return None if is_metadata(node) else COLUMNS[_column_name(node)]
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


def _values(nodes: Sequence[exp.Expression], kind: str) -> list[ColumnElement[Any]]:
    """What is compared; metadata beside numbers that floats cannot hold as decimals."""
    of_metadata = any(isinstance(node, _NAMES) and is_metadata(node) for node in nodes)
    if kind != "number" or not of_metadata:
        return [_value(node, kind) for node in nodes]
    numbers = [None if isinstance(node, _NAMES) else _read_number(node) for node in nodes]
    if all(abs(number or 0) <= MOST_EXACT for number in numbers):
        return [_value(node, kind) for node in nodes]
    return [
        decimal_at(node) if number is None else decimal(str(Decimal(repr(number))))
        for node, number in zip(nodes, numbers, strict=True)
    ]


def _value(node: exp.Expression, kind: str) -> ColumnElement[Any]:
    if isinstance(node, _NAMES):
        return value_at(node, kind) if is_metadata(node) else _column(_column_name(node))
    if kind == "boolean":
        return sa.literal(bool(node.this), sa.Boolean)
    if kind == "string":
        return sa.literal(node.this, sa.Text)
    return _number(node)


def _column(name: str) -> ColumnElement[Any]:
    return sources.c.name if name == "source" else samples.c[name]


def _number(node: exp.Expression) -> ColumnElement[Any]:
    """Typed by itself, not by the column: 2.5 must not become 2 beside an integer column."""
    number = _read_number(node)
    if abs(number) <= MOST_EXACT and number == int(number):
        number = int(number)
    if isinstance(number, int) and abs(number) < 2**63:
        return sa.literal(number, sa.BigInteger)
    return sa.literal(_as_float(number), sa.Double)


def _read_number(node: exp.Expression) -> int | float:
    negative = isinstance(node, exp.Neg)
    literal = node.this if negative else node
    sign = -1 if negative else 1
    try:
        if literal.is_string or not literal.this.isascii() or "_" in literal.this:
            raise ValueError
        if literal.this.isdecimal() and len(literal.this) <= MOST_DIGITS:
            return sign * int(literal.this)
        number = float(literal.this)
    except ValueError:
        raise FilterError(f"{literal.sql()} is not a number") from None
    if not math.isfinite(number):
        raise FilterError(f"{literal.sql()} is too large for a number")
    return sign * number


def _as_float(number: int | float) -> float:
    """The nearest float: infinite beyond all of them, as a column compares with it."""
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf
