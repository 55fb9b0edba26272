"""Which version the tables of a database have, and how they get another, by Alembic without its command line."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.streak.stores import tables
from examples.streak.stores.sql_session import SqlSession

__all__ = ["VERSION_TABLE", "VersionError", "current_version", "migrate", "prepare", "require_newest", "sql_of"]

#: Not Alembic's default, so that an application may keep its own versions in the same database.
VERSION_TABLE: Final = "streak_alembic_version"

# Any number, as long as all processes of the service take the same one.
_LOCK: Final = 724_115
_FOLDER: Final = Path(__file__).parent / "migrations"


class VersionError(Exception):
    """The tables cannot be brought to the version that is wanted; the text says what to do."""


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(_FOLDER).replace("%", "%%"))
    return config


async def prepare(session: SqlSession) -> None:
    """Bring the tables to the newest version, unless they have it. Several processes may do so at once."""
    if await current_version(session.engine) != ScriptDirectory.from_config(_config()).get_current_head():
        await migrate(session, "head")


async def require_newest(engine: AsyncEngine) -> None:
    """Raise `VersionError` unless the tables have the newest version; nothing is made, not even a file."""
    # SQLite makes the file that it is to open.
    there = engine.dialect.name != "sqlite" or Path(engine.url.database or "").exists()  # noqa: ASYNC240 - at the start
    version = await current_version(engine) if there else None
    newest = ScriptDirectory.from_config(_config()).get_current_head()
    if version != newest:
        raise VersionError(
            f"the database has {'no tables yet' if version is None else f'tables of version {version}'}, and not "
            f"version {newest}: `python -m examples.streak.migrate` brings it there, and so does a run"
        )


async def current_version(engine: AsyncEngine) -> str | None:
    """Return the version of the tables; None when there are none."""
    async with engine.connect() as connection:
        return await connection.run_sync(_version_of)


async def migrate(session: SqlSession, to: str) -> tuple[str | None, str | None]:
    """Bring the tables to a version, up or down, in one transaction; return the versions before and after.

    `head` is the newest; `base` drops them all.
    """
    async with session.turn, session.engine.begin() as connection:
        if not session.sqlite:
            # Others may be at it, and a version may take its time.
            await connection.execute(text("SET LOCAL lock_timeout = 0"))
            await connection.execute(text("SET LOCAL statement_timeout = 0"))
            await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
        return await connection.run_sync(_migrate, to)


def sql_of(dialect: str, to: str) -> str:
    """Return the statements that lead from nothing to a version."""
    config = _config()
    config.output_buffer = io.StringIO()
    config.attributes["dialect"] = dialect
    with _explained():
        command.upgrade(config, to, sql=True)
    return config.output_buffer.getvalue()


def _migrate(connection: Connection, to: str) -> tuple[str | None, str | None]:
    config = _config()
    config.attributes["connection"] = connection
    before = _version_of(connection)
    if before is None:
        _require_no_older_tables(connection)
    with _explained():
        (command.downgrade if _is_below(config, to, before) else command.upgrade)(config, to)
    return before, _version_of(connection)


def _is_below(config: Config, to: str, version: str | None) -> bool:
    if version is None or to == version:
        return False
    if to == "base":
        return True
    older = ScriptDirectory.from_config(config).iterate_revisions(version, "base")
    return to in {script.revision for script in older}


@contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except (CommandError, RevisionError) as error:
        raise VersionError(
            f"{error}: `python -m examples.streak.migrate --current` tells the version of the tables; when it is one "
            "that is unknown here, a newer version of this service has made them"
        ) from error


def _version_of(connection: Connection) -> str | None:
    context = MigrationContext.configure(connection, opts={"version_table": VERSION_TABLE})
    return context.get_current_revision()


def _require_no_older_tables(connection: Connection) -> None:
    found = sorted(set(inspect(connection).get_table_names()) & set(tables.metadata.tables))
    if found:
        raise VersionError(
            f"this database has {', '.join(found)} of an earlier example, which kept no versions and cannot be "
            "migrated: drop these tables, or move the SQLite file away, and start again"
        )
