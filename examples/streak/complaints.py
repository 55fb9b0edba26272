"""What the command lines say of a failure: one sentence with what to do about it, and the exit code."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from .leases import AlreadyRunningError, ClockError, LeaseLostError
from .settings import BadSettingError
from .stores import StoreBusyError, StoreUnavailableError
from .stores.sql_versions import VersionError

__all__ = ["BAD_INPUT", "DONE", "FAILED", "RUNNING_ELSEWHERE", "Complaint", "complaint_of"]

DONE, FAILED, BAD_INPUT, RUNNING_ELSEWHERE = range(4)

# Their texts are this service's own; those of a driver may hold where the database is.
_OWN = {
    AlreadyRunningError: RUNNING_ELSEWHERE,
    LeaseLostError: RUNNING_ELSEWHERE,
    BadSettingError: BAD_INPUT,
    ClockError: BAD_INPUT,
    VersionError: BAD_INPUT,
}
_DRIVERS = (SQLAlchemyError, StoreUnavailableError, OSError, TimeoutError, asyncio.TimeoutError)


@dataclass(frozen=True, slots=True)
class Complaint:
    """What is said, and what the process ends with."""

    code: int
    text: str


_LOCKED = Complaint(FAILED, "the database is locked by somebody else: try again when they are done")
_BY_TEXT = {
    "file is not a database": Complaint(BAD_INPUT, "the file that DATABASE_URL names is not an SQLite database"),
    "unable to open database file": Complaint(
        BAD_INPUT, "the file that DATABASE_URL names cannot be opened: make its folder, or give it another path"
    ),
    "readonly database": Complaint(BAD_INPUT, "the file that DATABASE_URL names cannot be written: change its mode"),
    "is locked": _LOCKED,
}
_BY_STATE = {
    "3D000": Complaint(BAD_INPUT, "the database that DATABASE_URL names does not exist: create it first"),
    "28P01": Complaint(BAD_INPUT, "the server refuses the user or the password of DATABASE_URL: correct them"),
    "28000": Complaint(BAD_INPUT, "the server refuses the user or the password of DATABASE_URL: correct them"),
    "42501": Complaint(BAD_INPUT, "the user of DATABASE_URL may not do this: grant the rights, or use another one"),
    "55P03": _LOCKED,
}


def complaint_of(error: Exception) -> Complaint | None:
    """Return what to say of a failure; None for one that nobody foresaw."""
    for kind, code in _OWN.items():
        if isinstance(error, kind):
            return Complaint(code, str(error))
    for each in _chain(error):
        state = getattr(each, "sqlstate", None)
        if isinstance(state, str) and state in _BY_STATE:
            return _BY_STATE[state]
        found = next((said for text, said in _BY_TEXT.items() if text in str(each)), None)
        if found is not None and type(each).__module__ == "sqlite3":
            return found
    if isinstance(error, StoreBusyError):
        return _LOCKED
    if not isinstance(error, _DRIVERS) and not hasattr(error, "sqlstate"):
        return None
    kind_name = str(error) if isinstance(error, StoreUnavailableError) else type(error).__name__
    return Complaint(FAILED, f"the database does not answer ({kind_name}): is DATABASE_URL right, and the server up?")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what is behind it: the driver's own comes with SQLAlchemy's."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            return
        yield seen
        orig = seen.orig if isinstance(seen, DBAPIError) else None
        if orig is not None:
            yield orig
        seen = seen.__cause__ or (orig.__cause__ if orig is not None else None)
