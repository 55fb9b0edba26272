"""The versions of the tables, by Alembic. `examples.streak.migrate` and `Database.prepare` run them."""
