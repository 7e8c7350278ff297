"""Runs the migrations on the connection that the caller put into `config.attributes`."""

from alembic import context

from forvalue_index.store.catalog.schema import metadata

connection = context.config.attributes.get("connection")
if connection is None:
    raise SystemExit(
        "The migrations run on a connection that is passed in, and none was. "
        "Call forvalue_index.store.catalog.database.migrate(engine) instead of the alembic command."
    )
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
