"""The tables of the streak figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from tests.benchmarks.streak_values import DATABASES, Told, shares

__all__ = ["load_table", "maintenance_table", "share_table", "streak_tables"]

Table = Callable[[Sequence[str], Iterable[Sequence[str]]], str]
_NAMES = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}
_SHAPES = {
    "calendar": "{users} readers of the calendar, each 1 to 3 s",
    "log": "{users} who log each second, and as many readers",
    "burst": "{users} readers at the same moment, each second",
    "closed": "{users} readers without a pause",
}
#: How many requests a second one user asks for; without a pause it is as many as the service lets it.
_ASKS = {"calendar": {"calendar": 0.5}, "log": {"log": 1.0, "calendar": 0.5}, "burst": {"calendar": 1.0}}


def _middle(rounds: Sequence[Mapping[str, Any]], name: str, key: str) -> str:
    return f"{median(each['requests'][name][key] for each in rounds):.1f}"


def load_table(told: Told, table: Table) -> str:
    """Latencies of each shape of load, and how its generator fared."""
    rows = []
    for database in DATABASES:
        for shape, title in _SHAPES.items():
            rounds = [each for each in told.get((shape, database), ()) if each["requests"]]
            users = rounds[0]["users"] if rounds else 0
            for name in rounds[0]["requests"] if rounds else ():
                busy = median(each["generator"]["busy"] for each in rounds)
                others = median(each["elsewhere"] for each in rounds)
                kept_up = sum(each["trusted"] for each in rounds)
                asks = _ASKS.get(shape, {}).get(name)
                rows.append((
                    f"{title.format(users=users)}: {name}", _NAMES[database],
                    "-" if asks is None else f"{asks * users:g}",
                    *(_middle(rounds, name, key) for key in ("per_s", "p50_ms", "p95_ms", "p99_ms")),
                    str(sum(each["requests"][name]["errors"] for each in rounds)), f"{busy:.0%}", f"{others:.0%}",
                    f"{kept_up} of {len(rounds)}",
                ))  # fmt: skip
    head = (
        "load on one worker", "database", "asked/s", "requests/s", "p50 ms", "p95 ms", "p99 ms", "errors",
        "Locust's core", "others", "rounds it kept up",
    )  # fmt: skip
    return table(head, rows)


def maintenance_table(told: Told, table: Table) -> str:
    """Runs of the maintenance."""
    rows = []
    for part in ("1000", "10000", "100000"):
        for database in DATABASES:
            rounds = told.get((part, database))
            if rounds:
                rows.append((
                    f"{rounds[0]['users']:,}", _NAMES[database], f"{median(each['wall_s'] for each in rounds):.2f}",
                    f"{median(each['seconds'] for each in rounds):.2f}",
                    f"{max(each['grown_mb'] for each in rounds):.1f}", f"{max(each['peak_mb'] for each in rounds):.0f}",
                    f"{median(each['elsewhere'] for each in rounds):.0%}",
                ))  # fmt: skip
    head = ("users", "database", "s, process", "s, run", "MB grown", "MB at most", "others")
    return table(head, rows)


def share_table(told: Told, table: Table) -> str:
    """CPU of the service with and without otel_perf."""
    rows = []
    for database in DATABASES:
        pairs = told.get(("share", database))
        if pairs:
            each = shares(told, database)
            on, off = (median(pair[arm]["cpu_us"] for pair in pairs) for arm in ("on", "off"))
            rows.append((
                _NAMES[database], f"{off:.0f}", f"{on:.0f}", f"{median(each):.1%}",
                f"{min(each):.1%} to {max(each):.1%}",
            ))  # fmt: skip
    head = ("database", "us CPU per request without", "with", "share", "spread")
    return table(head, rows)


def streak_tables(told: Told, table: Table) -> dict[str, str]:
    """The tables by the name of their marker; those of which nothing was measured are left out."""
    made = {}
    for name, parts, make in (
        ("streak_load", tuple(_SHAPES), load_table),
        ("streak_maintenance", ("1000", "10000", "100000"), maintenance_table),
        ("streak_share", ("share",), share_table),
    ):
        if any(told.get((part, database)) for part in parts for database in DATABASES):
            made[name] = make(told, table)
    return made
