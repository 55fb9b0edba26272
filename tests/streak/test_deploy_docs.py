"""The operator's pages: the commands that they name exist, the metrics are declared, the statements run."""

from __future__ import annotations

import functools
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import promql_parser
import psycopg
import pytest

from collector import servers
from examples.streak import metrics, push
from otel_perf import conventions

ROOT = Path(__file__).parents[2]
STREAK = ROOT / "examples" / "streak"
PAGES = {page.name: page.read_text(encoding="utf-8") for page in sorted((STREAK / "docs").glob("*.md"))}
ALL = {**PAGES, "README.md": (STREAK / "README.md").read_text(encoding="utf-8")}
_UNITS = {"s": "_seconds", "By": "_bytes"}
_METRIC = re.compile(r"`((?:streak|background|process|db\.client|asyncio|cache|http\.server)\.[a-z_.]+[a-z])`")
_NOT_METRICS = {"streak.refused", "streak.maintenance"}


def _declared() -> dict[str, conventions.Metric]:
    # Importing them has declared theirs.
    assert metrics.__all__
    assert push.__all__
    return {metric.name: metric for metric in conventions.declared()}


def _blocks(language: str) -> Iterator[tuple[str, str]]:
    for name, text in PAGES.items():
        for block in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
            yield name, block


@functools.cache
def _options(module: str) -> set[str]:
    shown = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert shown.returncode == 0, shown.stderr
    return set(re.findall(r"--[a-z-]+", shown.stdout))


@pytest.mark.parametrize("name", ALL)
def test_commands_exist(name: str) -> None:
    """Each `python -m` of a page is a module of this project, and knows the options that it is given."""
    told: dict[str, set[str]] = {}
    for module, rest in re.findall(r"python -m\s+(\w[\w.]*)([^`\n|#)]*)", ALL[name]):
        told.setdefault(module.rstrip("."), set()).update(re.findall(r"(?<!\S)--[a-z-]+", rest))
    assert told, "no command was found"
    for module, options in told.items():
        if module.startswith("pytest") or module == "examples.streak":
            assert importlib.util.find_spec(module)
            continue
        assert options <= _options(module), module


@pytest.mark.parametrize("name", ALL)
def test_links_lead_somewhere(name: str) -> None:
    """Each relative link of a page names a file or folder that is there."""
    folder = STREAK if name == "README.md" else STREAK / "docs"
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", ALL[name]):
        assert (folder / target).exists(), target


@pytest.mark.parametrize("name", PAGES)
def test_files_exist(name: str) -> None:
    """Each path of this project in a command is there."""
    for path in re.findall(r"(?<![\w/.])((?:examples|tests|collector)/[\w./-]+\w)", PAGES[name]):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("name", ALL)
def test_metrics_are_declared(name: str) -> None:
    """Each metric that a page names by OpenTelemetry's name is declared."""
    named = set(_METRIC.findall(ALL[name])) - _NOT_METRICS
    assert named <= _declared().keys()


def test_some_metrics_are_named() -> None:
    """What looks for metrics finds some."""
    assert len({metric for text in PAGES.values() for metric in _METRIC.findall(text)}) >= 5


def _in_prometheus() -> dict[str, set[str]]:
    """Return the labels of each series, by its name in Prometheus."""
    series: dict[str, set[str]] = {}
    for metric in _declared().values():
        name = metric.name.replace(".", "_") + _UNITS.get(metric.unit, "")
        labels = {attribute.replace(".", "_") for attribute in metric.attributes}
        if metric.kind == "histogram":
            series |= {f"{name}_{part}": labels | {"le"} for part in ("bucket", "count", "sum")}
        else:
            series[f"{name}_total" if metric.kind == "counter" else name] = labels
    return series


def test_queries_are_of_what_there_is() -> None:
    """Each line of PromQL is PromQL, and asks for metrics that are declared, by labels that they have."""
    known = _in_prometheus()
    queries = [line for _, block in _blocks("promql") for line in block.splitlines() if line]
    assert len(queries) >= 8
    for query in queries:
        promql_parser.parse(query)
        asked = re.findall(
            r"\b((?:streak|background|http|db|process)_\w+)\b(?=[\[{)\s]|$)", re.sub(r'"[^"]*"', "", query)
        )
        selected = [name for name in asked if name in known]
        assert selected, query
        labels = set(re.findall(r"(\w+)=~?\"", query))
        for group in re.findall(r"by \(([^)]*)\)", query):
            labels |= set(group.replace(" ", "").split(","))
        assert labels <= set().union(*(known[name] for name in selected)), query
        assert not set(asked) - known.keys() - labels, query


def test_gcloud_asks_for_fields_that_a_line_of_the_log_has() -> None:
    """The fields of the queries for Cloud Logging are those that the log writes."""
    logs = (STREAK / "logs.py").read_text(encoding="utf-8")
    fields = {field for text in PAGES.values() for field in re.findall(r"jsonPayload\.(\w+)", text)}
    assert {"message", "endpoint", "duration_ms"} <= fields
    for field in fields:
        assert f'"{field}"' in logs or f"{field}=" in logs, field
    maintenance = (STREAK / "maintenance.py").read_text(encoding="utf-8")
    for message in {message for text in PAGES.values() for message in re.findall(r'"(Daily [^"]+)"', text)}:
        assert f'"{message}"' in maintenance


def test_figures_of_the_benchmarks_are_there() -> None:
    """Each figure that a page has measured is one of `make bench`."""
    figures = (ROOT / "tests" / "benchmarks" / "figures.py").read_text(encoding="utf-8")
    named = {name for text in ALL.values() for name in re.findall(r"--only (streak_\w+)", text)}
    assert named
    for name in named:
        assert f'"{name}"' in figures, name


def test_statements_run(fresh_postgresql: str, postgresql_server: servers.PostgreSQL) -> None:
    """Each statement of SQL runs on the tables of the service, and finds nothing in those of a service that is well."""
    env = {"DATABASE_URL": fresh_postgresql, "PATH": str(Path(sys.executable).parent)}
    migrate = [sys.executable, "-m", "examples.streak.migrate"]
    subprocess.run(migrate, cwd=ROOT, env=env, check=True, capture_output=True)
    statements = [statement for _, block in _blocks("sql") for statement in block.split(";") if statement.strip()]
    assert len(statements) >= 5
    dsn = postgresql_server.dsn.rpartition("/")[0] + "/" + fresh_postgresql.rpartition("/")[2]
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            rows = connection.execute(statement.encode()).fetchall()
            assert "pg_stat_activity" in statement or [row for row in rows if any(row)] == [], statement
