"""The tables, with the indexes that the service's own questions need. The same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    PrimaryKeyConstraint,
    String,
    Table,
    Text,
    TypeDecorator,
    UniqueConstraint,
    literal_column,
)
from sqlalchemy.dialects import postgresql

__all__ = ["HAS_A_STREAK", "activities", "batches", "leases", "metadata", "runs", "users"]

metadata = MetaData()


class Moment(TypeDecorator[datetime]):
    """A moment. SQLite keeps it in UTC and gives it back without its zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Any) -> datetime | None:
        """Return what is written."""
        return None if value is None else value.astimezone(timezone.utc)

    def process_result_value(self, value: datetime | None, _dialect: Any) -> datetime | None:
        """Return what was written."""
        return value if value is None or value.tzinfo is not None else value.replace(tzinfo=timezone.utc)


# Names sort by their code points everywhere, as in Python: the ranges of the maintenance depend on it.
Name = String(32).with_variant(postgresql.VARCHAR(32, collation="C"), "postgresql")

users = Table(
    "streak_users",
    metadata,
    # Maintenance walks the users in this order, a range after the other.
    Column("id", Name, primary_key=True),
    Column("streak", Integer, nullable=False, default=0),
    Column("longest", Integer, nullable=False, default=0),
    Column("freezes", Integer, nullable=False, default=0),
    Column("freezes_earned", Integer, nullable=False, default=0),
    Column("freezes_used", Integer, nullable=False, default=0),
    Column("last_active", Date),
    Column("held_until", Date),
    Column("week", Date),
    # The categories done in that week, in alphabetical order with commas between them.
    Column("done", String(64), nullable=False, default=""),
    Column("bonus", Boolean, nullable=False, default=False),
    Column("xp", BigInteger, nullable=False, default=0),
    Column("lost_streak", Integer, nullable=False, default=0),
    Column("lost_on", Date),
    Column("missed_on", Date),
    Column("rested_on", Date),
    Column("joined_on", Date, nullable=False),
    # Which freeze or recovery was written last: whoever got no answer to a commit finds out whether it was made.
    Column("last_change_id", String(32)),
)
Index("ix_streak_users_board", users.c.streak.desc(), users.c.xp.desc(), users.c.id)
Index("ix_streak_users_active", users.c.last_active.desc(), users.c.xp.desc(), users.c.id)
# Written out, and not a parameter: only so do both databases see that the index below will do.
HAS_A_STREAK = users.c.streak > literal_column("0")
Index(
    "ix_streak_users_due",
    users.c.id,
    users.c.held_until,
    postgresql_where=HAS_A_STREAK,
    sqlite_where=HAS_A_STREAK,
)

activities = Table(
    "streak_activities",
    metadata,
    # Ids sort by time: a page of a user's activities ends where the next one begins.
    Column("id", String(32), primary_key=True),
    Column("user_id", Name, ForeignKey("streak_users.id"), nullable=False),
    Column("day", Date, nullable=False),
    Column("at", Moment, nullable=False),
    Column("category", String(16), nullable=False),
    Column("minutes", Integer, nullable=False),
    Column("note", String(280)),
    Column("xp", Integer, nullable=False),
    Column("bonus_xp", Integer, nullable=False),
    # What the caller calls this activity, so that sending it twice logs it once.
    Column("client_key", String(64)),
    UniqueConstraint("user_id", "client_key", name="uq_streak_activities_client_key"),
)
Index("ix_streak_activities_page", activities.c.user_id, activities.c.id.desc())
Index("ix_streak_activities_category", activities.c.user_id, activities.c.category, activities.c.id.desc())
Index("ix_streak_activities_calendar", activities.c.user_id, activities.c.day)
Index("ix_streak_activities_report", activities.c.day, activities.c.category)

runs = Table(
    "streak_runs",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("day", Date, nullable=False),
    Column("trigger", String(16), nullable=False),
    Column("state", String(16), nullable=False),
    Column("started_at", Moment, nullable=False),
    Column("ended_at", Moment),
    Column("resumed", Integer, nullable=False, default=0),
    Column("error", String(128)),
)
Index("ix_streak_runs_day", runs.c.day, runs.c.id.desc())

# What a run has accounted for, a range of users after the other: its checkpoint.
batches = Table(
    "streak_batches",
    metadata,
    Column("run_id", String(32), ForeignKey("streak_runs.id", ondelete="CASCADE"), nullable=False),
    Column("after", Name, nullable=False),
    Column("until", Name, nullable=False),
    Column("processed", Integer, nullable=False),
    Column("freezes_spent", Integer, nullable=False),
    Column("missed", Integer, nullable=False),
    Column("freezes_exhausted", Integer, nullable=False),
    Column("at_risk", Integer, nullable=False),
    Column("notified", Integer, nullable=False),
    # JSON; nothing once the messages are sent.
    Column("messages", Text),
    Column("changed", Text, nullable=False),
    PrimaryKeyConstraint("run_id", "after", "until"),
)

leases = Table(
    "streak_leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(200), nullable=False),
    Column("until", Moment, nullable=False),
)
