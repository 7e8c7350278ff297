"""Runs to go on with, keys that removed samples set free, checksums, texts that lie in files."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
removed = sa.column("removed", sa.Boolean)
LIVE_INDEXES = {
    "ix_samples_live_source_id": "source_id",
    "ix_samples_live_loss": "loss",
    "ix_samples_live_label_error_mass": "label_error_mass",
}


def upgrade() -> None:
    op.create_table(
        "runs",
        sa.Column("id", sa.Integer, nullable=False),
        sa.Column("index_id", sa.Integer, nullable=False),
        sa.Column("sources", JSON, nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True)),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
        sa.ForeignKeyConstraint(["index_id"], ["indexes.id"], name="fk_runs_index_id_indexes"),
    )
    op.create_index("ix_runs_index_id", "runs", ["index_id"])
    with op.batch_alter_table("segments") as segments:
        segments.add_column(sa.Column("run_id", sa.Integer))
        segments.create_foreign_key("fk_segments_run_id_runs", "runs", ["run_id"], ["id"])
    op.add_column("sources", sa.Column("path", sa.Text))
    op.add_column("sources", sa.Column("columns", JSON))
    op.drop_index("ix_samples_index_id_content_hash", "samples")
    with op.batch_alter_table("samples") as samples:
        samples.drop_constraint("uq_samples_index_id_key", type_="unique")
        samples.alter_column("payload", existing_type=sa.LargeBinary, nullable=True)
        samples.add_column(sa.Column("offset", sa.BigInteger))
        samples.add_column(sa.Column("checksum", sa.BigInteger))
    op.create_index("ix_samples_segment_id", "samples", ["segment_id"])
    create_partial_index("uq_samples_live_key", "key", ~removed, unique=True)
    create_partial_index("ix_samples_removed_key", "key", removed)
    for name, column in LIVE_INDEXES.items():
        create_partial_index(name, column, ~removed)


def create_partial_index(name, column, where, *, unique=False) -> None:
    options = {"sqlite_where": where, "postgresql_where": where}
    op.create_index(name, "samples", ["index_id", column], unique=unique, **options)


def downgrade() -> None:
    """Fails and changes nothing where a removed sample and another one have the same key.

    Or where the catalog does not hold the texts.
    """
    for name in (*LIVE_INDEXES, "ix_samples_removed_key", "uq_samples_live_key"):
        op.drop_index(name, "samples")
    op.drop_index("ix_samples_segment_id", "samples")
    with op.batch_alter_table("samples") as samples:
        samples.drop_column("checksum")
        samples.drop_column("offset")
        samples.alter_column("payload", existing_type=sa.LargeBinary, nullable=False)
        samples.create_unique_constraint("uq_samples_index_id_key", ["index_id", "key"])
    op.create_index("ix_samples_index_id_content_hash", "samples", ["index_id", "content_hash"])
    with op.batch_alter_table("segments") as segments:
        segments.drop_constraint("fk_segments_run_id_runs", type_="foreignkey")
        segments.drop_column("run_id")
    op.drop_table("runs")
    with op.batch_alter_table("sources") as sources:
        sources.drop_column("path")
        sources.drop_column("columns")
