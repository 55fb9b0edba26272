"""What Alembic runs: the versions on a connection that is handed in, or their SQL on paper.

`examples.streak.stores.sql_versions` begins the transaction, takes the lock, and calls.
"""

from __future__ import annotations

from alembic import context

from examples.streak.stores import tables
from examples.streak.stores.sql_versions import VERSION_TABLE

_given = context.config.attributes

if context.is_offline_mode():
    context.configure(
        dialect_name=_given["dialect"],
        target_metadata=tables.metadata,
        version_table=VERSION_TABLE,
        literal_binds=True,
    )
else:
    context.configure(
        connection=_given["connection"], target_metadata=tables.metadata, version_table=VERSION_TABLE, compare_type=True
    )

with context.begin_transaction():
    context.run_migrations()
