"""The files of one group of workers: each worker's own, and `retired`, which holds those of the workers that ended.

A worker's file is written beside and renamed, so it is always whole. It is locked (`flock`) for as long as it is the
worker's: the kernel gives the lock back when the process ends, however it ends, so a lock that can be had means that
nobody will write this file again. Each writing makes a new file, and it is locked before it gets its name.

What a worker left is added to `retired` once: `retired` names the files that are in it, and is in place before one of
them is removed. A reader takes the workers' files first and `retired` last, and leaves out the files that `retired`
names: so it sees each worker once, without a lock, whoever absorbs meanwhile.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from otel_perf.telemetry.summing import Tally

__all__ = ["Ledger", "deserted"]

_VERSION = 1
_BEGIN, _END, _UNFINISHED = "worker-", ".json", ".tmp"
_RETIRED, _LOCK = "retired.json", "retired.lock"
# Names of absorbed files that are remembered: more than can end while somebody reads.
_REMEMBERED = 1000
_OVER_AFTER_S = 60.0

_log = logging.getLogger("otel_perf")


@dataclass(slots=True)
class _Retired:
    tally: Tally | None = None
    absorbed: list[str] = field(default_factory=list[str])


class Ledger:
    """One worker's hand on the files of its group."""

    def __init__(
        self, where: Callable[[], Path], prepare: Callable[[], None], *, limit: int, lasts: bool = True
    ) -> None:
        """A hand on this directory; nothing is touched yet.

        Args:
            where: says where the files are.
            prepare: makes the directory, or raises `OSError` where that cannot be done safely.
            limit: series per metric that `retired` may hold.
            lasts: False lets a group that has been without a worker for a minute be over: the next begins from zero.
        """
        self._where = where
        self._prepare = prepare
        self._limit = limit
        self._lasts = lasts
        self._name: str | None = None
        self._held: list[int] = []
        self._written = b""
        self._bad: set[str] = set()

    @property
    def _directory(self) -> Path:
        return self._where()

    def exists(self) -> bool:
        """Whether there is anything to read."""
        try:
            return self._directory.is_dir()
        except OSError:  # there is no temporary directory at all
            return False

    @property
    def joined(self) -> bool:
        """Whether this worker has a file."""
        return self._name is not None

    def publish(self, tally: Tally) -> None:
        """Writes this worker's figures. Not to be called by two threads at once.

        Raises:
            OSError: when that cannot be done.
        """
        if self._name is None:
            self._prepare()
            self._renew()
            self._absorb_if_possible()
            self._name = f"{_BEGIN}{os.getpid()}-{time.time_ns():x}-{os.urandom(3).hex()}{_END}"
        written = _encoded(tally.dump())
        if written == self._written and self._held and os.fstat(self._held[-1]).st_nlink:
            os.utime(self._held[-1])  # so that those who clean up temporary files see it in use
        else:
            self._write(self._name, written)
            self._written = written

    def _write(self, name: str, written: bytes) -> None:
        unfinished = self._directory / f"{name}{_UNFINISHED}"
        try:
            opened = _create(unfinished)
        except FileNotFoundError:  # somebody cleaned up
            self._prepare()
            opened = _create(unfinished)
        # Known from now on, so that a forked child can let go of it.
        self._held.append(opened)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _write_all(opened, written)
            unfinished.rename(self._directory / name)
        except OSError:
            os.close(self._held.pop())
            raise
        # Forgotten before it is closed: a child that is forked in between must not close the number's next bearer.
        old = self._held[:-1]
        del self._held[:-1]
        for each in old:
            os.close(each)

    def read(self, *, windows: bool = True) -> list[tuple[Tally, bool]]:
        """The figures of all other workers, each with whether it lives, and of those that are gone."""
        found = [(name, *opened) for name in self._others() if (opened := self._open(name)) is not None]
        # Last: what was absorbed meanwhile is in it, and named.
        retired = self._read_retired(windows=windows)
        read: list[tuple[Tally, bool]] = [] if retired.tally is None else [(retired.tally, False)]
        for name, told, living in found:
            tally = None if name in retired.absorbed else self._parsed(name, told, windows=windows)
            if tally is not None:
                read.append((tally, living))
        if not all(living for _, _, living in found):
            self._absorb_if_possible()
        return read

    def _absorb_if_possible(self) -> None:
        # A dead worker's file counts as well as it is: on a full disk it has to wait.
        with contextlib.suppress(OSError):
            self.absorb()

    def absorb(self) -> None:
        """Adds what dead workers left to `retired`, unless somebody else does it right now."""
        with _locked(self._directory / _LOCK) as mine:
            if not mine:
                return
            retired = self._read_retired()
            dead = self._dead()
            new = [(name, told) for name, told in dead if name not in retired.absorbed]
            for name, told in new:
                tally = self._parsed(name, told)
                if tally is not None:
                    retired.tally = retired.tally or Tally(tally.started_ns, living=0, limit=self._limit)
                    retired.tally.add(tally, living=False)
                retired.absorbed.append(name)
            if new:
                self._write_retired(retired)
            for name, _ in dead:
                _remove(self._directory / name, self._directory / f"{name}{_UNFINISHED}")
            _remove(*_left_unfinished(self._directory))

    def leave(self) -> None:
        """Lets go of the file: it is for the next reader to absorb, and never for this one to read as another's."""
        held, self._held = self._held, []
        for each in held:
            os.close(each)

    def after_fork(self) -> None:
        """A forked child is a worker of its own; the parent's lock stays, since only this end of it is closed."""
        self.leave()
        self._name, self._written = None, b""

    # What is there ----------------------------------------------------------------------------------------------------

    def _others(self) -> list[str]:
        return [name for name in _workers(self._directory) if name != self._name]

    def _dead(self) -> list[tuple[str, bytes]]:
        opened = [(name, self._open(name)) for name in self._others()]
        return [(name, found[0]) for name, found in opened if found is not None and not found[1]]

    def _open(self, name: str) -> tuple[bytes, bool] | None:
        """What a worker's file holds, and whether the worker lives; None when it is gone."""
        path = self._directory / name
        while True:
            try:
                opened = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
            except FileNotFoundError:
                return None
            try:
                living = _is_held(opened)
                # Of a file that was replaced meanwhile the lock is free as well.
                if living or _is_still(opened, path):
                    return _read_all(opened), living
            finally:
                os.close(opened)

    def _renew(self) -> None:
        """Starts the group from zero where it is over."""
        if self._lasts:
            return
        with _locked(self._directory / _LOCK) as mine:
            paths = [path for path in self._directory.iterdir() if path.name != _LOCK]
            newest_s = max((path.stat().st_mtime for path in paths), default=0.0)
            if mine and time.time() - newest_s > _OVER_AFTER_S and deserted(self._directory):
                _remove(*paths)

    def _parsed(self, name: str, told: bytes, *, windows: bool = True) -> Tally | None:
        try:
            return Tally.load(_decoded(told), windows=windows)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            if name not in self._bad:
                self._bad.add(name)
                _log.warning("otel_perf: %s cannot be read and is left out: %r", self._directory / name, error)
            return None

    def _read_retired(self, *, windows: bool = True) -> _Retired:
        try:
            told = (self._directory / _RETIRED).read_bytes()
        except FileNotFoundError:
            return _Retired()
        tally = self._parsed(_RETIRED, told, windows=windows)
        if tally is None:
            return _Retired()
        tally.living, tally.limit = 0, self._limit
        return _Retired(tally, [str(name) for name in _decoded(told)["absorbed"]])

    def _write_retired(self, retired: _Retired) -> None:
        tally = retired.tally or Tally(time.time_ns(), living=0)
        unfinished = self._directory / f"{_RETIRED}{_UNFINISHED}"
        opened = _create(unfinished)
        try:
            _write_all(opened, _encoded({**tally.dump(), "absorbed": retired.absorbed[-_REMEMBERED:]}))
        finally:
            os.close(opened)
        unfinished.rename(self._directory / _RETIRED)


def deserted(directory: Path) -> bool:
    """Whether no worker of this group lives."""
    for name in _workers(directory):
        with contextlib.suppress(FileNotFoundError):
            opened = os.open(directory / name, os.O_RDONLY | os.O_NOFOLLOW)
            try:
                if _is_held(opened) or not _is_still(opened, directory / name):
                    return False
            finally:
                os.close(opened)
    return True


def _workers(directory: Path) -> list[str]:
    try:
        names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in names if name.startswith(_BEGIN) and name.endswith(_END))


def _left_unfinished(directory: Path) -> list[Path]:
    """What workers were killed over; a living one needs a moment for it, not a minute."""
    listed = [path for path in directory.iterdir() if path.name.endswith(_UNFINISHED)]
    return [path for path in listed if time.time() - path.stat().st_mtime > _OVER_AFTER_S]


def _encoded(document: dict[str, Any]) -> bytes:
    return json.dumps({"version": _VERSION, **document}, separators=(",", ":")).encode()


def _decoded(told: bytes) -> dict[str, Any]:
    document: Any = json.loads(told)
    if document["version"] != _VERSION:
        raise ValueError(f"it is of version {document['version']}")
    return cast("dict[str, Any]", document)


def _create(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)


def _write_all(opened: int, written: bytes) -> None:
    view = memoryview(written)
    while view:
        view = view[os.write(opened, view) :]


def _read_all(opened: int) -> bytes:
    with open(opened, "rb", closefd=False) as file:
        return file.read()


def _is_held(opened: int) -> bool:
    try:
        fcntl.flock(opened, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    return False


def _is_still(opened: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(opened), path.lstat())
    except FileNotFoundError:
        return False


def _remove(*paths: Path) -> None:
    for path in paths:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def _locked(path: Path) -> Generator[bool, None, None]:
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
