"""The report: what became of each library, and why."""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
import sys
import types
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

import otel_perf.integrations
from otel_perf import instrument
from otel_perf.integrations import registry
from otel_perf.integrations.library import Integration
from tests.conftest import Telemetry

ROOT = Path(__file__).resolve().parents[2]


def status(library: str) -> otel_perf.integrations.Status:
    return next(each for each in otel_perf.integrations.report() if each.library == library)


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch):
    """Puts one made-up library in the place of all."""

    def put(each: Integration) -> None:
        monkeypatch.setattr(registry, "INTEGRATIONS", (each,))

    monkeypatch.setattr(registry, "faults", {})
    return put


def test_what_is_measured_and_what_is_not(telemetry: Telemetry) -> None:
    """A library counts as measured while a handle of it is in force."""
    assert status("httpx").state == "not measured"
    assert "instrument('httpx')" in status("httpx").why
    with instrument("httpx"), instrument(sa.create_engine("sqlite://")):
        assert (status("httpx").state, status("sqlalchemy").state) == ("measured", "measured")
        assert status("httpx").version == importlib.metadata.version("httpx")
    assert (status("httpx").state, status("sqlalchemy").state) == ("not measured", "not measured")


def test_the_version_is_that_of_what_is_named(only) -> None:
    """FastAPI stands on Starlette: its own version is shown, and Starlette's by name where that is all there is."""
    assert status("fastapi").version == importlib.metadata.version("fastapi")
    only(Integration("fastapi", "starlette", "0.40", whole=True, known_as="not-here"))
    assert status("fastapi").version == f"starlette {importlib.metadata.version('starlette')}"


def test_a_library_that_is_missing(only, caplog: pytest.LogCaptureFixture) -> None:
    """It is never an exception: a warning where it was asked for by name, and a line of the report in any case."""
    only(Integration("nowhere", "no_such_library", "1.0", whole=True))
    with instrument():
        assert not caplog.records
    instrument("nowhere").undo()
    assert "pip install 'otel-perf[nowhere]'" in caplog.text
    assert status("nowhere").state == "not installed"


def test_a_library_that_is_too_old(only, telemetry: Telemetry, caplog: pytest.LogCaptureFixture) -> None:
    """It is left alone, and the remedy is said; so is an object of it."""
    only(Integration("httpx", "httpx", "99.1", whole=True))
    before = httpx.Client.send
    with instrument(), instrument("httpx"):
        assert httpx.Client.send is before
    assert status("httpx").state == "version not supported"
    assert "pip install 'httpx>=99.1'" in status("httpx").why
    assert caplog.text.count("pip install 'httpx>=99.1'") == 1
    with httpx.Client() as client:
        instrument(client).undo()
    assert caplog.text.count("pip install 'httpx>=99.1'") == 2


@pytest.mark.parametrize("spec", ["none", "raises", "empty"])
def test_a_library_that_is_half_imported(
    only, spec: str, telemetry: Telemetry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever stands in `sys.modules` under its name, it is named in the report and costs the application nothing."""
    name = "half_imported"
    found: types.ModuleType | None = None if spec == "none" else types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, found)  # type: ignore[arg-type]  # Python itself puts None there
    adapter = types.ModuleType(f"otel_perf.integrations.{name}")
    if spec == "raises":
        adapter.instrument = lambda _: found.Client  # type: ignore[attr-defined, union-attr]  # it is not there
        adapter.matches = lambda _: found.Client  # type: ignore[attr-defined, union-attr]
        monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    only(Integration(name, name, "1.0", whole=True))
    with instrument(), pytest.raises(TypeError, match="nothing can instrument"):
        instrument(object())
    assert status(name).state in {"broken", "not installed"}
    instrument(name).undo()


def in_a_folder(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """What a fresh process says that runs there, where files may have the names of libraries."""
    path = os.pathsep.join([str(folder), str(ROOT)])
    environ = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )


SAY = """
import otel_perf, otel_perf.integrations as i
otel_perf.instrument()
print({each.library: each.state for each in i.report()})
"""


def test_a_broken_parent_package(tmp_path: Path) -> None:
    """A package that raises when something in it is looked for is broken, and nobody else is."""
    (tmp_path / "google").mkdir()
    (tmp_path / "google" / "__init__.py").write_text("raise RuntimeError('half a package')")
    done = in_a_folder(tmp_path, SAY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "'firestore': 'broken'" in done.stdout
    assert "'httpx': 'measured'" in done.stdout


def test_a_file_that_has_the_name_of_a_library(tmp_path: Path) -> None:
    """A script or a folder of the application's is no library: it is not run."""
    (tmp_path / "nowhere.py").write_text("raise SystemExit(3)")
    made = "registry.INTEGRATIONS += (Integration('nowhere', 'nowhere', '1.0', whole=True),)\n"
    imports = "from otel_perf.integrations import registry\nfrom otel_perf.integrations.library import Integration\n"
    done = in_a_folder(tmp_path, imports + made + SAY)
    assert (done.returncode, done.stderr) == (0, "")
    assert "'nowhere': 'not installed'" in done.stdout


def test_who_measures_already_is_known_before_we_do() -> None:
    """The report names an upstream instrumentor that is active, also where ours was never asked."""
    code = (
        "from opentelemetry.instrumentation.redis import RedisInstrumentor\n"
        "RedisInstrumentor().instrument()\n"
        "import otel_perf.integrations as i\n"
        "print(next(e.state for e in i.report() if e.library == 'redis'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "already measured by someone else", done.stderr


def test_libraries_that_the_settings_leave_alone(telemetry: Telemetry) -> None:
    """`disabled_instrumentations` is honoured by `instrument()`, and the report says so."""
    before = httpx.Client.send
    telemetry.restart(disabled_instrumentations="httpx")
    with instrument():
        assert httpx.Client.send is before
        assert status("httpx").why == "disabled_instrumentations has it"
        assert status("sqlalchemy").state == "measured"


def test_the_report_as_text(telemetry: Telemetry) -> None:
    """Printed, it is a table of one line for each library."""
    lines = str(otel_perf.integrations.report()).splitlines()
    assert len(lines) == len(registry.INTEGRATIONS)
    assert any(line.startswith("httpx") and "not measured" in line for line in lines)


def test_everything_at_hand_is_taken_in_silence() -> None:
    """`instrument()` in a fresh process takes every library that is installed and prints nothing."""
    code = (
        "import otel_perf, otel_perf.integrations, sys\n"
        "otel_perf.instrument()\n"
        "states = {each.library: each.state for each in otel_perf.integrations.report()}\n"
        "assert not {'broken', 'version not supported'} & set(states.values()), states\n"
        "whole = {each.name for each in otel_perf.integrations.registry.INTEGRATIONS if each.whole}\n"
        "assert {states[name] for name in whole} == {'measured'}, states\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
