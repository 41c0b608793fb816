"""Alembic's entry: run the steps on the connection that store/migrate.py hands over. Never opens a database of its own."""

from alembic import context

from dayfly.store.schema import metadata

# The caller's transaction surrounds all steps, so none is begun here: a failed step leaves the file as it was.
context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, render_as_batch=True, transactional_ddl=False
)
context.run_migrations()
