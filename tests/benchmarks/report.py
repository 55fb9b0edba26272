"""What a run found: tables for a person, one JSON object for a machine, and docs/performance.md between its markers."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.figures import FIGURES, MissingError, Results, added, added_by_library
from tests.benchmarks.processes import cores
from tests.benchmarks.scenarios import SCENARIOS
from tests.benchmarks.streak_report import streak_tables

__all__ = ["as_json", "markdown_table", "tables", "write"]

_PAGE = Path(__file__).resolve().parents[2] / "docs" / "performance.md"
_PACKAGES = (
    "otel-perf", "fastapi", "starlette", "uvicorn", "uvloop", "httptools", "opentelemetry-sdk",
    "opentelemetry-instrumentation-fastapi", "opentelemetry-instrumentation-redis",
    "opentelemetry-instrumentation-sqlalchemy", "opentelemetry-instrumentation-httpx", "logfire", "sentry-sdk",
    "ddtrace", "elastic-apm", "prometheus-fastapi-instrumentator", "prometheus-client", "sqlalchemy", "redis", "httpx",
    "cashews",
)  # fmt: skip
#: Below this share of a core other processes took part in the load figures.
_QUIET = 0.9
_MICRO = (
    ("span start + 5 attributes + end", "span_ours", "span_stock"),
    ("`with start_as_current_span(...)`, 5 attributes", "current_span_ours", "current_span_stock"),
    ("histogram record, bound, folds included", "record_ours", "record_stock"),
    ("the same within a sampled span (exemplars)", "record_sampled_ours", "record_sampled_stock"),
    ("histogram record, `record(value, attributes)`", "record_unbound_ours", "record_stock"),
    ("prometheus_client `child.observe`", None, "record_prometheus"),
    ("encoding one request span", "encode_ours", "encode_stock"),
)
_MEMORY = (
    ("a live span with 5 attributes", "span_bytes_ours", "span_bytes_stock"),
    ("a histogram series (ours for all its readers, stock for one)", "series_bytes_ours", "series_bytes_stock"),
)
_LIBRARIES = {
    "redis": "redis-py GET, real Redis",
    "sqlalchemy": "SQLAlchemy Core select, SQLite in memory",
    "httpx": "httpx GET, HTTP server on loopback",
    "cashews": "cashews read, in memory",
    "realistic": "a request: FastAPI, 3 queries, 2 Redis reads, 40 rows of JSON",
}
_SUBJECTS = {
    "sqlalchemy_query": "a SQLAlchemy query",
    "redis_command": "a Redis command",
    "httpx_call": "an httpx call",
    "cashews_get": "a cashews read",
    "measure_block": "`with measure(...)`",
    "bound_record": "a bound record",
}


# JSON --------------------------------------------------------------------------------------------------------------


def _figure(name: str, results: Results) -> dict[str, Any]:
    figure = FIGURES[name]
    try:
        value = figure.value(results)
    except MissingError as why:
        return {"value": None, "target": round(figure.target, 4), "met": False, "why": str(why)}
    return {"value": round(value, 4), "target": round(figure.target, 4), "met": figure.met(value)}


def versions() -> dict[str, str]:
    """What was measured, and on what."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def as_json(results: Results, names: Iterable[str]) -> dict[str, Any]:
    """The figures asked for, in the form that tools read."""
    return {"figures": {name: _figure(name, results) for name in names}, "versions": versions()}


# Tables ------------------------------------------------------------------------------------------------------------


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    aligned = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, aligned, *rows))


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.0f} to {max(values):.0f}"


def _shown(value: float, target: float) -> str:
    return f"{value:.0f}" if target > 1 else f"{value:.3f}"


def figures_table(results: Results, names: Iterable[str]) -> str:
    """Each figure beside its target."""
    rows = []
    for name in names:
        figure, told = FIGURES[name], _figure(name, results)
        sense = "at least" if figure.at_least else "at most"
        target = f"{sense} {_shown(figure.target, figure.target)}"
        value = "not measured" if told["value"] is None else _shown(told["value"], figure.target)
        rows.append((f"{figure.about} (`{name}`)", value, target, "yes" if told["met"] else "**no**"))
    return markdown_table(("figure", "value", "target", "met"), rows)


def _versioned(name: str, known: dict[str, str]) -> str:
    scenario = SCENARIOS[name]
    used = ", ".join(f"{each} {known[each]}" for each in scenario.uses if each in known and each != "otel-perf")
    return f"{scenario.title} ({used})" if used else scenario.title


def cpu_table(results: Results) -> str:
    """CPU of a request, ours and each peer's."""
    known, rows = versions(), []
    for name, scenario in SCENARIOS.items():
        plain = results.cpu.get((name, "plain"))
        if not plain:
            continue
        context = results.cpu.get((name, "context"))
        spans = results.delivered.get(name)
        rows.append((
            _versioned(name, known), scenario.does, f"{median(plain):.0f}", _spread(plain),
            "" if name == "bare" or not results.cpu.get(("bare", "plain")) else f"{added(results, name):+.0f}",
            "" if name == "bare" or not context else f"{added(results, name, 'context'):+.0f}",
            "" if spans is None else f"{spans:.1f}",
        ))  # fmt: skip
    head = ("in-process", "makes", "us CPU per request", "spread", "added us", "with trace context", "spans delivered")
    return markdown_table(head, rows)


def calls_table(results: Results) -> str:
    """Python calls of a request, exactly."""
    variants = ("5 routes", "200 routes", "query", "context")
    rows = []
    for name, scenario in SCENARIOS.items():
        counts = [results.calls.get((name, variant)) for variant in variants]
        bare = [results.calls.get(("bare", variant)) for variant in variants]
        if not all(counts) or not all(bare):
            continue
        pairs = [(c["usual"], b["usual"]) for c, b in zip(counts, bare, strict=True) if c and b]
        shown = [str(c) if name == "bare" else f"+{c - b}" for c, b in pairs]
        rows.append((scenario.title, *shown))
    head = ("Python calls per request", "5 routes", "200 routes", "with a query", "with trace context")
    return markdown_table(head, rows)


def subjects_table(results: Results) -> str:
    """Python calls added to other things than requests."""
    rows = []
    for name, title in _SUBJECTS.items():
        bare, ours = results.subjects.get((name, False)), results.subjects.get((name, True))
        if bare and ours:
            rows.append((title, str(bare["usual"]), f"+{ours['usual'] - bare['usual']}"))
    return markdown_table(("Python calls", "without", "added by otel_perf"), rows)


def libraries_table(results: Results) -> str:
    """CPU of calls through libraries, and the share of it that measuring takes in a realistic request."""
    rows = []
    for library, title in _LIBRARIES.items():
        bare = results.libraries.get((library, "bare"))
        if not bare:
            continue
        shown = []
        for arm in ("ours", "upstream"):
            there = results.libraries.get((library, arm))
            shown.append(f"{added_by_library(results, library, arm):+.0f}" if there else "")
            shown.append(_percent(results, library, arm) if there else "")
        rows.append((title, f"{median(bare):.0f}", *shown))
    head = (
        "a call", "us CPU bare", "added by otel_perf", "its share of all", "added by upstream", "its share of all",
    )  # fmt: skip
    return markdown_table(head, rows)


def _percent(results: Results, library: str, arm: str) -> str:
    return f"{added_by_library(results, library, arm) / results.library_us(library, arm):.0%}"


def load_table(results: Results) -> str:
    """Requests in a second at a real uvicorn."""
    rows = []
    for name, scenario in SCENARIOS.items():
        stretches = results.load.get(name)
        if not stretches:
            continue
        rates = [each.per_s for each in stretches]
        cost = f"{median(each.cpu_us for each in stretches):.0f}"
        share = f"{results.share(name):.2f}" if results.load.get("bare") else ""
        rows.append((scenario.title, f"{median(rates):.0f}", _spread(rates), cost, share))
    return markdown_table(("uvicorn, one worker", "requests/s", "spread", "us CPU per request", "share of bare"), rows)


def micro_table(results: Results) -> str:
    """Single things, and memory."""
    rows: list[tuple[str, ...]] = []
    for title, ours, stock in _MICRO:
        mine, theirs = results.micro.get(ours or ""), results.micro.get(stock)
        rows.append((title, _ns(mine), _ns(theirs), _share(mine, theirs)))
    for title, ours, stock in _MEMORY:
        mine, theirs = _one(results.memory.get(ours)), _one(results.memory.get(stock))
        shown = [f"{each[0]:.0f} B" if each else "" for each in (mine, theirs)]
        rows.append((title, *shown, _share(mine, theirs)))
    return markdown_table(("one of", "otel_perf", "peer", "ratio"), [row for row in rows if any(row[1:])])


def _one(value: float | None) -> list[float] | None:
    return None if value is None else [value]


def _ns(rounds: list[float] | None) -> str:
    return f"{median(rounds):.0f} ns ({_spread(rounds)})" if rounds else ""


def _share(mine: list[float] | None, theirs: list[float] | None) -> str:
    return f"{median(mine) / median(theirs):.3f}" if mine and theirs else ""


def not_faster(results: Results, names: Iterable[str]) -> str:
    """What is not faster, or not as fast as it should be, said plainly."""
    lines = []
    for name in names:
        told = _figure(name, results)
        if told["value"] is None:
            lines.append(f"- `{name}` could not be measured: {told['why']}.")
        elif not told["met"]:
            figure = FIGURES[name]
            value, target = (_shown(each, figure.target) for each in (told["value"], figure.target))
            lines.append(f"- `{name}` misses its target: {value} instead of {target}.")
    for name, scenario in SCENARIOS.items():
        if name == "bare" or name.startswith(("ours", "native_ours")):
            continue
        pair = [results.cpu.get((each, "plain")) for each in (name, "ours")]
        if all(pair) and results.cpu_us(name) < results.cpu_us("ours"):
            lines.append(
                f"- {scenario.title} ({scenario.does}) takes less CPU per request than otel_perf with all on: "
                f"{results.cpu_us(name):.0f} against {results.cpu_us('ours'):.0f} us."
            )
    for title, ours, stock in (*_MICRO, *_MEMORY):
        mine = results.micro.get(ours or "") or _one(results.memory.get(ours or ""))
        theirs = results.micro.get(stock) or _one(results.memory.get(stock))
        if mine and theirs and median(mine) >= median(theirs):
            lines.append(f"- {title}: {median(mine) / median(theirs):.1f} times what the peer takes.")
    busy = results.busy()
    if busy is not None and busy < _QUIET:
        lines.append(
            f"- The load was disturbed: the usual server got {busy:.0%} of its core, the rest went to other processes. "
            "Requests/s are low for that; shares are worked out for the core time that each server got."
        )
    for name, arrived in results.delivered.items():
        made = SCENARIOS[name].spans
        if made is not None and abs(arrived - made) > 0.01 * made:
            lines.append(f"- {SCENARIOS[name].title}: {arrived:.2f} spans of a request arrived, not {made}.")
    lines += [f"- Left out: {why}." for why in dict.fromkeys(results.failed.values())]
    return "\n".join(lines) or "Everything that was measured is faster, and reaches its target."


def machine(results: Results) -> str:
    """Where the figures come from."""
    pinned = "measured process and load on a core each" if len(set(cores())) > 1 else "one core for everything"
    rounds = max((len(each) for each in (*results.cpu.values(), *results.micro.values())), default=0)
    packages = ", ".join(f"{name} {version}" for name, version in versions().items() if name != "python")
    return (
        f"{platform.system()} {platform.machine()}, {len(set(cores()))} cores used ({pinned}), "
        f"{platform.python_implementation()} {platform.python_version()}, median of {rounds} rounds. {packages}."
    )


def tables(results: Results, names: Sequence[str]) -> dict[str, str]:
    """The tables by the name of their marker."""
    made = {"machine": machine(results), "figures": figures_table(results, names)}
    for name, there, make in (
        ("cpu", results.cpu, cpu_table), ("load", results.load, load_table), ("calls", results.calls, calls_table),
        ("libraries", results.libraries, libraries_table), ("subjects", results.subjects, subjects_table),
        ("micro", results.micro, micro_table),
    ):  # fmt: skip
        if there:
            made[name] = make(results)
    made.update(streak_tables(results.streak, markdown_table))
    if results.instructions:
        made["instructions"] = instructions_table(results)
    elif "instructions" in results.failed:
        made["instructions"] = f"Left out: {results.failed['instructions']}."
    return {**made, "slower": not_faster(results, names)}


def instructions_table(results: Results) -> str:
    """Instructions of a request, where the machine counts them."""
    bare = results.instructions.get("bare", 0.0)
    rows = [
        (SCENARIOS[name].title, f"{count / 1000:.0f} k", "" if name == "bare" else f"+{(count - bare) / 1000:.0f} k")
        for name, count in results.instructions.items()
    ]
    return markdown_table(("instructions per request", "all", "added"), rows)


# The page ----------------------------------------------------------------------------------------------------------


def write(made: dict[str, str], page: Path = _PAGE) -> None:
    """Puts the tables between their markers on docs/performance.md; what was not measured stays as it was."""
    text = page.read_text(encoding="utf-8")
    for name, body in made.items():
        between = re.compile(rf"(<!-- bench:{name} -->\n).*?(<!-- /bench:{name} -->)", re.DOTALL)
        if not between.search(text):
            print(f"{page.name} has no place for {name!r}", file=sys.stderr)
        text = between.sub(lambda found, body=body: f"{found[1]}{body}\n{found[2]}", text)  # type: ignore[misc]
    page.write_text(text, encoding="utf-8")
