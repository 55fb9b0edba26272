"""The rules of the house, checked by machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

import otel_perf
from otel_perf.settings import reference_table

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "otel_perf"
MODULES = sorted(PACKAGE.rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("test_*.py"))
TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()

# Modules whose test has another stem, because they are parts of one thing that is tested whole.
TESTED_ELSEWHERE = {
    "otel_perf/integrations/origins.py": "test_http_call",
    "otel_perf/telemetry/containers.py": "test_span",
    "otel_perf/telemetry/current_span.py": "test_span",
    "otel_perf/telemetry/lean.py": "test_sdk",
    "otel_perf/_version.py": "test_house",
    "otel_perf/cli/__init__.py": "test_commands",
    "otel_perf/cli/__main__.py": "test_commands",
    "otel_perf/sources.py": "test_settings",
    "otel_perf/metric.py": "test_conventions",
    "otel_perf/process_conventions.py": "test_conventions",
    "otel_perf/sending.py": "test_settings",
    "otel_perf/telemetry/kind.py": "test_operation",
    "otel_perf/telemetry/opening.py": "test_operation",
    "otel_perf/telemetry/slow_query.py": "test_slow_queries",
    "otel_perf/known_peers.py": "test_peers",
    "otel_perf/integrations/commands.py": "test_redis",
    "otel_perf/integrations/foreign.py": "test_engines",
    "otel_perf/integrations/functions.py": "test_background",
    "otel_perf/integrations/headers.py": "test_asgi",
    "otel_perf/integrations/library.py": "test_status",
    "otel_perf/integrations/lookup.py": "test_redis",
    "otel_perf/integrations/methods.py": "test_firestore",
    "otel_perf/integrations/native.py": "test_engines",
    "otel_perf/integrations/others.py": "test_engines",
    "otel_perf/integrations/patch.py": "test_httpx",
    "otel_perf/integrations/rising.py": "test_functools",
    "otel_perf/integrations/counted.py": "test_functools",
    "otel_perf/integrations/redis_calls.py": "test_redis",
    "otel_perf/integrations/pool.py": "test_sqlalchemy_pool",
    "otel_perf/integrations/providers.py": "test_engines",
    "otel_perf/integrations/request.py": "test_asgi",
    "otel_perf/integrations/streams.py": "test_firestore",
    "otel_perf/integrations/sqlalchemy_connection.py": "test_sqlalchemy",
    "otel_perf/integrations/sqlalchemy_events.py": "test_sqlalchemy",
    "otel_perf/integrations/tracebacks.py": "test_fastapi",
    "otel_perf/integrations/upstream.py": "test_engines",
    "otel_perf/testing/behaviour.py": "test_testing",
    "otel_perf/testing/calls.py": "test_testing",
    "otel_perf/testing/capture.py": "test_testing",
    "otel_perf/testing/collector.py": "test_testing",
    "otel_perf/testing/listener.py": "test_testing",
    "otel_perf/testing/received.py": "test_testing",
}


def names(paths):
    return [str(path.relative_to(ROOT)) for path in paths]


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_modules_are_small(path):
    """No module of the package is longer than 350 lines, and no function longer than 70."""
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 350
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno < 70, node.name


def test_names_that_say_nothing_are_not_used():
    """There is no utils, helpers, common or manager."""
    banned = {"utils", "util", "helpers", "helper", "common", "manager", "managers", "base", "misc"}
    assert not [name for name in names(MODULES) if Path(name).stem in banned]


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_each_module_has_its_test(path):
    """One noun, one module, one test file of the same stem; the exceptions are listed above."""
    name = str(path.relative_to(ROOT))
    stem = TESTED_ELSEWHERE.get(name) or f"test_{path.stem if path.stem != '__init__' else path.parent.stem}"
    has_code = any(not isinstance(node, (ast.Expr, ast.ImportFrom)) for node in ast.parse(path.read_text()).body)
    found = {test.stem for test in TESTS}
    assert not has_code or stem in found or name == "otel_perf/__init__.py", f"{name} wants a {stem}.py"


def uses(path):
    """Dotted names that a module reads, such as os.environ."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            yield f"{node.value.id}.{node.attr}"
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_only_sources_reads_the_environment(path):
    """os.environ and os.getenv are sources.py's alone."""
    if path.name != "sources.py":
        assert not {"os.environ", "os.getenv", "os.putenv"} & set(uses(path))


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_private_names_of_opentelemetry_are_confined(path):
    """Only telemetry/sdk.py imports private names of OpenTelemetry."""
    if path.parts[-2:] == ("telemetry", "sdk.py"):
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("opentelemetry"):
            private = [alias.name for alias in node.names if alias.name.startswith("_")]
            assert not private, f"{node.module}: {private}"
            assert not [part for part in node.module.split(".") if part.startswith("_")], node.module


@pytest.mark.parametrize("path", MODULES, ids=names(MODULES))
def test_the_boundary_is_the_guard(path):
    """Whoever catches every exception hands it to the guard or the report, hands it on, or is the guard."""
    # `redaction` catches what a stranger's `__str__` raises, which is no fault of ours to note.
    if path.name in {"guard.py", "redaction.py"}:
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ExceptHandler) and getattr(node.type, "id", None) in {"Exception", "BaseException"}:
            body = ast.unparse(node)
            handled = "guard." in body or "raise" in body or "faults[" in body
            kept = "BaseException" in body and re.search(r"(failure|thrown|error)", body)
            assert handled or kept, f"line {node.lineno}: {body}"


@pytest.mark.parametrize("path", TESTS, ids=names(TESTS))
def test_each_test_says_what_it_shows(path):
    """Every test has one sentence on what it shows."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_"):
            assert ast.get_docstring(node), f"{node.name}, line {node.lineno}"


def test_imports_point_down_the_house():
    """The import contract in pyproject.toml is kept."""
    done = subprocess.run(
        [Path(sysconfig.get_path("scripts")) / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_examples_use_only_what_is_public():
    """The examples import otel_perf's public faces and nothing behind them."""
    public = {"otel_perf", "otel_perf.web", "otel_perf.cli.table", "otel_perf.testing"}
    for path in sorted((ROOT / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("otel_perf"):
                assert node.module in public, f"{path}: {node.module}"


def test_the_public_names():
    """What `import otel_perf` gives is pinned: a change here is a change for users."""
    assert sorted(otel_perf.__all__) == [
        "Settings", "SettingsError", "__version__", "catalogue", "configure", "flush", "instrument", "measure",
        "on_critical_query", "shutdown",
    ]  # fmt: skip
    assert all(hasattr(otel_perf, name) for name in otel_perf.__all__)


def test_settings_page_is_made_from_the_settings():
    """docs/settings.md holds the table that Settings makes, to the letter."""
    assert reference_table() in (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")


def test_nothing_tracked_names_a_machine_or_a_registry():
    """No tracked text names a path of one machine or the host of a package registry."""
    hosts = r"files\.pythonhosted|pypi\.org/simple|proxy\.golang|registry\.npmjs|deb\.debian|repo1?\.maven"
    pattern = re.compile(rf"/(?:work|farm|root|home)/[a-z]|{hosts}")
    found = []
    for name in TRACKED:
        path = ROOT / name
        if not path.is_file() or name == "tests/test_house.py" or path.suffix in {".png", ".sum"}:
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        found += [f"{name}: {line.strip()[:100]}" for line in text.splitlines() if pattern.search(line)]
    assert not found


def test_links_in_the_documents_lead_somewhere():
    """Every relative link of README, CHANGELOG and docs names a file that is there."""
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_wheel_is_whole(tmp_path):
    """The built wheel has the package, its page and its type marker, and imports without the checkout."""
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    target = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        inside = archive.namelist()
        archive.extractall(target)
    assert "otel_perf/web/page.html" in inside
    assert "otel_perf/py.typed" in inside
    assert not [name for name in inside if name.startswith(("tests", "examples", "collector"))]
    script = "import otel_perf.web, otel_perf; otel_perf.web._page(); print(otel_perf.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True,
        env={"PYTHONPATH": str(target)},
    )  # fmt: skip
    assert done.stdout.startswith(str(target))
