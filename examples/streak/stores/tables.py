"""The tables, with the indexes that the service's own questions need. The same on SQLite and PostgreSQL."""

from __future__ import annotations

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
    String,
    Table,
    UniqueConstraint,
)

__all__ = ["activities", "metadata", "users"]

metadata = MetaData()

# SQLite numbers rows by itself only where the key's type is INTEGER.
_Number = BigInteger().with_variant(Integer, "sqlite")

users = Table(
    "streak_users",
    metadata,
    # Maintenance walks the users in this order, a batch after the other.
    Column("id", String(32), primary_key=True),
    Column("streak", Integer, nullable=False, default=0),
    Column("longest", Integer, nullable=False, default=0),
    Column("freezes", Integer, nullable=False, default=0),
    Column("held_until", Date),
    Column("week", Date),
    # The categories done in that week, in alphabetical order with commas between them.
    Column("done", String(64), nullable=False, default=""),
    Column("bonus", Boolean, nullable=False, default=False),
    Column("xp", BigInteger, nullable=False, default=0),
    # The last day that maintenance has accounted for: it makes a second run of a day do nothing.
    Column("settled_on", Date),
    Column("joined_on", Date, nullable=False),
)
Index("ix_streak_users_board", users.c.streak.desc(), users.c.xp.desc(), users.c.id)

activities = Table(
    "streak_activities",
    metadata,
    Column("id", _Number, primary_key=True, autoincrement=True),
    Column("user_id", String(32), ForeignKey("streak_users.id"), nullable=False),
    Column("day", Date, nullable=False),
    Column("at", DateTime(timezone=True), nullable=False),
    Column("category", String(16), nullable=False),
    Column("minutes", Integer, nullable=False),
    Column("note", String(280)),
    Column("xp", Integer, nullable=False),
    Column("bonus_xp", Integer, nullable=False),
    # What the caller calls this activity, so that sending it twice logs it once.
    Column("client_key", String(64)),
    UniqueConstraint("user_id", "client_key", name="uq_streak_activities_client_key"),
)
Index("ix_streak_activities_calendar", activities.c.user_id, activities.c.day)
Index("ix_streak_activities_report", activities.c.day, activities.c.category)
