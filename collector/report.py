"""What the check found, for people and for machines."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

__all__ = ["Finding", "Report", "print_tables"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that should hold, with what was found."""

    name: str
    expected: str
    found: str
    ok: bool


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, and the requests by route as sent and as each way of Prometheus has them."""

    findings: tuple[Finding, ...]
    routes: tuple[dict[str, Any], ...]
    traces: dict[str, int]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return all(finding.ok for finding in self.findings)

    def as_json(self) -> str:
        """Return the report as one line."""
        return json.dumps({"ok": self.ok, **asdict(self)})


def print_tables(report: Report) -> None:
    """Print the report for people."""
    # Into a file or a pipe there is no width to keep to.
    console = Console() if sys.stdout.isatty() else Console(width=120)
    ways = [key for key in (report.routes[0] if report.routes else {}) if key not in ("method", "route", "sent")]
    routes = Table(title="Requests by route", title_justify="left")
    for heading in ("method", "route", "sent", *ways):
        routes.add_column(heading, justify="left" if heading in ("method", "route") else "right")
    for row in report.routes:
        style = None if all(row[way] == row["sent"] for way in ways) else "red"
        routes.add_row(*(str(value) if value != "" else "(no route)" for value in row.values()), style=style)
    findings = Table(title="What arrived", title_justify="left")
    for heading in ("", "what", "expected", "found"):
        findings.add_column(heading, overflow="fold")
    for finding in report.findings:
        mark, style = ("ok", None) if finding.ok else ("MISSING", "red")
        findings.add_row(mark, finding.name, finding.expected, finding.found, style=style)
    console.print(routes, findings)
    verdict = "everything arrived" if report.ok else "something is missing"
    console.print(f"{verdict}: {report.traces['sent']} traces sent, {report.traces['missing']} missing in Jaeger")
