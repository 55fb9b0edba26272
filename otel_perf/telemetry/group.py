"""Which processes belong together, and the directory that they share.

The workers of one server have one parent: `multiprocessing` names it (uvicorn), or the worker was forked from it and
runs the same command (gunicorn). A process that is nobody's worker is the head of a group of its own, whose members
would be its forked children; for it nothing is made on disk.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import multiprocessing
import os
import re
import stat
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from otel_perf.settings import Settings

__all__ = ["Group", "find"]

_PROC = Path("/proc")
# Servers that change what their processes are called, workers and parents differently.
_TITLES = (b"gunicorn: ", b"uWSGI ")


@dataclass(frozen=True, slots=True)
class Group:
    """Processes whose figures are added up."""

    name: str
    #: The directory of `workers_dir`; None for the private one.
    root: Path | None = None
    #: Whether this process is the head and not a worker: it shares only what its children began.
    heads: bool = False
    #: Whether the name is that of one group for ever, so that the group is not over before its parent is.
    certain: bool = True

    @property
    def directory(self) -> Path:
        """Where the files are. The user may change after the start (gunicorn's `--user`), so it is asked anew."""
        return (self.root or _private()) / self.name

    def prepare(self) -> None:
        """Makes the directory.

        Raises:
            OSError: where that cannot be done, or where others could write in it.
        """
        if self.root is None:
            _make(_private(), private=True)
        else:
            self.root.mkdir(parents=True, exist_ok=True)
        _make(self.directory, private=self.root is None)

    def stale(self) -> Iterator[Path]:
        """Directories of groups whose parent is gone."""
        if self.root is None:
            for each in sorted(_private().iterdir()):
                parts = each.name.rsplit(".", 3)[1:]
                if len(parts) == 3 and parts[0] == _namespace() and _began(parts[1]) != parts[2]:
                    yield each


def find(settings: Settings) -> Group | None:
    """The group of this process; None where it stays by itself."""
    given = settings.workers_dir
    if sys.platform == "win32" or (given or "").lower() == "none":
        return None
    slug = _slug(settings.service_name)
    if given:
        return Group(slug, Path(given), certain=False)
    parent = _parent()
    pid = str(parent or os.getpid())
    began = _began(pid)
    if parent is None and began is None:
        return None
    return Group(f"{slug}.{_namespace()}.{pid}.{began or 0}", heads=parent is None, certain=began is not None)


def _parent() -> int | None:
    """The process whose worker this one is."""
    starter = multiprocessing.parent_process()
    pid = os.getppid() if starter is None else starter.pid
    theirs = _command(str(pid))
    if pid is None or _reloads(theirs):
        return None
    own = _command("self")
    forked = bool(own) and (own == theirs or any(own.startswith(t) and theirs.startswith(t) for t in _TITLES))
    return pid if starter is not None or forked else None


def _reloads(command: bytes) -> bool:
    # Who reloads wants to see what the change brought, from zero.
    words = command.split(b"\0")
    return b"--reload" in words or any(
        word.endswith(b"fastapi") and after == b"dev" for word, after in itertools.pairwise(words)
    )


def _command(pid: str) -> bytes:
    try:
        return (_PROC / pid / "cmdline").read_bytes()
    except OSError:
        return b""


def _began(pid: str) -> str | None:
    """When a process began, in ticks since the machine did: with its number it names one process only."""
    try:
        told = (_PROC / pid / "stat").read_bytes()
    except OSError:
        return None
    # The name before the last bracket may hold spaces and brackets itself.
    return told.rpartition(b")")[2].split()[19].decode()


def _namespace() -> str:
    """Numbers of processes mean something in one container only."""
    with contextlib.suppress(OSError):
        return re.sub(r"\D", "", str((_PROC / "self" / "ns" / "pid").readlink()))
    return "0"


def _slug(name: str) -> str:
    plain = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40]
    return f"{plain}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _private() -> Path:
    return Path(tempfile.gettempdir()) / f"otel_perf-{os.geteuid()}"


def _make(directory: Path, *, private: bool) -> None:
    with contextlib.suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    found = directory.lstat()  # not through a link: anybody may put one into the temporary directory
    others = stat.S_IRWXG | stat.S_IRWXO if private else stat.S_IWOTH
    if not stat.S_ISDIR(found.st_mode) or found.st_mode & others or (private and found.st_uid != os.geteuid()):
        raise PermissionError(f"{directory} is not a directory that only this user can write to")
