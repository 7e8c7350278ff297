"""The catalog's schema, as SQLAlchemy sees it. Only the migrations create or change tables.

One database may hold several indexes. An index has sources and segments, a segment has samples;
the row of a sample within its segment is its id minus the segment's `first_id`.
"""

from __future__ import annotations

from datetime import UTC, datetime

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

# Oldest first; the last one is what this version of the package reads and writes.
REVISIONS = ("0001",)

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
    sa.UniqueConstraint("index_id", "name"),
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
    sa.Column("payload", sa.LargeBinary, nullable=False),
    sa.PrimaryKeyConstraint("index_id", "id"),
    sa.UniqueConstraint("index_id", "key"),
    sa.Index(None, "index_id", "content_hash"),
)
