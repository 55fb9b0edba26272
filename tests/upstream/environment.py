"""The environment of requirements/upstream.lock, made once, in the cache folder of the tools."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from collector import provision

__all__ = ["EnvironmentMissingError", "python"]

_LOCK = Path(__file__).resolve().parents[2] / "requirements" / "upstream.lock"
_LONGEST_S = 240


class EnvironmentMissingError(RuntimeError):
    """The environment is not here and could not be made; the text says why."""


def python() -> Path:
    """The interpreter of the environment, which is made where it is not there yet.

    Raises:
        EnvironmentMissingError: without uv, or without the network that the first time needs.
    """
    key = hashlib.sha256(f"{sys.version}{sys.executable}{platform.machine()}".encode() + _LOCK.read_bytes())
    folder = provision.cache_folder() / f"upstream-{key.hexdigest()[:12]}"
    found = folder / "bin" / "python"
    if found.exists():
        return found
    try:
        with provision.locked("upstream", sys.stderr.write):
            if not found.exists():  # another run may have made it while we waited
                _make(folder)
    except provision.InstallError as error:
        raise EnvironmentMissingError(str(error)) from error
    return found


def _make(folder: Path) -> None:
    beside = Path(sys.executable).parent
    uv = shutil.which("uv", path=os.pathsep.join([str(beside), os.environ.get("PATH", os.defpath)]))
    if uv is None:
        raise EnvironmentMissingError("uv is not here. Remedy: run the tests by `make test`, which installs it")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".upstream-") as temporary:
        made = Path(temporary) / "made"
        _run(uv, "venv", "--quiet", "--relocatable", "--python", sys.executable, str(made))
        # The lock is whole, and its overrides are what the resolver would refuse.
        _run(
            uv, "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--python", str(made / "bin" / "python"),
            "--requirement", str(_LOCK),
        )  # fmt: skip
        made.replace(folder)


def _run(*command: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in {"VIRTUAL_ENV", "PYTHONPATH"}}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST_S, check=False, env=environment)
    except subprocess.TimeoutExpired:
        raise EnvironmentMissingError(f"`{command[1]}` took more than {_LONGEST_S} s") from None
    if done.returncode != 0:
        raise EnvironmentMissingError(
            f"requirements/upstream.lock cannot be installed: {done.stderr.strip()[-500:]}. "
            "Remedy: the first time needs the package registry; run it again when that can be reached"
        )
