"""Run by Alembic before migrations: they go through the transaction that it was given."""

from alembic import context

context.configure(connection=context.config.attributes["rows"])
with context.begin_transaction():
    context.run_migrations()
