"""Brings the tables to a version: `python -m examples.streak.migrate`. The service does so as it starts."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from .complaints import complaint_of
from .settings import BadSettingError, Settings
from .stores.sql_session import SqlSession, make_engine
from .stores.sql_versions import current_version, migrate, sql_of

__all__ = ["main"]

_ABOUT = """\
Bring the tables of DATABASE_URL to a version.

The service does this by itself as it starts, so you need it only to do it ahead of a roll-out, to go back, to read the
SQL first, or to see where a database stands. It takes a lock: several at once wait for each other, and one does it.
"""
_EXAMPLES = """\
examples:
  DATABASE_URL=postgresql://me@localhost/streak python -m examples.streak.migrate
        to the newest version
  ... python -m examples.streak.migrate --current
        only tell the version
  ... python -m examples.streak.migrate --sql > tables.sql
        write the statements for somebody else to run; nothing is touched
  ... python -m examples.streak.migrate --to 0001
        to a version, up or down; `--to base` drops the tables with everything in them, and wants --yes

exit codes:
  0  it is done
  1  it failed: the database does not answer, or somebody else has it locked
  2  an option or a setting cannot be used

A new version is a module of examples/streak/stores/migrations/versions.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what the arguments say; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.streak.migrate",
        description=_ABOUT,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--sql", action="store_true", help="print the SQL that makes the tables, and run nothing")
    which.add_argument("--current", action="store_true", help="print the version that the tables have")
    parser.add_argument("--to", metavar="REV", type=_version, help="the version to go to: 0001, head or base")
    parser.add_argument("--yes", action="store_true", help="drop the tables with everything in them, for --to base")
    given = parser.parse_args(arguments)
    if given.current and given.to is not None:
        parser.error("--current only tells the version: leave out --to")
    to = given.to or "head"
    if to == "base" and not given.sql and not given.yes:
        parser.error("--to base drops the tables with everything in them: add --yes if that is wanted")
    try:
        url = _sql_url()
        if given.sql:
            print(sql_of(url.partition("+")[0], to))
        else:
            asyncio.run(_run(url, None if given.current else to))
    except Exception as error:
        complaint = complaint_of(error)
        if complaint is None:
            raise
        print(f"migrate: {complaint.text}", file=sys.stderr)
        return complaint.code
    return 0


def _version(given: str) -> str:
    if not given.strip():
        raise argparse.ArgumentTypeError("it is empty: give it 0001, head or base")
    return given


def _sql_url() -> str:
    url = Settings.from_environment(os.environ).database_url
    if url is None:
        raise BadSettingError("DATABASE_URL is not set: it says which database to migrate")
    if url.startswith("firestore:"):
        raise BadSettingError("DATABASE_URL is a Firestore, which has no tables to migrate")
    return url


async def _run(url: str, to: str | None) -> None:
    engine = make_engine(url)
    try:
        if to is None:
            print(await current_version(engine) or "no tables yet")
            return
        before, after = await migrate(SqlSession(engine), to)
        print(f"{before or 'nothing'} -> {after or 'nothing'}" if before != after else f"{after or 'nothing'} already")
    finally:
        await engine.dispose()


if __name__ == "__main__":
    sys.exit(main())
