"""Files that several processes share, opened so that nothing in their place is followed or waited for."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Generator
from pathlib import Path

__all__ = [
    "NotRegularError", "changed_s", "create", "is_held", "is_still", "locked", "read_all", "regular", "remove",
    "write_all",
]  # fmt: skip

# What opening something says that is a link (ELOOP; EMLINK on some systems) or a socket.
_OTHER_KINDS = (errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EOPNOTSUPP)


def changed_s(path: Path) -> float:
    """When it changed last; long ago where it is gone."""
    try:
        return path.lstat().st_mtime
    except FileNotFoundError:  # somebody removed it meanwhile
        return 0.0


class NotRegularError(OSError):
    """It is a link, a pipe, a directory: no file of ours."""


@contextlib.contextmanager
def regular(path: Path) -> Generator[int, None, None]:
    """The file, open for reading; anything else is refused, and never waited for.

    Raises:
        OSError: where there is no such file.
    """
    try:
        opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if error.errno in _OTHER_KINDS:
            raise NotRegularError(error.errno, "it is no file") from None
        raise
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise NotRegularError(errno.EINVAL, "it is no file")
        yield opened
    finally:
        os.close(opened)


def create(path: Path) -> int:
    """An empty file of this name, open for writing, for its owner alone.

    Raises:
        OSError: where that cannot be had, or where the name is that of a link or a pipe.
    """
    try:
        # Not blocking: a pipe of this name would wait for a reader for ever.
        return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    except OSError:
        remove(path)  # so that it is in the way once
        raise


def write_all(opened: int, written: bytes) -> None:
    """Writes all of it."""
    view = memoryview(written)
    while view:
        view = view[os.write(opened, view) :]


def read_all(opened: int) -> bytes:
    """What is in it."""
    with open(opened, "rb", closefd=False) as file:
        return file.read()


def is_held(opened: int) -> bool:
    """Whether somebody else has locked it."""
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def is_still(opened: int, path: Path) -> bool:
    """Whether the name is still that of this file."""
    try:
        return os.path.samestat(os.fstat(opened), path.lstat())
    except FileNotFoundError:
        return False


def remove(*paths: Path) -> None:
    """Removes what is there and can be removed."""
    for path in paths:
        # Who puts a directory there keeps it.
        with contextlib.suppress(FileNotFoundError, IsADirectoryError, PermissionError):
            path.unlink()


@contextlib.contextmanager
def locked(path: Path) -> Generator[bool, None, None]:
    """Whether the lock could be had at once; it is given back at the end of the block, or of the process."""
    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(opened)
        yield False
        return
    try:
        yield True
    finally:
        os.close(opened)
