"""Where the application called from: the first frame that is neither ours, nor a library's, nor Python's own.

Frames are looked at for what is rare only, such as slow queries.
"""

from __future__ import annotations

import inspect
import sys
import sysconfig
from functools import lru_cache
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

__all__ = ["Place", "caller"]

_DEPTH = 400  # frames that are looked at, at most
_OURS = str(Path(__file__).resolve().parents[1]) + "/"
_PYTHON = tuple({f"{sysconfig.get_paths()[name]}/" for name in ("stdlib", "platstdlib")})
_INSTALLED = ("/site-packages/", "/dist-packages/")
# Of what is installed, these are never the application: it may be installed as well.
_LIBRARIES = frozenset(
    ("_pytest", "aiohttp", "aiosqlite", "anyio", "apscheduler", "arq", "asgiref", "asyncpg", "cashews", "celery",
     "django", "fastapi", "firebase_admin", "flask", "google", "greenlet", "grpc", "gunicorn", "h11", "httpcore",
     "httptools", "httpx", "kombu", "opentelemetry", "otel_perf", "pluggy", "psycopg", "psycopg_pool", "pydantic",
     "redis", "requests", "rq", "sentry_sdk", "sqlalchemy", "sqlmodel", "starlette", "taskiq", "tenacity", "urllib3",
     "uvicorn", "uvloop", "werkzeug", "wrapt")
)  # fmt: skip

_APPLICATION, _PACKAGE, _OTHER = range(3)


class Place(NamedTuple):
    """A line of a file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def caller() -> Place | None:
    """The place in the application that the running code was called from, or None where there is none.

    An application that is installed like a library is found when nothing else of the stack is an application's.
    """
    installed: Place | None = None
    for stack in _stacks():
        frame: FrameType | None = stack
        for _ in range(_DEPTH):
            if frame is None:
                break
            kind = _kind(frame.f_code.co_filename)
            if kind is _APPLICATION:
                return Place(frame.f_code.co_filename, frame.f_lineno)
            if kind is _PACKAGE and installed is None:
                installed = Place(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
    return installed


def _stacks() -> list[FrameType]:
    """The stack that runs, and those that wait for it: SQLAlchemy's async API runs queries in greenlets."""
    frame = inspect.currentframe()
    stacks = [] if frame is None else [frame]
    # Only who uses greenlets has imported it.
    module: Any = sys.modules.get("greenlet")
    parent: Any = None if module is None else module.getcurrent().parent
    for _ in range(8):
        if parent is None:
            break
        if parent.gr_frame is not None:
            stacks.append(parent.gr_frame)
        parent = parent.parent
    return stacks


@lru_cache(maxsize=4096)
def _kind(filename: str) -> int:
    for mark in _INSTALLED:
        _, found, below = filename.rpartition(mark)
        if found:
            return _OTHER if below.partition("/")[0].removesuffix(".py") in _LIBRARIES else _PACKAGE
    if filename.startswith((_OURS, "<", *_PYTHON)):
        return _OTHER
    return _APPLICATION
