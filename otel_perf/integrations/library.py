"""A library that can be measured: whether it is here, in which version, and which module adapts it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import re
import sys
from dataclasses import dataclass
from importlib import metadata
from typing import Any

__all__ = ["Integration", "faults"]

#: What was wrong with an integration when it was last tried, by its name.
faults: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Integration:
    """One line of the list: the library that it needs and the module that adapts it.

    The module has `matches(target) -> bool` and `instrument(target, **options) -> Handle`; a library that is
    instrumented as a whole takes `target=None`. It may have `elsewhere() -> str | None`, which names who else measures
    the library already.
    """

    name: str
    #: The module to import.
    requires: str
    #: The oldest version that is supported; None where it comes with Python.
    since: str | None = None
    whole: bool = False
    #: The name to install, where it is not the module's.
    distribution: str | None = None
    #: What is built on the module, where its version is what people know: `fastapi` on `starlette`.
    known_as: str | None = None

    def found(self) -> str | None:
        """The version that is installed, `""` where it has none, or None where the library is not here.

        What was not imported yet and belongs to no distribution is a file that happens to have the name.
        """
        try:
            imported = self.requires in sys.modules
            version = _version(self.distribution or self.requires) if self.since else ""
            if not imported and (version is None or importlib.util.find_spec(self.requires) is None):
                return None
        except (ImportError, ValueError):  # no parent package, or a module without a spec
            return None
        except Exception as error:  # looking for `a.b` imports `a`, which may be broken
            faults[self.name] = f"{type(error).__name__}: {error}"
            return None
        return version or ""

    def version(self) -> str | None:
        """The version as it is shown: of what people know, or of the module by its name where they have that alone."""
        found = self.found()
        if found is None or self.known_as is None:
            return found
        return _version(self.known_as) or f"{self.requires} {found}"

    def imported(self) -> bool:
        """Whether its library was imported, without which there can be no object of it."""
        return self.requires in sys.modules or self.requires.partition(".")[0] in sys.stdlib_module_names

    def problem(self) -> str | None:
        """Why the version that is installed cannot be measured, or None."""
        version = self.found()
        if self.since and version and _numbers(version) < _numbers(self.since):
            wanted = f"'{self.distribution or self.requires}>={self.since}'"
            return f"version {version} is not supported: pip install {wanted}"
        return None

    def load(self) -> Any:
        """The adapting module.

        Raises:
            ImportError: when its library is missing, or not as it should be.
        """
        return importlib.import_module(f"otel_perf.integrations.{self.name}")


@functools.cache
def _version(distribution: str) -> str | None:
    """The version of a distribution, or None where there is no such; reading it takes milliseconds."""
    try:
        version: str | None = metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
    return version or ""  # one without a version has lost a part of its metadata


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])
