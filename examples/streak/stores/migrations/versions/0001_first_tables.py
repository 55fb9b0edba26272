"""The first tables: users, activities, and the runs of the maintenance.

A version says in full what it makes. It does not import the tables of today, which go on changing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0001"
down_revision = None

_NAME = sa.String(32).with_variant(postgresql.VARCHAR(32, collation="C"), "postgresql")
_MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    """Make the tables and their indexes."""
    _make_users()
    _make_activities()
    _make_runs()


def downgrade() -> None:
    """Drop the tables, with everything in them."""
    for table in ("streak_leases", "streak_batches", "streak_runs", "streak_activities", "streak_users"):
        op.drop_table(table)


def _make_users() -> None:
    op.create_table(
        "streak_users",
        sa.Column("id", _NAME, primary_key=True),
        sa.Column("streak", sa.Integer, nullable=False),
        sa.Column("longest", sa.Integer, nullable=False),
        sa.Column("freezes", sa.Integer, nullable=False),
        sa.Column("freezes_earned", sa.Integer, nullable=False),
        sa.Column("freezes_used", sa.Integer, nullable=False),
        sa.Column("last_active", sa.Date),
        sa.Column("held_until", sa.Date),
        sa.Column("week", sa.Date),
        sa.Column("done", sa.String(64), nullable=False),
        sa.Column("bonus", sa.Boolean, nullable=False),
        sa.Column("xp", sa.BigInteger, nullable=False),
        sa.Column("lost_streak", sa.Integer, nullable=False),
        sa.Column("lost_on", sa.Date),
        sa.Column("joined_on", sa.Date, nullable=False),
    )
    op.create_index("ix_streak_users_board", "streak_users", [sa.text("streak DESC"), sa.text("xp DESC"), "id"])
    op.create_index("ix_streak_users_active", "streak_users", [sa.text("last_active DESC"), sa.text("xp DESC"), "id"])
    op.create_index(
        "ix_streak_users_due",
        "streak_users",
        ["id", "held_until"],
        postgresql_where=sa.text("streak > 0"),
        sqlite_where=sa.text("streak > 0"),
    )


def _make_activities() -> None:
    table = "streak_activities"
    op.create_table(
        table,
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("user_id", _NAME, sa.ForeignKey("streak_users.id"), nullable=False),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("at", _MOMENT, nullable=False),
        sa.Column("category", sa.String(16), nullable=False),
        sa.Column("minutes", sa.Integer, nullable=False),
        sa.Column("note", sa.String(280)),
        sa.Column("xp", sa.Integer, nullable=False),
        sa.Column("bonus_xp", sa.Integer, nullable=False),
        sa.Column("client_key", sa.String(64)),
        sa.UniqueConstraint("user_id", "client_key", name="uq_streak_activities_client_key"),
    )
    newest_first = sa.text("id DESC")
    op.create_index("ix_streak_activities_page", table, ["user_id", newest_first])
    op.create_index("ix_streak_activities_category", table, ["user_id", "category", newest_first])
    op.create_index("ix_streak_activities_calendar", table, ["user_id", "day"])
    op.create_index("ix_streak_activities_report", table, ["day", "category"])


def _make_runs() -> None:
    op.create_table(
        "streak_runs",
        sa.Column("id", sa.String(32), primary_key=True),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("trigger", sa.String(16), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("started_at", _MOMENT, nullable=False),
        sa.Column("ended_at", _MOMENT),
        sa.Column("resumed", sa.Integer, nullable=False),
        sa.Column("error", sa.String(128)),
    )
    op.create_index("ix_streak_runs_day", "streak_runs", ["day", sa.text("id DESC")])
    op.create_table(
        "streak_batches",
        sa.Column("run_id", sa.String(32), sa.ForeignKey("streak_runs.id", ondelete="CASCADE"), nullable=False),
        sa.Column("after", _NAME, nullable=False),
        sa.Column("until", _NAME, nullable=False),
        sa.Column("processed", sa.Integer, nullable=False),
        sa.Column("freezes_spent", sa.Integer, nullable=False),
        sa.Column("missed", sa.Integer, nullable=False),
        sa.Column("freezes_exhausted", sa.Integer, nullable=False),
        sa.Column("at_risk", sa.Integer, nullable=False),
        sa.Column("notified", sa.Integer, nullable=False),
        sa.Column("messages", sa.Text),
        sa.Column("changed", sa.Text, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "after", "until"),
    )
    op.create_table(
        "streak_leases",
        sa.Column("name", sa.String(32), primary_key=True),
        sa.Column("holder", sa.String(200), nullable=False),
        sa.Column("until", _MOMENT, nullable=False),
    )
