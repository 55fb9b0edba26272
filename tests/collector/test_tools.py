"""How programs are found and installed."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from collector import provision, tools

_ROOT = Path(__file__).resolve().parents[2]

Program = Callable[..., Path]

_RUNS = "#!/bin/sh\n:\n"
_BUILD = """printf '#!/bin/sh\\n:\\n' > "$out"; chmod 755 "$out\""""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine with nothing on PATH and an empty cache folder; the PATH folder is returned."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("OTEL_PERF_TOOLS", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def program(machine: Path) -> Program:
    """A maker of programs on PATH that tell a version."""

    def make(name: str, text: str) -> Path:
        path = machine / name
        path.write_text(f"#!/bin/sh\necho '{text}'\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    return make


def test_a_program_on_path_is_used_as_it_is(program: Program) -> None:
    """An acceptable version on PATH is found, whatever of its names it has."""
    made = program("otelcol-contrib", "otelcol-contrib version 0.158.3")
    assert tools.find("otelcol") == made


@pytest.mark.parametrize("version", ["0.157.0", "0.159.0"])
def test_a_version_that_will_not_do_is_refused_with_the_reason(program: Program, version: str) -> None:
    """Too old and too new are both named, and what to do is said."""
    program("otelcol-contrib", f"otelcol-contrib version {version}")
    with pytest.raises(tools.MissingToolError, match=rf"{version}(?s:.*)tools\.py install otelcol"):
        tools.find("otelcol")


def test_a_program_that_tells_no_version_is_refused(program: Program) -> None:
    """Something else of the same name is not taken for the tool."""
    program("prometheus", "hello")
    with pytest.raises(tools.MissingToolError, match="does not tell its version"):
        tools.find("prometheus")


def test_our_own_build_is_found_in_the_cache(machine: Path) -> None:
    """What was built from the present sources is found without a look at PATH."""
    cached = tools.TOOLS["jaeger"].cached
    assert cached is not None
    cached.parent.mkdir(parents=True)
    cached.write_text(_RUNS, encoding="utf-8")
    cached.chmod(0o755)
    assert tools.find("jaeger") == cached


@pytest.mark.parametrize(("content", "mode"), [("", 0o644), (_RUNS, 0o644), ("garbage", 0o755)])
def test_a_build_that_does_not_run_is_built_anew(machine: Path, content: str, mode: int) -> None:
    """What is in the cache but is not executable, or not a program, is not trusted."""
    cached = tools.TOOLS["otelcol"].cached
    assert cached is not None
    cached.parent.mkdir(parents=True)
    cached.write_text(content, encoding="utf-8")
    cached.chmod(mode)
    with pytest.raises(tools.MissingToolError, match="does not run"):
        tools.find("otelcol")
    _go(machine, _BUILD)
    assert tools.install(["otelcol"])["otelcol"] == cached
    assert cached.read_text(encoding="utf-8") == _RUNS


def test_a_change_of_the_sources_asks_for_a_build(tmp_path: Path) -> None:
    """The key of a build follows its sources and nothing else."""
    (tmp_path / "go.mod").write_text("module a\n", encoding="utf-8")
    first = provision.build_key(tmp_path)
    (tmp_path / "README.md").write_text("not built\n", encoding="utf-8")
    assert provision.build_key(tmp_path) == first
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "main.go").write_text("package main\n", encoding="utf-8")
    assert provision.build_key(tmp_path) != first


def test_the_cache_folder_follows_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the project's own variable, else the user's cache folder, else ~/.cache."""
    monkeypatch.setenv("OTEL_PERF_TOOLS", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert provision.cache_folder() == tmp_path / "own"
    monkeypatch.delenv("OTEL_PERF_TOOLS")
    assert provision.cache_folder() == tmp_path / "xdg" / "otel_perf"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert provision.cache_folder() == tmp_path / ".cache" / "otel_perf"


def _go(machine: Path, body: str) -> Path:
    """Put a `go` on PATH that does what the body says; $out is where the result is to go."""
    path = machine / "go"
    script = f"""#!/bin/sh
PATH=/usr/bin:/bin
if [ "$1" = version ]; then echo go version go1.26.1 linux/amd64; exit; fi
while [ $# -gt 0 ]; do if [ "$1" = -o ]; then out=$2; fi; shift; done
{body}
"""
    path.write_text(script, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_a_build_goes_to_the_cache_and_only_once(machine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Installing builds what is missing; installing again finds it and runs nothing."""
    _go(machine, f'echo run >> "$OTEL_PERF_TOOLS/runs"; {_BUILD}')
    first = tools.install(["otelcol"])["otelcol"]
    assert first.read_text(encoding="utf-8") == _RUNS
    assert first.parent.parent == provision.cache_folder()
    assert "built in" in capsys.readouterr().err
    assert tools.install(["otelcol"])["otelcol"] == first
    assert (provision.cache_folder() / "runs").read_text(encoding="utf-8") == "run\n"


def test_a_failed_build_leaves_nothing_and_tells_why(machine: Path) -> None:
    """Half a binary is never found later, and the end of the compiler's output is shown."""
    _go(machine, 'echo half > "$out"; echo "module lookup disabled"; exit 1')
    with pytest.raises(provision.InstallError, match=r"module lookup disabled(?s:.*)Remedy"):
        tools.install(["jaeger"])
    cached = tools.TOOLS["jaeger"].cached
    assert cached is not None
    assert [path.name for path in cached.parent.iterdir()] == []
    with pytest.raises(tools.MissingToolError):
        tools.find("jaeger")


def test_two_builds_at_once_are_one(machine: Path) -> None:
    """A second installer waits for the first and takes what it made."""
    _go(machine, f'echo run >> "$OTEL_PERF_TOOLS/runs"; sleep 0.5; {_BUILD}')
    threads = [threading.Thread(target=tools.install, args=(["otelcol"],)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (provision.cache_folder() / "runs").read_text(encoding="utf-8") == "run\n"


def test_a_waiting_installer_says_so(machine: Path) -> None:
    """Who finds the lock taken tells what it waits for."""
    said: list[str] = []
    provision.cache_folder().mkdir(parents=True)
    with (provision.cache_folder() / ".thing.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def say(text: str) -> None:
            said.append(text)
            fcntl.flock(other, fcntl.LOCK_UN)

        with provision.locked("thing", say):
            assert said == ["thing: another installation is under way, waiting for it"]


def test_without_apt_the_remedy_is_told(machine: Path) -> None:
    """Where there is no apt-get nothing is tried."""
    with pytest.raises(provision.InstallError, match=r"no apt-get(?s:.*)put them on PATH"):
        tools.install(["redis-server"])


def test_without_root_the_command_is_told(machine: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may not install packages is told what an administrator would type."""
    program("apt-get", "unused")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(provision.InstallError, match=r"sudo(?s:.*)apt-get install (?s:.*)redis-server"):
        tools.install(["redis-server"])


def test_packages_start_no_services(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While apt-get runs a policy forbids services to start, and afterwards it is gone."""
    policy, seen = tmp_path / "policy-rc.d", tmp_path / "seen"
    monkeypatch.setattr(provision, "_POLICY", policy)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = machine / "apt-get"
    apt.write_text(f'#!/bin/sh\n[ "$1" = update ] || /bin/cp -p {policy} {seen}\n', encoding="utf-8")
    apt.chmod(0o755)
    provision.apt_install(["redis-server"], lambda _text: None)
    assert "exit 101" in seen.read_text(encoding="utf-8")
    assert seen.stat().st_mode & 0o111
    assert not policy.exists()


def test_a_policy_of_the_machine_stays(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that was there before is neither changed nor removed."""
    policy = tmp_path / "policy-rc.d"
    policy.write_text("mine", encoding="utf-8")
    monkeypatch.setattr(provision, "_POLICY", policy)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = machine / "apt-get"
    apt.write_text("#!/bin/sh\n", encoding="utf-8")
    apt.chmod(0o755)
    provision.apt_install(["redis-server"], lambda _text: None)
    assert policy.read_text(encoding="utf-8") == "mine"


def test_a_policy_that_we_left_behind_is_cleared(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that was killed leaves its policy; the next run knows it for ours and takes it away."""
    policy = tmp_path / "policy-rc.d"
    policy.write_text(provision._OUR_POLICY, encoding="utf-8")
    monkeypatch.setattr(provision, "_POLICY", policy)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = machine / "apt-get"
    apt.write_text("#!/bin/sh\n", encoding="utf-8")
    apt.chmod(0o755)
    provision.apt_install(["redis-server"], lambda _text: None)
    assert not policy.exists()


def test_a_cache_folder_that_cannot_be_written_is_told(
    machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instead of a traceback there is a remedy that names the variable."""
    (tmp_path / "file").touch()
    monkeypatch.setenv("OTEL_PERF_TOOLS", str(tmp_path / "file" / "cache"))
    _go(machine, _BUILD)
    with pytest.raises(provision.InstallError, match="OTEL_PERF_TOOLS"):
        tools.install(["otelcol"])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_build_and_its_children(machine: Path, tmp_path: Path, number: signal.Signals) -> None:
    """What `go build` had started does not work on unseen, and nothing half done stays."""
    pid_file = tmp_path / "pid"
    _go(machine, f"sleep 600 & echo $! > {pid_file}.new; mv {pid_file}.new {pid_file}; wait")
    command = [sys.executable, str(_ROOT / "collector" / "tools.py"), "install", "otelcol"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as installing:
        give_up_at = time.monotonic() + 30
        while not pid_file.exists() and time.monotonic() < give_up_at:
            time.sleep(0.05)
        installing.send_signal(number)
        _, shown = installing.communicate(timeout=30)
    assert installing.returncode == 130, shown
    child = Path(f"/proc/{pid_file.read_text(encoding='utf-8').strip()}/stat")
    assert not child.exists() or child.read_text(encoding="utf-8").rpartition(")")[2].split()[0] == "Z"


def test_a_failing_apt_is_told_with_its_output(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What apt-get said last is part of the error."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    apt = machine / "apt-get"
    apt.write_text("#!/bin/sh\necho Temporary failure resolving; exit 100\n", encoding="utf-8")
    apt.chmod(0o755)
    with pytest.raises(provision.InstallError, match=r"exit code 100(?s:.*)Temporary failure"):
        provision.apt_install(["redis-server"], lambda _text: None)


def test_the_newest_postgresql_is_taken(machine: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Debian keeps PostgreSQL off PATH, by version: 15 comes before 9."""
    for version in ("9", "15"):
        path = tmp_path / "postgresql" / version / "bin" / "postgres"
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho 'postgres (PostgreSQL) {version}.2'\n", encoding="utf-8")
        path.chmod(0o755)
    tool = tools.Tool("postgres", "", ("postgres",), (13,), folders=(f"{tmp_path}/postgresql/*/bin",))
    monkeypatch.setitem(tools.TOOLS, "postgres", tool)
    assert tools.find("postgres") == tmp_path / "postgresql" / "15" / "bin" / "postgres"


def test_the_list_tells_what_is_missing(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    """The list has a line for every program, and its exit code tells whether all are there."""
    made = program("redis-server", "Redis server v=7.0.15 sha=0")
    assert tools.main(["list"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(tools.TOOLS)
    assert any(str(made) in line for line in lines)
    assert any(line.startswith("jaeger") and "missing" in line for line in lines)


def test_the_path_of_one_program_is_all_that_is_printed(program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    """Scripts get the bare path, or exit code 1 and the remedy on the other stream."""
    made = program("redis-server", "Redis server v=7.0.15 sha=0")
    assert tools.main(["path", "redis-server"]) == 0
    assert capsys.readouterr().out == f"{made}\n"
    assert tools.main(["path", "jaeger"]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "Remedy" in shown.err


def test_an_unknown_name_is_a_wrong_argument(capsys: pytest.CaptureFixture[str]) -> None:
    """A typo is answered with the names that there are."""
    with pytest.raises(SystemExit) as ended:
        tools.main(["install", "jeager"])
    assert ended.value.code == 2
    assert "jaeger" in capsys.readouterr().err


def test_tools_need_nothing_but_the_standard_library(tmp_path: Path) -> None:
    """The script runs from anywhere under an interpreter that sees no installed package."""
    script = _ROOT / "collector" / "tools.py"
    shown = subprocess.run(
        [sys.executable, "-S", str(script), "--help"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "examples:" in shown.stdout
