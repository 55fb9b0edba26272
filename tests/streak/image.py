"""Does what a Dockerfile says in a folder, as far as that goes without an engine: a folder for each stage.

Bases are the Python that the tests run on, `pip` is uv with the same options, and users are not added. Absolute paths
of the image that its stages make are those below the folder.
"""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["Image", "Instruction", "ignored", "instructions", "replay"]

_SHIMS = {
    # pip --python X install|uninstall ...
    "pip": """#!/bin/sh
set -eu
[ "$1" = --python ]; python=$2; verb=$3; shift 3
if [ "$verb" = uninstall ] && [ "$1" = --yes ]; then shift; fi
exec "$REPLAY_UV" pip "$verb" --quiet --python "$python" "$@"
""",
    "useradd": "#!/bin/sh\nexit 0\n",
}
_NOT_OF_A_BASE = ("site-packages", "test", "tests", "idlelib", "tkinter", "ensurepip", "config-*", "__pycache__", "*.a")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One of a Dockerfile: what is done, and with what."""

    name: str
    text: str


@dataclass(slots=True)
class Image:
    """The last stage, as it would be run."""

    root: Path
    env: dict[str, str] = field(default_factory=dict)
    folder: str = "/"
    user: str = "root"
    command: list[str] = field(default_factory=list)
    health: list[str] = field(default_factory=list)

    def here(self, text: str) -> str:
        """Return a text with the paths of the image as they are on this machine."""
        return re.sub(r"(?<![\w.}/])/(?=(?:opt|app|build)\b)", f"{self.root}/", text)

    def environment(self) -> dict[str, str]:
        """Return the environment that the image gives to what runs in it."""
        return {"PATH": os.defpath} | {name: self.here(value) for name, value in self.env.items()}


def instructions(dockerfile: Path) -> list[Instruction]:
    """Return what a Dockerfile says, line by line, without its comments."""
    text = re.sub(r"^\s*#.*\n", "", dockerfile.read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines()]
    return [Instruction(*line.split(maxsplit=1)) for line in lines if line]


def ignored(dockerignore: Path, path: str) -> bool:
    """Tell whether a file is left out of what is sent to be built: of the lines that match, the last one says so."""
    answer = False
    above = [path, *(parent.as_posix() for parent in Path(path).parents if parent.name)]
    for line in dockerignore.read_text(encoding="utf-8").splitlines():
        rule = line.strip().rstrip("/")
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.lstrip("!")
        if any(_matches(name, pattern) for name in above):
            answer = not rule.startswith("!")
    return answer


def _matches(name: str, pattern: str) -> bool:
    if pattern.startswith("**/"):
        return fnmatch.fnmatchcase(name.rpartition("/")[2], pattern[3:])
    return name.count("/") == pattern.count("/") and fnmatch.fnmatchcase(name, pattern)


def replay(dockerfile: Path, context: Path, work: Path, uv: Path) -> Image:
    """Do all that a Dockerfile says in an empty folder, and return its last stage."""
    shims = work / "shims"
    shims.mkdir(parents=True)
    for name, script in _SHIMS.items():
        (shims / name).write_text(script, encoding="utf-8")
        (shims / name).chmod(0o755)
    python = _base(work / "base")
    # Not a link: an environment that is made by it must know where its own Python is.
    (shims / "python").write_text(f'#!/bin/sh\nexec "{python}" "$@"\n', encoding="utf-8")
    (shims / "python").chmod(0o755)
    stages: dict[str, Image] = {}
    image = Image(work / "none")
    for step in instructions(dockerfile):
        match step.name:
            case "FROM":
                name = step.text.partition(" AS ")[2] or "last"
                image = stages[name] = Image(work / name)
                image.root.mkdir()
            case "ENV":
                image.env.update(re.findall(r"(\w+)=(\S+)", step.text))
            case "WORKDIR":
                image.folder = step.text
                Path(image.here(step.text)).mkdir(parents=True, exist_ok=True)
            case "COPY":
                _copy(image, step.text.split(), stages, context)
            case "RUN":
                _run(image, step.text, shims, uv, python)
            case "USER":
                image.user = step.text
            case "HEALTHCHECK":
                image.health = json.loads(step.text.partition("CMD ")[2])
            case "CMD":
                image.command = json.loads(step.text)
            case "EXPOSE":
                pass
            case unknown:
                raise NotImplementedError(unknown)
    image.env["PATH"] = image.env["PATH"].replace("$PATH", os.defpath)
    if python.parents[1] == work / "base":
        # A copy of a Python that is linked against its library finds that nowhere else.
        image.env["LD_LIBRARY_PATH"] = str(work / "base" / "lib")
    return image


def _base(into: Path) -> Path:
    """Return a Python that everybody may run: this one, or a copy where its folder is closed to others."""
    python = Path(sys.base_prefix) / "bin" / f"python{sysconfig.get_python_version()}"
    if all(folder.stat().st_mode & stat.S_IXOTH for folder in python.resolve().parents):
        return python
    version = f"python{sysconfig.get_python_version()}"
    for folder in ("bin", "lib"):
        (into / folder).mkdir(parents=True)
    shutil.copy2(python.resolve(), into / "bin" / version)
    for library in (python.parents[1] / "lib").glob("libpython*.so*"):
        shutil.copy2(library, into / "lib" / library.name)
    ignore = shutil.ignore_patterns(*_NOT_OF_A_BASE)
    shutil.copytree(python.parents[1] / "lib" / version, into / "lib" / version, ignore=ignore)
    return into / "bin" / version


def _copy(image: Image, words: list[str], stages: dict[str, Image], context: Path) -> None:
    if words[0].startswith("--from="):
        source, target = words[1:]
        built = stages[words.pop(0).removeprefix("--from=")]
        # Moved and not copied: environments name their own path in their scripts, and nothing else needs it.
        shutil.copytree(built.here(source), image.here(target), symlinks=True)
        return
    *sources, target = words
    base = Path(image.here(target if target.startswith("/") else f"{image.folder}/{target}"))
    for source in sources:
        whole = context / source
        files = [whole] if whole.is_file() else [path for path in whole.rglob("*") if path.is_file()]
        for path in files:
            name = path.relative_to(context).as_posix()
            if ignored(context / ".dockerignore", name):
                assert path != whole, f"{name} is to be copied, and .dockerignore leaves it out"
                continue
            into = base / path.relative_to(whole) if whole.is_dir() else base / path.name if len(sources) > 1 else base
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, into)


def _run(image: Image, text: str, shims: Path, uv: Path, python: Path) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV_", "VIRTUAL_ENV"))}
    env |= {name: image.here(value) for name, value in image.env.items() if name != "PATH"}
    own = image.env.get("PATH", "$PATH").replace("$PATH", "")
    env["PATH"] = f"{image.here(own)}{shims}:{os.environ['PATH']}"
    env |= {"REPLAY_UV": str(uv), "LD_LIBRARY_PATH": str(python.parents[1] / "lib")}
    done = subprocess.run(
        ["sh", "-ec", image.here(text)],
        cwd=image.here(image.folder),
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"RUN {text}\n{done.stdout}{done.stderr}"
