"""Classes of routes, such as payment or admin, by patterns that the settings declare.

A rule is a name and a pattern, `payment=/pay*`; `*` stands for any text, and the first rule that fits counts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from otel_perf.settings import Settings
from otel_perf.sources import SettingsError
from otel_perf.telemetry.sampling import wild

__all__ = ["Classes", "check"]

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_LONGEST_PATH = 2048
_KEPT = 1024


def check(settings: Settings) -> None:
    """Finds out before anything is started whether the rules can be understood.

    Raises:
        SettingsError: for a rule that cannot.
    """
    Classes(settings.route_classes)


class Classes:
    """The rules, compiled into one expression."""

    __slots__ = ("_known", "_match", "_names")

    def __init__(self, rules: Sequence[str]) -> None:
        read = [_read(rule) for rule in rules]
        self._names = [name for name, _ in read]
        parts = [f"{wild(pattern, f'c{number}')}(?P<c{number}>)" for number, (_, pattern) in enumerate(read)]
        self._match = re.compile("|".join(parts), re.DOTALL).fullmatch if parts else None
        self._known: dict[str, str | None] = {}

    def of_template(self, template: str) -> str | None:
        """The class of a route; templates are few, so what was found is kept."""
        try:
            return self._known[template]
        except KeyError:
            found = self.of_path(template)
            if len(self._known) < _KEPT:
                self._known[template] = found
            return found

    def of_path(self, path: str) -> str | None:
        """The class of a path, None where no rule fits."""
        found = None if self._match is None else self._match(path[:_LONGEST_PATH])
        if found is None or found.lastgroup is None:
            return None
        return self._names[int(found.lastgroup.removeprefix("c").partition("_")[0])]


def _read(rule: str) -> tuple[str, str]:
    name, _, pattern = (part.strip() for part in rule.partition("="))
    if not _NAME.fullmatch(name) or not pattern.startswith(("/", "*")):
        raise SettingsError(
            f"route_classes has the rule {rule!r}: a rule is a name of letters, digits, `_`, `.` and `-`, `=`, and a "
            "pattern that begins with `/` or `*`, such as payment=/pay*"
        )
    return name, pattern
