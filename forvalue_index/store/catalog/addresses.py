"""Where the catalog of an index lies, and which addresses are allowed."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qsl

from forvalue_index.exceptions import UsageError
from forvalue_index.settings import DEFAULT_CATALOG

CATALOG = "catalog.sqlite"
POSTGRESQL = "postgresql+psycopg"
# None of these reads a file; host may be the directory of a socket.
POSTGRESQL_OPTIONS = {"connect_timeout", "host", "port", "sslmode"}


def refuse_strange_catalog(catalog: str) -> None:
    """Raise UsageError unless this is SQLite within the index, or a plain address of PostgreSQL.

    An index may come from a stranger, and its catalog's address could name any file.
    """
    scheme, _, rest = catalog.partition("://")
    options = parse_qsl(rest.partition("?")[2], keep_blank_values=True)
    strange = sorted({name for name, _ in options} - POSTGRESQL_OPTIONS)
    if catalog != DEFAULT_CATALOG and (scheme != POSTGRESQL or strange):
        allowed = ", ".join(sorted(POSTGRESQL_OPTIONS))
        shown = f"the option {strange[0]}" if strange else f"the scheme {scheme}"
        raise UsageError(
            f"--catalog: {shown} is not allowed; use sqlite, which lies within the index, or "
            f"{POSTGRESQL}://USER@HOST/NAME with no options but {allowed}"
        )


def catalog_address(path: Path, catalog: str) -> str | Path:
    """The default catalog lies in the index, so that the directory can be moved."""
    return path.resolve() / CATALOG if catalog == DEFAULT_CATALOG else catalog
