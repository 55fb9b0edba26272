"""What became of each library: measured or not, and why."""

from __future__ import annotations

from dataclasses import dataclass

from otel_perf.integrations import registry
from otel_perf.integrations.library import Integration

__all__ = ["Report", "Status", "report"]


@dataclass(frozen=True, slots=True)
class Status:
    """One library, what became of it, and why.

    `state` is one of `measured`, `not measured`, `not installed`, `already measured by someone else`,
    `version not supported` and `broken`.
    """

    library: str
    state: str
    why: str
    version: str | None = None


class Report(tuple[Status, ...]):
    """All libraries, in the order in which a target is offered to them; as text it is a table."""

    __slots__ = ()

    def __str__(self) -> str:
        widths = [max((len(cell) for cell in column), default=0) for column in zip(*self._rows(), strict=True)]
        lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in self._rows())
        return "\n".join(line.rstrip() for line in lines)

    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [(each.library, each.version or "", each.state, each.why) for each in self]


def report() -> Report:
    """Says for each library whether it is measured, and if not why; it imports nothing and never raises."""
    return Report(_status(each) for each in registry.INTEGRATIONS)


def _status(each: Integration) -> Status:
    version = each.version()
    if version is None and each.name in registry.faults:
        return Status(each.name, "broken", registry.faults[each.name])
    if version is None:
        return Status(each.name, "not installed", f"pip install 'otel-perf[{each.name}]'")
    problem = each.problem()
    if problem is not None:
        return Status(each.name, "version not supported", problem, version)
    if each.name in registry.faults:
        return Status(each.name, "broken", registry.faults[each.name], version)
    other = registry.elsewhere(each)
    count = registry.taken.get(each.name, 0)
    if other is not None:
        left = "; what it leaves out is added" if count else ""
        return Status(each.name, "already measured by someone else", f"{other}{left}", version)
    if count:
        return Status(each.name, "measured", f"{count} handle{'s' if count > 1 else ''} of instrument()", version)
    if each.name in registry.unwanted():
        return Status(each.name, "not measured", "disabled_instrumentations has it", version)
    how = f"instrument({each.name!r})" if each.whole else "instrument() has not been given an object of it"
    return Status(each.name, "not measured", f"by {how}" if each.whole else how, version)
