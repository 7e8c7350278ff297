"""Runs that may have been stopped, keys that removed samples set free, checksums, texts that lie in files."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

JSON = sa.JSON().with_variant(postgresql.JSONB(), "postgresql")
removed = sa.column("removed", sa.Boolean)
COVERING = ("source_id", "loss")


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
    op.add_column("sources", sa.Column("path", sa.Text))
    op.add_column("sources", sa.Column("columns", JSON))
    op.drop_index("ix_samples_index_id_content_hash", "samples")
    with op.batch_alter_table("samples") as samples:
        samples.drop_constraint("uq_samples_index_id_key", type_="unique")
        samples.alter_column("payload", existing_type=sa.LargeBinary, nullable=True)
        samples.add_column(sa.Column("offset", sa.BigInteger))
        samples.add_column(sa.Column("checksum", sa.BigInteger))
    op.create_index("ix_samples_segment_id", "samples", ["segment_id"])
    create_key_index("uq_samples_live_key", ~removed, unique=True)
    create_key_index("ix_samples_removed_key", removed == sa.true())
    for name in COVERING:
        op.create_index(f"ix_samples_{name}", "samples", ["index_id", "removed", name, "id"])
    if op.get_bind().dialect.name == "sqlite":
        describe_sizes()


def create_key_index(name, where, *, unique=False) -> None:
    options = {"sqlite_where": where, "postgresql_where": where}
    op.create_index(name, "samples", ["index_id", "key"], unique=unique, **options)


def describe_sizes() -> None:
    """Without these SQLite expects ten samples in an index, and goes through all to save a sort.

    They are what ANALYZE would find in one large index: rows, then rows for each value of the
    first column, of the first two, and so on.
    """
    op.execute("ANALYZE sqlite_schema")  # makes the table
    op.execute("DELETE FROM sqlite_stat1")
    sizes = sa.table("sqlite_stat1", sa.column("tbl"), sa.column("idx"), sa.column("stat"))
    rows = [
        {"tbl": "samples", "idx": name, "stat": stat}
        for name, stat in (
            ("sqlite_autoindex_samples_1", "1000000 1000000 1"),
            ("uq_samples_live_key", "1000000 1000000 1"),
            ("ix_samples_removed_key", "10000 10000 1"),
            ("ix_samples_segment_id", "1000000 1000"),
            ("ix_samples_source_id", "1000000 1000000 1000000 10000 1"),
            ("ix_samples_loss", "1000000 1000000 1000000 1 1"),
        )
    ]
    op.bulk_insert(sizes, rows)
    op.execute("ANALYZE sqlite_schema")  # reads them, for this connection


def downgrade() -> None:
    """Fails and changes nothing where a removed sample and another one have the same key.

    Or where the catalog does not hold the texts.
    """
    if op.get_bind().dialect.name == "sqlite":
        op.execute("DELETE FROM sqlite_stat1")
    for name in ("segment_id", "removed_key", *COVERING):
        op.drop_index(f"ix_samples_{name}", "samples")
    op.drop_index("uq_samples_live_key", "samples")
    with op.batch_alter_table("samples") as samples:
        samples.drop_column("checksum")
        samples.drop_column("offset")
        samples.alter_column("payload", existing_type=sa.LargeBinary, nullable=False)
        samples.create_unique_constraint("uq_samples_index_id_key", ["index_id", "key"])
    op.create_index("ix_samples_index_id_content_hash", "samples", ["index_id", "content_hash"])
    op.drop_table("runs")
    with op.batch_alter_table("sources") as sources:
        sources.drop_column("path")
        sources.drop_column("columns")
