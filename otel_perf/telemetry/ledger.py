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
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from otel_perf.telemetry import shared_files, told
from otel_perf.telemetry.summing import Tally

__all__ = ["Ledger", "deserted"]

_BEGIN, _END, _UNFINISHED = "worker-", ".json", ".tmp"
_RETIRED, _LOCK, _SPOILT = "retired.json", "retired.lock", "spoilt-"
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

    def publish(self, written: bytes) -> None:
        """Writes this worker's figures. Not to be called by two threads at once.

        Raises:
            OSError: when that cannot be done.
        """
        if self._name is None:
            self._prepare()
            self._renew()
            self._absorb_if_possible()
            self._name = f"{_BEGIN}{os.getpid()}-{time.time_ns():x}-{os.urandom(3).hex()}{_END}"
        if written == self._written and self._held and os.fstat(self._held[-1]).st_nlink:
            os.utime(self._held[-1])  # so that those who clean up temporary files see it in use
        else:
            self._write(self._name, written)
            self._written = written

    def published(self, *, windows: bool = True) -> Tally | None:
        """The figures of this worker as the others see them; None before they can."""
        return self._parsed(self._name, self._written, windows=windows) if self._name and self._written else None

    def _write(self, name: str, written: bytes) -> None:
        unfinished = self._directory / f"{name}{_UNFINISHED}"
        try:
            opened = shared_files.create(unfinished)
        except FileNotFoundError:  # somebody cleaned up
            self._prepare()
            opened = shared_files.create(unfinished)
        # Known from now on, so that a forked child can let go of it.
        self._held.append(opened)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shared_files.write_all(opened, written)
            unfinished.rename(self._directory / name)
        except OSError:
            os.close(self._held.pop())
            with contextlib.suppress(OSError):
                unfinished.unlink()  # a full disk needs the room
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
        retired = self._read_retired(windows=windows) or _Retired()
        read: list[tuple[Tally, bool]] = [] if retired.tally is None else [(retired.tally, False)]
        for name, content, living in found:
            tally = None if name in retired.absorbed else self._parsed(name, content, windows=windows)
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
        """Adds what dead workers left to `retired`, unless somebody else does it right now.

        Raises:
            OSError: when that cannot be done now.
        """
        with shared_files.locked(self._directory / _LOCK) as mine:
            if not mine:
                return
            retired = self._read_retired()
            dead = self._dead()
            new = [(name, found) for name, found in dead if retired is None or name not in retired.absorbed]
            if new:
                if retired is None:
                    self._put_aside(_RETIRED)
                    retired = _Retired()
                for name, found in new:
                    self._absorb(name, found, retired)
                self._write_retired(retired)
            for name, _ in dead:
                shared_files.remove(self._directory / name, self._directory / f"{name}{_UNFINISHED}")
            shared_files.remove(*_left_unfinished(self._directory))

    def _absorb(self, name: str, found: bytes, retired: _Retired) -> None:
        tally = self._parsed(name, found)
        if tally is None:
            self._put_aside(name)
        else:
            retired.tally = retired.tally or Tally(tally.started_ns, living=0, limit=self._limit)
            retired.tally.add(tally, living=False)
        retired.absorbed.append(name)

    def _put_aside(self, name: str) -> None:
        """Keeps a file that cannot be read under another name, for somebody to look at."""
        aside = f"{_SPOILT}{time.time_ns():x}-{name}"
        (self._directory / name).rename(self._directory / aside)
        _log.warning("otel_perf: %s is kept as %s, and its figures are not counted", self._directory / name, aside)

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
        """What a worker's file holds, and whether the worker lives; None when it is gone, or is none."""
        path = self._directory / name
        while True:
            try:
                with shared_files.regular(path) as opened:
                    living = shared_files.is_held(opened)
                    # Of a file that was replaced meanwhile the lock is free as well.
                    if living or shared_files.is_still(opened, path):
                        return shared_files.read_all(opened), living
            except FileNotFoundError:
                return None
            except OSError as error:
                self._leave_out(name, error)
                return None

    def _renew(self) -> None:
        """Starts the group from zero where it is over."""
        if self._lasts:
            return
        with shared_files.locked(self._directory / _LOCK) as mine:
            paths = [path for path in self._directory.iterdir() if path.name != _LOCK]
            newest_s = max(map(shared_files.changed_s, paths), default=0.0)
            if mine and time.time() - newest_s > _OVER_AFTER_S and deserted(self._directory):
                shared_files.remove(*paths)

    def _parsed(self, name: str, found: bytes, *, windows: bool = True) -> Tally | None:
        try:
            return Tally.load(told.decoded(found), windows=windows)
        except told.MALFORMED as error:
            self._leave_out(name, error)
            return None

    def _leave_out(self, name: str, error: Exception) -> None:
        if name not in self._bad:
            self._bad.add(name)
            _log.warning("otel_perf: %s cannot be read and is left out: %r", self._directory / name, error)

    def _read_retired(self, *, windows: bool = True) -> _Retired | None:
        """What those left that are gone; None when that cannot be known."""
        try:
            with shared_files.regular(self._directory / _RETIRED) as opened:
                read = told.decoded(shared_files.read_all(opened))
            tally = Tally.load(read, windows=windows)
            absorbed = [str(name) for name in read["absorbed"]]
        except FileNotFoundError:
            return _Retired()
        except (*told.MALFORMED, shared_files.NotRegularError) as error:
            self._leave_out(_RETIRED, error)
            return None
        tally.living, tally.limit = 0, self._limit
        return _Retired(tally, absorbed)

    def _write_retired(self, retired: _Retired) -> None:
        tally = retired.tally or Tally(time.time_ns(), living=0)
        unfinished = self._directory / f"{_RETIRED}{_UNFINISHED}"
        opened = shared_files.create(unfinished)
        try:
            shared_files.write_all(
                opened, told.document(**tally.dump(), absorbed=told.encode(retired.absorbed[-_REMEMBERED:]))
            )
        finally:
            os.close(opened)
        unfinished.rename(self._directory / _RETIRED)


def deserted(directory: Path) -> bool:
    """Whether no worker of this group lives."""
    for name in _workers(directory):
        with (
            contextlib.suppress(FileNotFoundError, shared_files.NotRegularError),
            shared_files.regular(directory / name) as opened,
        ):
            if shared_files.is_held(opened) or not shared_files.is_still(opened, directory / name):
                return False
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
    return [path for path in listed if time.time() - shared_files.changed_s(path) > _OVER_AFTER_S]
