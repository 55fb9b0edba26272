"""What every started server has: its process, its folder, and an end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from collector import process

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Server", "start_in", "work_folder"]


@dataclass(slots=True, kw_only=True)
class Server:
    """A started server; leaving its context stops it."""

    process: process.Process
    directory: Path = field(repr=False)

    @property
    def log_path(self) -> Path:
        """Where the server's output goes."""
        return self.process.log_path

    def stop(self) -> None:
        """Stop the server and remove the folder it worked in; a second call does nothing."""
        self.process.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def work_folder(name: str) -> Path:
    """Make a folder for one server to work in."""
    return Path(tempfile.mkdtemp(prefix=f"otel_perf-{name}-"))


def start_in(
    name: str,
    command: Sequence[str],
    directory: Path,
    *,
    healthy: process.HealthCheck,
    env: Mapping[str, str] | None = None,
    grace_s: float = 10.0,
) -> process.Process:
    """Start a server in its folder; where that fails the folder goes too."""
    try:
        return process.start(
            name,
            command,
            log_path=directory / "log",
            directory=directory,
            env=env,
            healthy=healthy,
            deadline_s=60,
            grace_s=grace_s,
        )
    except BaseException:
        # The error's text holds the end of the log, so nothing is lost with the folder.
        shutil.rmtree(directory, ignore_errors=True)
        raise
