"""The grammar of `--where`: what may be written, checked before anything is made of it.

sqlglot tokenises and parses. Tokens are checked first, so that nothing exotic or deep reaches the
parser, and the nodes of the tree after it; whatever is not on a list is refused.
"""

from __future__ import annotations

from sqlglot import exp
from sqlglot.errors import SqlglotError
from sqlglot.parser import Parser
from sqlglot.tokens import Token, Tokenizer, TokenType

from forvalue_index.exceptions import FilterError

# SQLite refuses expression trees deeper than 1,000, Python recursion of that order.
MAX_NESTING = 20
MAX_CONNECTIVES = 500
MAX_TOKENS = 20_000

COLUMNS = {
    **dict.fromkeys(("id", "position", "n_tokens", "n_label_tokens"), "number"),
    **dict.fromkeys(("loss", "label_error_mass", "norm"), "number"),
    **dict.fromkeys(("key", "source"), "string"),
    "truncated": "boolean",
}
_HINT = (
    f'Columns are {", ".join(COLUMNS)} and metadata.NAME, metadata."any name", '
    "metadata.NAME.KEY or metadata.NAME[0]; operators are "
    "= <> < <= > >= AND OR NOT IN BETWEEN LIKE IS NULL; values are 'text', numbers, true, false."
)


_NODES = {
    *(exp.And, exp.Or, exp.Not, exp.Paren, exp.In, exp.Between, exp.Like, exp.Is),
    *(exp.Column, exp.Dot, exp.Bracket, exp.Identifier),
    *(exp.Literal, exp.Boolean, exp.Null, exp.Neg),
    *(exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE),
}
_ARGUMENTS = {
    *("this", "expression", "expressions", "low", "high", "negate"),
    *("table", "db", "catalog", "quoted", "is_string"),
}
_TOKENS = {
    *(TokenType.AND, TokenType.OR, TokenType.NOT, TokenType.IN, TokenType.BETWEEN),
    *(TokenType.LIKE, TokenType.IS, TokenType.NULL, TokenType.TRUE, TokenType.FALSE),
    *(TokenType.EQ, TokenType.NEQ, TokenType.LT, TokenType.LTE, TokenType.GT, TokenType.GTE),
    *(TokenType.L_PAREN, TokenType.R_PAREN, TokenType.COMMA, TokenType.DOT, TokenType.DASH),
    *(TokenType.L_BRACKET, TokenType.R_BRACKET),
    *(TokenType.NUMBER, TokenType.STRING, TokenType.IDENTIFIER, TokenType.VAR),
}


def parse_filter(text: str) -> exp.Expression:
    """Parse an expression into a tree of allowed nodes. Raises FilterError."""
    try:
        # There is one statement: tokens without a semicolon cannot make more.
        tree = Parser().parse(_tokens(text), text)[0]
        _check_nodes(tree)
    except FilterError as error:
        raise explained(text, error) from None
    except (SqlglotError, RecursionError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise explained(text, FilterError(f"it cannot be parsed: {reason}")) from None
    return tree


def explained(text: str, error: FilterError) -> FilterError:
    """Add the expression, and what could be written instead."""
    shown = text if len(text) <= 200 else text[:199] + "…"
    return FilterError(f"The condition {shown!r} cannot be used: {error}. {_HINT}")


def _tokens(text: str) -> list[Token]:
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise FilterError("it holds a NUL or half a surrogate pair")
    tokens: list[Token] = Tokenizer().tokenize(text)
    if not tokens:
        raise FilterError("it is empty")
    if len(tokens) > MAX_TOKENS:
        raise FilterError(f"it has {len(tokens):,} words and signs, more than {MAX_TOKENS:,}")
    connectives = sum(token.token_type in (TokenType.AND, TokenType.OR) for token in tokens)
    if connectives > MAX_CONNECTIVES:
        raise FilterError(f"it has {connectives:,} AND and OR, more than {MAX_CONNECTIVES:,}")
    _check_tokens(tokens)
    return tokens


def _check_tokens(tokens: list[Token]) -> None:
    depth, prefixes, previous = 0, 0, None
    for token in tokens:
        kind = token.token_type
        if token.comments:
            raise FilterError(f"a comment is not allowed: {token.comments[0].strip()!r}")
        is_name = previous is TokenType.DOT and token.text.isidentifier()
        if kind not in _TOKENS and not is_name:
            raise FilterError(f"{token.text!r} is not allowed")
        depth += (kind is TokenType.L_PAREN) - (kind is TokenType.R_PAREN)
        prefixes = prefixes + 1 if kind in (TokenType.NOT, TokenType.DASH) else 0
        if depth + prefixes > MAX_NESTING:
            raise FilterError(f"it is nested deeper than {MAX_NESTING}")
        previous = kind


def _check_nodes(tree: exp.Expression) -> None:
    for node in tree.walk():
        unusual = [name for name, value in node.args.items() if value and name not in _ARGUMENTS]
        if type(node) not in _NODES or unusual:
            raise FilterError(f"{' '.join([type(node).__name__, *unusual])} is not allowed")
