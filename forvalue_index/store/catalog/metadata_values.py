"""What a condition reads of metadata: a path of keys and places in lists, and the value there.

Each part of a path is one key, or a place in a list, on every database: `metadata.a.b` is the key b
of what is under a, `metadata."a.b"` one key with a dot in it, `metadata.a[0]` the first of a list.

A number is compared by the decimal digits that it is written with, a float by its shortest ones.
Within 2**53 either way that is what databases do. Beyond it they round; so both numbers are
compared as decimals there: PostgreSQL's own, on SQLite by a collation over the texts of JSON.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy import ColumnElement
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlglot import exp

from forvalue_index.exceptions import FilterError
from forvalue_index.store.catalog.sample_rows import MAX_METADATA_DEPTH
from forvalue_index.store.catalog.schema import samples
from forvalue_index.store.catalog.sqlite import BY_DECIMALS

# Of a list; PostgreSQL counts them with 32 bits.
MOST_ENTRIES = 2**31
_JSON_TYPES = {
    "string": ("string", "text"),
    "number": ("number", "integer", "real"),
    "boolean": ("boolean", "true", "false"),
}


class _AtPath(FunctionElement[Any]):
    """Something about the value at a path, of the column and the path."""

    type = sa.Text()
    inherit_cache = True


class _JsonType(_AtPath):
    """The database's name of the type at a path; NULL where there is nothing."""

    inherit_cache = True


class _JsonValue(_AtPath):
    """The value at a path: SQLite keeps its type, PostgreSQL gives text."""

    inherit_cache = True


class _JsonText(_AtPath):
    """A number at a path as it is written: on SQLite twice, in a list of JSON."""

    inherit_cache = True


# SQLAlchemy's own accessors pass numbers through text on SQLite, with 15 of their 17 digits.
@compiles(_JsonType, "sqlite")
@compiles(_JsonValue, "sqlite")
@compiles(_JsonText, "sqlite")
def _on_sqlite(element: _AtPath, compiler: SQLCompiler, **options: Any) -> str:
    column, path = (compiler.process(part, **options) for part in element.clauses)
    given = f"{column}, {path}"
    if isinstance(element, _JsonText):
        # Of two paths it gives a list, and in it values as they are written.
        return f"json_extract({given}, {path})"
    return f"{'json_type' if isinstance(element, _JsonType) else 'json_extract'}({given})"


@compiles(_JsonType, "postgresql")
@compiles(_JsonValue, "postgresql")
@compiles(_JsonText, "postgresql")
def _on_postgresql(element: _AtPath, compiler: SQLCompiler, **options: Any) -> str:
    column, path = (compiler.process(part, **options) for part in element.clauses)
    # Strict, or a place in a list would also be found where there is none: in a single value.
    path = f"CAST('strict ' || {path} AS jsonpath)"
    value = f"jsonb_path_query_first({column}, {path}, silent => true)"
    return f"jsonb_typeof({value})" if isinstance(element, _JsonType) else f"({value} #>> '{{}}')"


class _Decimal(FunctionElement[Any]):
    """Digits, compared as the decimal number that they write."""

    type = sa.Text()
    inherit_cache = True


@compiles(_Decimal, "sqlite")
def _collated(element: _Decimal, compiler: SQLCompiler, **options: Any) -> str:
    return f"({compiler.process(element.clauses, **options)}) COLLATE {BY_DECIMALS}"


@compiles(_Decimal, "postgresql")
def _as_numeric(element: _Decimal, compiler: SQLCompiler, **options: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **options)} AS NUMERIC)"


def is_metadata(node: exp.Expression) -> bool:
    """Whether a name is one of metadata, that is of more than one part."""
    return isinstance(node, exp.Bracket | exp.Dot) or bool(node.args.get("table"))


def type_at(node: exp.Expression) -> ColumnElement[str]:
    """The type of the value that a name of metadata stands for: NULL, or null, for none."""
    return _JsonType(*_clauses(node))


def value_at(node: exp.Expression, kind: str) -> ColumnElement[Any]:
    """The value that a name of metadata stands for where it has that kind, else NULL."""
    value: ColumnElement[Any] = _JsonValue(*_clauses(node))
    if kind != "string":
        value = sa.cast(value, sa.Boolean if kind == "boolean" else sa.Numeric)
    return _where_of_kind(node, kind, value)


def decimal_at(node: exp.Expression) -> ColumnElement[Any]:
    """The number that a name of metadata stands for, compared as a decimal, else NULL."""
    return _Decimal(_where_of_kind(node, "number", _JsonText(*_clauses(node))))


def decimal(digits: str) -> ColumnElement[Any]:
    """A number that is compared as a decimal."""
    return _Decimal(sa.literal(digits, sa.Text))


def _where_of_kind(node: exp.Expression, kind: str, value: ColumnElement[Any]) -> sa.Case[Any]:
    # CASE alone promises that a cast is not tried on values of another type.
    return sa.case((type_at(node).in_(_JSON_TYPES[kind]), value))


def _clauses(node: exp.Expression) -> tuple[ColumnElement[Any], ColumnElement[str]]:
    """The column, and the path to a value, as a bound parameter that both databases read."""
    parts = _path(node)
    path = "".join(f"[{part}]" if isinstance(part, int) else f'."{part}"' for part in parts)
    return samples.c.metadata, sa.literal(f"${path}", sa.Text)


def _path(node: exp.Expression) -> list[str | int]:
    """Keys, and places in lists, from the outermost on. Raises FilterError."""
    steps: list[exp.Expression] = []
    while not isinstance(node, exp.Column):
        steps.append(node.expressions[0] if isinstance(node, exp.Bracket) else node.expression)
        _refuse_entries(node)
        node = node.this
    prefix, *names = node.parts
    if prefix.name.lower() != "metadata" or not names:
        raise FilterError(f"there is no table {prefix.name!r}; metadata is the only prefix")
    parts = [*(_key(name) for name in names), *(_part(step) for step in reversed(steps))]
    if len(parts) > MAX_METADATA_DEPTH:
        raise FilterError(f"a path in metadata has at most {MAX_METADATA_DEPTH} parts")
    return parts


def _refuse_entries(node: exp.Expression) -> None:
    places = node.expressions if isinstance(node, exp.Bracket) else [exp.Literal.number(0)]
    plain = [p.this for p in places if isinstance(p, exp.Literal) and not p.is_string]
    if len(places) != 1 or not plain or not (plain[0].isascii() and plain[0].isdecimal()):
        raise FilterError(
            f"{node.sql()} is no place in a list; write NAME[0] for the first, and keys with a dot"
        )


def _part(step: exp.Expression) -> str | int:
    if not isinstance(step, exp.Literal):
        return _key(step)
    if len(step.this) > len(str(MOST_ENTRIES)) or int(step.this) >= MOST_ENTRIES:
        raise FilterError(f"no list has {step.this} entries")
    return int(step.this)


def _key(step: exp.Expression) -> str:
    name: str = step.name
    if not name or not name.isprintable() or '"' in name or "\\" in name:
        raise FilterError(f"the metadata key {name!r} cannot be named in a condition")
    return name
