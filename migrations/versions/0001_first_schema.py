"""Indexes, their sources, segments and samples."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")


def upgrade() -> None:
    create_indexes()
    create_sources()
    create_segments()
    create_samples()


def create_indexes() -> None:
    op.create_table(
        "indexes",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("fingerprint", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("next_sample_id", sa.BigInteger, nullable=False, server_default=sa.text("0")),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_indexes"),
        sa.UniqueConstraint("uid", name="uq_indexes_uid"),
    )


def create_sources() -> None:
    op.create_table(
        "sources",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("index_id", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_sources"),
        sa.UniqueConstraint("index_id", "name", name="uq_sources_index_id_name"),
        sa.ForeignKeyConstraint(["index_id"], ["indexes.id"], name="fk_sources_index_id_indexes"),
    )


def create_segments() -> None:
    op.create_table(
        "segments",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("index_id", sa.Integer, nullable=False),
        sa.Column("uid", sa.Text, nullable=False),
        sa.Column("first_id", sa.BigInteger, nullable=False),
        sa.Column("n_rows", sa.Integer, nullable=False),
        sa.Column("n_bytes", sa.BigInteger, nullable=False),
        sa.Column("sha256", sa.Text, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_segments"),
        sa.UniqueConstraint("uid", name="uq_segments_uid"),
        sa.ForeignKeyConstraint(["index_id"], ["indexes.id"], name="fk_segments_index_id_indexes"),
    )
    op.create_index("ix_segments_index_id", "segments", ["index_id"])


def create_samples() -> None:
    op.create_table(
        "samples",
        sa.Column("index_id", sa.Integer, nullable=False),
        sa.Column("id", sa.BigInteger, nullable=False, autoincrement=False),
        sa.Column("segment_id", sa.Integer, nullable=False),
        sa.Column("source_id", sa.Integer, nullable=False),
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
        sa.PrimaryKeyConstraint("index_id", "id", name="pk_samples"),
        sa.UniqueConstraint("index_id", "key", name="uq_samples_index_id_key"),
        sa.ForeignKeyConstraint(["index_id"], ["indexes.id"], name="fk_samples_index_id_indexes"),
        sa.ForeignKeyConstraint(
            ["segment_id"], ["segments.id"], name="fk_samples_segment_id_segments"
        ),
        sa.ForeignKeyConstraint(
            ["source_id"], ["sources.id"], name="fk_samples_source_id_sources"
        ),
    )
    op.create_index("ix_samples_index_id_content_hash", "samples", ["index_id", "content_hash"])


def downgrade() -> None:
    for table in ("samples", "segments", "sources", "indexes"):
        op.drop_table(table)
