"""The live table: what `/api/performance` says, as text for a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["render"]

Row = dict[str, Any]
Column = tuple[str, Callable[[Row], "str | Text"]]


def _plain(value: object) -> str:
    """Text without control characters: names come from requests, and this is a terminal."""
    return "".join(char if char.isprintable() else "?" for char in str(value))


def _join(row: Row, *keys: str) -> str:
    return _plain(" ".join(str(row[key]) for key in keys if row.get(key) is not None)) or "-"


def _time(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms:.2f} ms" if ms < 10 else f"{ms:.0f} ms" if ms < 10_000 else f"{ms / 1000:.1f} s"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _errors(row: Row) -> Text:
    return Text(f"{row['errors']:,}", style="bold red" if row["errors"] else "dim")


def _hit_rate(row: Row) -> Text:
    expected = row.get("expected_hit_rate")
    low = expected is not None and row["hit_rate"] is not None and row["hit_rate"] < expected
    return Text(_share(row["hit_rate"]), style="yellow" if low else "")


_USUAL: tuple[Column, ...] = (
    ("count", lambda row: f"{row['count']:,}"),
    ("rate", lambda row: f"{row['recent']['rate_per_s']:.1f}/s"),
    ("errors", _errors),
    ("p50", lambda row: _time(row["p50_ms"])),
    ("p95", lambda row: _time(row["p95_ms"])),
    ("p99", lambda row: _time(row["p99_ms"])),
)


def _table(title: str, first: Column, columns: tuple[Column, ...], rows: list[Row], most: int) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), expand=True)
    table.add_column(first[0], style="cyan", ratio=1, no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows[:most]:
        table.add_row(first[1](row), *(read(row) for _, read in columns))
    if len(rows) > most:
        table.add_row(f"... and {len(rows) - most} more", style="dim")
    return table


def _headline(document: Row) -> Text:
    requests, cache, export = document["requests"], document["cache"], document["export"]
    parts = [
        f"{_plain(document['service']['name'])}  up {document['uptime_s']:.0f} s",
        f"{requests['recent']['rate_per_s']:.1f} requests/s",
        f"{requests['active']} in flight",
        f"{requests['errors']:,} failed",
        f"{document['queries']['count']:,} queries ({document['queries']['slow']:,} slow)",
        f"cache {_share(cache['hit_rate'])}",
        f"spans {export['delivered']:,}/{export['made']:,} delivered"
        if export["made"] is not None
        else "spans not sent",
    ]
    if export["lost"]:
        parts.append(f"{export['lost']:,} LOST")
    if export["metrics"]["lost"]:
        parts.append(f"{export['metrics']['lost']:,} metric points LOST")
    return Text("  |  ".join(parts), style="bold")


def render(document: Row, *, routes: int = 14, rows: int = 6) -> RenderableType:
    """The table of one `/api/performance` document."""
    parts: list[RenderableType] = [
        _headline(document),
        _table(
            "Requests", ("route", lambda row: f"{row['method']} {_plain(row['route'] or '(no route)')}"), _USUAL,
            document["requests"]["routes"], routes,
        ),
        _table(
            "Queries", ("operation", lambda row: _join(row, "system", "operation", "collection")), _USUAL,
            document["queries"]["operations"], rows,
        ),
        _table(
            "Cache", ("strategy", lambda row: _plain(row["strategy"] or "(no strategy)")),
            (
                ("hits", lambda row: f"{row['hits']:,}"),
                ("misses", lambda row: f"{row['misses']:,}"),
                ("hit rate", _hit_rate),
                ("expected", lambda row: _share(row.get("expected_hit_rate"))),
                ("p95", lambda row: _time(row["p95_ms"])),
            ),
            document["cache"]["strategies"], rows,
        ),
        _table(
            "External APIs", ("service", lambda row: _join(row, "service", "operation")), _USUAL,
            document["external"]["services"], rows,
        ),
        _table(
            "Jobs", ("job", lambda row: _plain(row["job"])),
            (
                ("runs", lambda row: f"{row['count']:,}"),
                ("running", lambda row: f"{row['active']:,}"),
                ("errors", _errors),
                ("items", lambda row: f"{row['items']:,}"),
                ("p95", lambda row: _time(row["p95_ms"])),
            ),
            document["jobs"]["jobs"], rows,
        ),
    ]  # fmt: skip
    return Group(*parts)
