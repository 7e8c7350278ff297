"""The catalog's schema, as SQLAlchemy sees it. Only the migrations create or change tables.

One database may hold several indexes. An index has sources, runs and segments, a segment has
samples. Segments hold disjoint ranges of ids: `first_id` and up.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

# Oldest first; the last one is what this version of the package reads and writes.
REVISIONS = ("0001", "0002")

metadata = sa.MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def _now() -> datetime:
    return datetime.now(UTC)


indexes = sa.Table(
    "indexes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("uid", sa.Text, nullable=False, unique=True),
    sa.Column("fingerprint", sa.Text, nullable=False),
    # Counts committed changes, so a search index can tell whether it is behind.
    sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("0")),
    sa.Column("next_sample_id", sa.BigInteger, nullable=False, server_default=sa.text("0")),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, default=_now),
)

sources = sa.Table(
    "sources",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("index_id", sa.ForeignKey("indexes.id"), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    # Where the texts are that an index refers to: below the directory that holds the index.
    sa.Column("path", sa.Text),
    sa.Column("columns", JSON),
    sa.UniqueConstraint("index_id", "name"),
)

# One `add` of some data. Without `finished_at` it was stopped, and is still to be done again.
runs = sa.Table(
    "runs",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("index_id", sa.ForeignKey("indexes.id"), nullable=False, index=True),
    sa.Column("sources", JSON, nullable=False),
    sa.Column("started_at", sa.DateTime(timezone=True), nullable=False, default=_now),
    sa.Column("finished_at", sa.DateTime(timezone=True)),
)

segments = sa.Table(
    "segments",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("index_id", sa.ForeignKey("indexes.id"), nullable=False, index=True),
    sa.Column("uid", sa.Text, nullable=False, unique=True),
    sa.Column("first_id", sa.BigInteger, nullable=False),
    sa.Column("n_rows", sa.Integer, nullable=False),
    sa.Column("n_bytes", sa.BigInteger, nullable=False),
    sa.Column("sha256", sa.Text, nullable=False),
    sa.Column("created_at", sa.DateTime(timezone=True), nullable=False, default=_now),
)

samples = sa.Table(
    "samples",
    metadata,
    sa.Column("index_id", sa.ForeignKey("indexes.id"), nullable=False),
    sa.Column("id", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("segment_id", sa.ForeignKey("segments.id"), nullable=False),
    sa.Column("source_id", sa.ForeignKey("sources.id"), nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("content_hash", sa.Text, nullable=False),
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("n_tokens", sa.Integer, nullable=False),
    sa.Column("n_label_tokens", sa.Integer, nullable=False),
    sa.Column("truncated", sa.Boolean, nullable=False),
    sa.Column("loss", sa.Double, nullable=False),
    sa.Column("label_error_mass", sa.Double, nullable=False),
    sa.Column("norm", sa.Double, nullable=False),
    sa.Column("removed", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("metadata", JSON, nullable=False),
    # The text, or none where it lies in the source's file, there at `offset` if that is known.
    sa.Column("payload", sa.LargeBinary),
    sa.Column("offset", sa.BigInteger),
    # Over all that a reader sees of a sample; none in rows from before there were checksums.
    sa.Column("checksum", sa.BigInteger),
    sa.PrimaryKeyConstraint("index_id", "id"),
)

# Of live samples: a removed one keeps its key, and another one may take it.
LIVE = ~samples.c.removed
# Written in full: SQLite uses a partial index only where a query has its very words.
REMOVED = samples.c.removed == sa.true()


def _key_index(name: str, where: sa.ColumnElement[bool], *, unique: bool = False) -> None:
    columns = (samples.c.index_id, samples.c.key)
    sa.Index(name, *columns, unique=unique, sqlite_where=where, postgresql_where=where)


_key_index("uq_samples_live_key", LIVE, unique=True)
_key_index("ix_samples_removed_key", REMOVED)
sa.Index("ix_samples_segment_id", samples.c.segment_id)
# With all that a count, a median or a page of ids needs, so that no row is read for them.
for _name in ("source_id", "loss"):
    _columns = (samples.c[name] for name in ("index_id", "removed", _name, "id"))
    sa.Index(f"ix_samples_{_name}", *_columns)
