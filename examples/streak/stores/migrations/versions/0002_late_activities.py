"""What late activities and lost answers need: which day was missed, which was rested on, what was changed last.

Users of before have none of it: what was missed by then stays missed.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

_COLUMNS: dict[str, Any] = {"missed_on": sa.Date, "rested_on": sa.Date, "last_change_id": sa.String(32)}


def upgrade() -> None:
    """Add the columns. Neither database writes the rows anew for that."""
    for name, kind in _COLUMNS.items():
        op.add_column("streak_users", sa.Column(name, kind))


def downgrade() -> None:
    """Drop the columns; the users stay."""
    for name in reversed(_COLUMNS):
        op.drop_column("streak_users", name)
