"""The slow-query log: JSON lines in a file that several processes may write, five files of ten megabytes at most.

Each line is one write to a file that is open for appending, so lines of several processes stay whole. Who finds the
file full moves it aside under a lock beside it (`path.lock`); the others notice at their next write that the name leads
to another file, and open that one. Lines that were written meanwhile are in the one that was moved.
"""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from otel_perf.settings import SettingsError
from otel_perf.telemetry.shared_files import write_all
from otel_perf.telemetry.slow_query import SlowQuery

__all__ = ["SlowQueryLog"]

_SIZE_BYTES = 10_000_000
_FILES = 5

_log = logging.getLogger("otel_perf")


class SlowQueryLog:
    """The file, and those that it was before."""

    def __init__(self, path: str, size_bytes: int = _SIZE_BYTES, files: int = _FILES) -> None:
        """Opens the file.

        Raises:
            SettingsError: where it cannot be written.
        """
        self._path = Path(path)
        self._size_bytes = size_bytes
        self._files = files
        self._failing = False
        self._broken = False  # a line was cut short by a full disk
        self._opened: int | None = None
        try:
            self._open()
            self.close()  # it is opened again by the first slow query
        except OSError as error:
            raise SettingsError(
                f"slow_query_log is {path!r}, which cannot be written ({error.strerror or error}): name a file in a "
                "directory that exists and that this user may write to, or leave the setting out"
            ) from None

    def write(self, queries: Sequence[SlowQuery]) -> int:
        """Writes a line for each, and answers how many could not be written; the first failure is logged."""
        left = len(queries)
        try:
            for query in queries:
                self._append(query.json().encode("utf-8", "replace") + b"\n")
                left -= 1
            self._failing = False
        except OSError as error:
            self.close()
            if not self._failing:
                self._failing = True
                _log.warning(
                    "otel_perf: slow queries cannot be written to %s (%s); they are counted as lost until they can be",
                    self._path, error.strerror or error,
                )  # fmt: skip
        return left

    def _append(self, line: bytes) -> None:
        opened = self._fitting(len(line))
        before_bytes = os.fstat(opened).st_size
        try:
            write_all(opened, b"\n" + line if self._broken else line)
            self._broken = False
        except OSError:
            self._broken = self._broken or os.fstat(opened).st_size != before_bytes
            raise

    def close(self) -> None:
        """Closes the file; the next write opens it again."""
        opened, self._opened = self._opened, None
        if opened is not None:
            with contextlib.suppress(OSError):
                os.close(opened)

    def after_fork(self) -> None:
        """Opens a file of the child's own at its first write."""
        self.close()

    def _open(self) -> int:
        # Not blocking: a pipe of this name would wait for a reader for ever.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC
        self._opened = os.open(self._path, flags, 0o600)
        return self._opened

    def _fitting(self, more_bytes: int) -> int:
        """The file with room for so much."""
        opened = self._opened if self._opened is not None else self._open()
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):  # /dev/stdout
            return opened
        if not self._is_named(status):
            self.close()
            opened = self._open()
            status = os.fstat(opened)
        if status.st_size and status.st_size + more_bytes > self._size_bytes:
            self._rotate(more_bytes)
            opened = self._opened if self._opened is not None else self._open()
        return opened

    def _is_named(self, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(status, self._path.stat())
        except FileNotFoundError:  # somebody moved it aside
            return False

    def _rotate(self, more_bytes: int) -> None:
        lock = os.open(f"{self._path}.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self.close()
            # Another process may have done it while this one waited.
            with contextlib.suppress(FileNotFoundError):
                if self._path.stat().st_size + more_bytes > self._size_bytes:
                    self._move_aside()
            self._open()
        finally:
            os.close(lock)

    def _move_aside(self) -> None:
        names = [self._path, *(Path(f"{self._path}.{number}") for number in range(1, self._files))]
        for newer, older in reversed(list(itertools.pairwise(names))):
            with contextlib.suppress(FileNotFoundError):
                newer.replace(older)
