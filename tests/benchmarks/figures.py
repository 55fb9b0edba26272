"""The figures that must be reached: what each is made of, and its target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from tests.benchmarks import streak_values
from tests.benchmarks.serving import Load
from tests.benchmarks.streak_values import Told

__all__ = ["FIGURES", "Figure", "MissingError", "Results", "added", "added_by_library", "ratio"]


class MissingError(Exception):
    """A figure cannot be told, since one of its parts could not be measured; the message says which and why."""


@dataclass(slots=True)
class Results:
    """All that one run measured. Lists hold one value for each round."""

    #: Scenario and headers -> microseconds of CPU per request.
    cpu: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    #: Scenario and variant (`5 routes`, `200 routes`, `context`) -> calls as `Count.as_dict` tells them.
    calls: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    #: Subject and whether it was measured -> the same.
    subjects: dict[tuple[str, bool], dict[str, Any]] = field(default_factory=dict)
    #: Name in `micro.MICRO` -> nanoseconds.
    micro: dict[str, list[float]] = field(default_factory=dict)
    #: Name in `micro.MEMORY` -> bytes.
    memory: dict[str, float] = field(default_factory=dict)
    #: Library and arm -> microseconds of CPU per call.
    libraries: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    #: Scenario -> stretches of load.
    load: dict[str, list[Load]] = field(default_factory=dict)
    #: Scenario and headers -> instructions per request, where the machine counts them.
    instructions: dict[str, float] = field(default_factory=dict)
    #: Scenario -> spans that arrived for each request made.
    delivered: dict[str, float] = field(default_factory=dict)
    #: Part of the streak service's figures and database -> what each round told.
    streak: Told = field(default_factory=dict)
    #: What could not be measured -> why.
    failed: dict[str, str] = field(default_factory=dict)

    def _middle(self, rounds: list[float] | None, name: str) -> float:
        if not rounds:
            raise MissingError(self.failed.get(name, f"{name} was not measured"))
        return median(rounds)

    def cpu_us(self, scenario: str, headers: str = "plain") -> float:
        """The median of a scenario's rounds."""
        return self._middle(self.cpu.get((scenario, headers)), scenario)

    def library_us(self, library: str, arm: str) -> float:
        """The median of one library and arm."""
        return self._middle(self.libraries.get((library, arm)), f"{library}/{arm}")

    def micro_ns(self, name: str) -> float:
        """The median of one small thing."""
        return self._middle(self.micro.get(name), name)

    def per_s(self, scenario: str) -> float:
        """The median of requests in a second at a real server."""
        return self._middle([each.per_s for each in self.load.get(scenario, ())], f"server of {scenario}")

    def share(self, scenario: str) -> float:
        """Requests in a second of the server's core against the bare app's, compared within each round."""
        self.per_s(scenario), self.per_s("bare")  # raises where one of them is missing
        pairs = zip(self.load[scenario], self.load["bare"], strict=False)
        return median(mine.per_core_s / bare.per_core_s for mine, bare in pairs)

    def busy(self) -> float | None:
        """The share of its core that the usual server got under load; well below 1 others had it."""
        told = [each.busy for stretches in self.load.values() for each in stretches]
        return median(told) if told else None

    def count(self, scenario: str, variant: str) -> int:
        """Calls per request."""
        found = self.calls.get((scenario, variant))
        if found is None:
            raise MissingError(self.failed.get(scenario, f"{scenario} was not counted"))
        return int(found["usual"])


def added(results: Results, scenario: str, headers: str = "plain") -> float:
    """Microseconds of CPU that a scenario adds to the bare app, compared within each round."""
    results.cpu_us(scenario, headers), results.cpu_us("bare", headers)  # raises where one of them is missing
    pairs = zip(results.cpu[scenario, headers], results.cpu["bare", headers], strict=False)
    return median(mine - bare for mine, bare in pairs)


def added_by_library(results: Results, library: str, arm: str = "ours") -> float:
    """Microseconds of CPU that measuring one call adds, compared within each round."""
    for each in (arm, "bare"):
        results.library_us(library, each)  # raises where one of them is missing
    pairs = zip(results.libraries[library, arm], results.libraries[library, "bare"], strict=False)
    return median(mine - bare for mine, bare in pairs)


def _library_ratio(results: Results, library: str) -> float:
    base = added_by_library(results, library, "upstream")
    if base <= 0:
        raise MissingError(f"upstream's {library} instrumentor adds nothing that can be measured here ({base:.1f} us)")
    return added_by_library(results, library) / base


def ratio(results: Results, scenario: str, peer: str) -> float:
    """What one scenario adds, as a share of what another adds."""
    base = added(results, peer)
    if base <= 0:
        raise MissingError(f"{peer} adds nothing that can be measured here ({base:.1f} us)")
    return added(results, scenario) / base


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: its target, which measurements it needs, how it is worked out."""

    name: str
    target: float
    about: str
    #: Kind of measurement (`calls`, `cpu`, `micro`, `load`, `libraries`, `streak`) and what is measured.
    kind: str
    of: tuple[str, ...]
    value: Callable[[Results], float]
    #: Most of them are costs; this one is a share that must stay.
    at_least: bool = False

    def met(self, value: float) -> bool:
        """Whether the value reaches the target."""
        return value >= self.target if self.at_least else value <= self.target


def _calls(name: str, target: float, variant: str, about: str) -> Figure:
    return Figure(
        name, target, about, "calls", ("bare", "ours"),
        lambda results: results.count("ours", variant) - results.count("bare", variant),
    )  # fmt: skip


def _cpu(name: str, target: float, peer: str, about: str, scenario: str = "ours") -> Figure:
    return Figure(name, target, about, "cpu", ("bare", scenario, peer), lambda results: ratio(results, scenario, peer))


def _micro(name: str, target: float, ours: str, peer: str, about: str) -> Figure:
    return Figure(
        name, target, about, "micro", (ours, peer), lambda results: results.micro_ns(ours) / results.micro_ns(peer)
    )


def _library(name: str, library: str, about: str) -> Figure:
    return Figure(name, 1 / 4, about, "libraries", (library,), lambda results: _library_ratio(results, library))


def _overhead(name: str, target_ms: float, library: str, about: str) -> Figure:
    return Figure(
        name, target_ms, about, "libraries", (library,), lambda results: added_by_library(results, library) / 1000
    )


def _streak(name: str, target: float, part: str, about: str, value: Callable[[Told, str], float]) -> Figure:
    at_least = value is streak_values.exact

    def told(results: Results) -> float:
        try:
            return streak_values.worst(results.streak, value, least=at_least)
        except streak_values.UntoldError as why:
            parts = (f"streak {part} ", "streak load ") if part in ("calendar", "log") else (f"streak {part} ",)
            failed = [each for key, each in results.failed.items() if key.startswith(parts)]
            raise MissingError("; ".join(failed) or str(why)) from None

    return Figure(name, target, about, "streak", (part,), told, at_least=at_least)


_ALL = (
    _calls("calls_5_routes", 40, "5 routes", "Python calls added to a request, 5 routes"),
    _calls("calls_200_routes", 40, "200 routes", "Python calls added to a request, 200 routes"),
    _calls("calls_full_context", 60, "context", "Python calls added with traceparent, tracestate and baggage"),
    _cpu("cpu_vs_stock", 1 / 10, "contrib", "CPU added / what FastAPIInstrumentor on the stock SDK adds"),
    _cpu("cpu_vs_native", 1 / 6, "native_stock", "CPU added / what FastAPI's own telemetry on the stock SDK adds"),
    _cpu("cpu_vs_pfi", 1 / 2, "pfi", "CPU added / what prometheus-fastapi-instrumentator (metrics only) adds"),
    Figure(
        "uvicorn_share", 0.85, "requests/s of a uvicorn worker that has a core / without measurement", "load",
        ("bare", "ours", "native_stock", "contrib"), lambda results: results.share("ours"),
        at_least=True,
    ),
    _micro("span_vs_stock", 1 / 8, "span_ours", "span_stock", "span start + 5 attributes + end / stock SDK"),
    _micro(
        "record_vs_stock", 1 / 15, "record_ours", "record_stock",
        "bound histogram record, folds included / stock Histogram.record",
    ),
    _micro(
        "record_vs_prometheus", 1 / 2, "record_ours", "record_prometheus",
        "bound histogram record, folds included / prometheus_client observe",
    ),
    _micro("encode_vs_stock", 1 / 6, "encode_ours", "encode_stock", "encoding one span / stock encoder"),
    _library("redis_vs_upstream", "redis", "CPU added to a Redis GET / what RedisInstrumentor adds"),
    _library("sqlalchemy_vs_upstream", "sqlalchemy", "CPU added to a Core select on SQLite / SQLAlchemyInstrumentor"),
    _library("httpx_vs_upstream", "httpx", "CPU added to an httpx GET / what HTTPXClientInstrumentor adds"),
    Figure(
        "request_overhead_ms", 1, "ms of CPU added to a request", "cpu", ("bare", "ours"),
        lambda results: added(results, "ours") / 1000,
    ),
    _overhead("query_overhead_ms", 0.5, "sqlalchemy", "ms of CPU added to a query"),
    _overhead("cache_overhead_ms", 0.1, "cashews", "ms of CPU added to a cache operation"),
    _cpu("unsampled_vs_sampled", 1 / 2, "ours", "unsampled request, metrics on / sampled request", "ours_unsampled"),
    _streak(
        "streak_maintenance_1k_s", 2, "1000", "s that the maintenance of 1,000 users takes, its start included",
        streak_values.maintained_s("1000"),
    ),
    _streak(
        "streak_maintenance_10k_s", 15, "10000", "s that the maintenance of 10,000 users takes",
        streak_values.maintained_s("10000"),
    ),
    _streak(
        "streak_maintenance_growth_mb", 16, "100000", "MB that the maintenance of 100,000 users grows by",
        streak_values.growth_mb,
    ),
    _streak(
        "streak_maintenance_peak_mb", 128, "100000", "MB that the maintenance of 100,000 users has at most",
        streak_values.peak_mb,
    ),
    _streak(
        "streak_kill_resume", 1, "kill", "users accounted for exactly once by a maintenance killed and resumed",
        streak_values.exact,
    ),
    _streak(
        "streak_calendar_p95_ms", 150, "calendar", "ms, p95 of the calendar with 100 users on it",
        streak_values.p95_ms("calendar"),
    ),
    _streak(
        "streak_log_p95_ms", 50, "log", "ms, p95 of logging 6,000 activities a minute, 100 readers beside",
        streak_values.p95_ms("log"),
    ),
    _streak("streak_errors", 0, "log", "requests that failed under that load", streak_values.errors),
    _streak(
        "streak_transaction_retry_share", 0.01, "log", "transactions begun anew under that load",
        streak_values.retry_share,
    ),
    _streak(
        "streak_transaction_failures", 0, "log", "transactions given up under that load", streak_values.failures
    ),
    _streak(
        "streak_instrumentation_share", 0.05, "share", "share of the service's CPU that measuring takes under load",
        streak_values.share,
    ),
)  # fmt: skip

FIGURES: dict[str, Figure] = {figure.name: figure for figure in _ALL}
