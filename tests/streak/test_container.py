"""The image of the service: its Dockerfile's rules, and what comes of doing what it says, without an engine."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name

from tests.streak.image import Image, ignored, instructions, replay

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "examples" / "streak" / "Dockerfile"
STEPS = instructions(DOCKERFILE)
SECRET = "0123456789abcdef-for-tests"
_NOBODY = 65_534


@pytest.fixture(scope="module")
def image() -> Iterator[Image]:
    """What the Dockerfile makes, in a folder that everybody may look into and nobody else may write to."""
    uv = Path(sys.executable).with_name("uv")
    if not uv.exists():
        pytest.skip("uv is not in this environment, which `make` makes")
    # Not pytest's own folder: that is closed to other users.
    work = Path(tempfile.mkdtemp(prefix="streak-image-"))
    work.chmod(0o755)
    try:
        yield replay(DOCKERFILE, ROOT, work, uv)
    finally:
        shutil.rmtree(work)


_AS_NOBODY = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups"] if os.geteuid() == 0 else []
_AS_FIRST = ["unshare", "--pid", "--fork", "--kill-child"]


def _can_be_first() -> bool:
    """Tell whether this user may give a process a world of its own, in which it is number 1, as in a container."""
    return not subprocess.run([*_AS_FIRST, "true"], capture_output=True, check=False).returncode


@contextmanager
def _started(
    image: Image, command: list[str], *, first: bool = False, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """Runs a command of the image as a user who owns nothing there, with a folder for temporary files."""
    with tempfile.TemporaryDirectory() as scratch:
        Path(scratch).chmod(0o777)
        process = subprocess.Popen(
            [*(_AS_FIRST if first else []), *_AS_NOBODY, *_told(image, command)], cwd=image.here(image.folder),
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            env={**image.environment(), "TMPDIR": scratch, **environment},
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _told(image: Image, command: list[str]) -> list[str]:
    # Popen looks for programs in the PATH of this process.
    found = shutil.which(command[0], path=image.environment()["PATH"])
    assert found, f"{command[0]} is not in the image"
    return [found, *command[1:]]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _healthy(image: Image, process: subprocess.Popen[str], **environment: str) -> bool:
    """Ask as the engine does, until it is healthy or has ended."""
    deadline_s = time.monotonic() + 40
    command = _told(image, image.health)
    while time.monotonic() < deadline_s and process.poll() is None:
        if not subprocess.run(
            command, env={**image.environment(), **environment}, capture_output=True, check=False
        ).returncode:
            return True
        time.sleep(0.2)
    return False


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def test_bases_are_pinned() -> None:
    """Each stage begins with the same exact version of a small base."""
    bases = {step.text.partition(" ")[0] for step in STEPS if step.name == "FROM"}
    assert len(bases) == 1
    assert re.fullmatch(r"python:\d+\.\d+\.\d+-slim-\w+", bases.pop())


def test_packages_are_locked_and_nothing_is_built_that_was_downloaded() -> None:
    """What comes from outside has a hash in the lock and is a wheel; our own code is built without network."""
    installs = [step.text for step in STEPS if step.name == "RUN" and " install " in step.text]
    assert len(installs) == 2
    assert "--require-hashes" in installs[0]
    assert "--only-binary :all:" in installs[0]
    assert "--no-deps --no-build-isolation ." in installs[1]


def test_the_last_stage_installs_nothing() -> None:
    """The last stage gets the environment and the service, and runs as a user with a number, after all was written."""
    last = STEPS[max(index for index, step in enumerate(STEPS) if step.name == "FROM") :]
    assert not [step for step in last if step.name == "RUN" and re.search(r"\b(pip|apt-get|apk)\b", step.text)]
    user = next(index for index, step in enumerate(last) if step.name == "USER")
    assert last[user].text.isdecimal()
    assert int(last[user].text) > 0
    assert not [step for step in last[user:] if step.name in ("RUN", "COPY", "ADD")]


def test_no_secret_and_no_setting_is_part_of_the_image() -> None:
    """The image has no ARG, and no variable but those of Python and the way to it."""
    assert not [step for step in STEPS if step.name in ("ARG", "ADD", "SHELL", "ONBUILD")]
    names = {name for step in STEPS if step.name == "ENV" for name in re.findall(r"(\w+)=", step.text)}
    assert {name for name in names if not name.startswith(("PYTHON", "PIP_"))} == {"PATH"}


@pytest.mark.parametrize(
    ("path", "left_out"),
    [
        ("pyproject.toml", False),
        ("requirements/demo.lock", False),
        ("requirements/dev.lock", True),
        ("otel_perf/web/page.html", False),
        ("examples/streak/page/page.js", False),
        ("examples/streak/stores/migrations/script.py.mako", False),
        ("examples/streak/__pycache__/app.cpython-312.pyc", True),
        ("examples/streak/streak.db", True),
        ("examples/.env", True),
        (".git/config", True),
        (".venv/bin/python", True),
        ("credentials.json", True),
        ("tests/conftest.py", True),
    ],
)
def test_what_is_sent_to_be_built(path: str, left_out: bool) -> None:
    """Only what the Dockerfile takes is sent to the engine, whatever lies beside it."""
    assert ignored(ROOT / ".dockerignore", path) == left_out


@pytest.mark.timeout(180)  # it may have to download the packages
def test_the_environment_has_what_is_locked_and_no_tools_to_build(image: Image) -> None:
    """What was needed to build is gone, and nothing that stayed misses what it requires."""
    uv, python = Path(sys.executable).with_name("uv"), image.here("/opt/streak/bin/python")
    env = os.environ | image.environment()
    listed = subprocess.run(
        [uv, "pip", "freeze", "--python", python], env=env, capture_output=True, text=True, check=True
    )
    names = {canonicalize_name(re.split(r"==| @ ", line)[0]) for line in listed.stdout.split("\n") if line}
    assert {"fastapi", "asyncpg", "otel-perf", "google-cloud-firestore"} <= names
    assert not names & {"pip", "setuptools", "wheel", "hatchling", "editables", "uv", "pytest", "locust"}
    checked = subprocess.run(
        [uv, "pip", "check", "--python", python], env=env, capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stderr
    # The checkout is not what it imports.
    where = subprocess.run(
        [python, "-c", "import otel_perf; print(otel_perf.__file__)"],
        cwd="/",
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert where.stdout.startswith(str(image.root)), where.stderr


@pytest.mark.timeout(180)
def test_it_serves_is_healthy_and_stops(image: Image) -> None:
    """The command serves on the PORT that it is told, is healthy, writes nowhere else, and stops when it is told to."""
    port, first = str(_free_port()), _can_be_first()
    before = _files(image.root)
    with _started(image, image.command, first=first, PORT=port, STREAK_SECRET=SECRET) as process:
        assert _healthy(image, process, PORT=port), process.communicate()[0]
        pid = process.pid
        if first:
            pid = int(Path(f"/proc/{pid}/task/{pid}/children").read_text())
        # `exec`: it is Python itself, not a shell before it, that is told to stop.
        assert b"examples.streak" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if _AS_NOBODY:
            assert re.search(rf"^Uid:\t{_NOBODY}\t", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        os.kill(pid, signal.SIGTERM)
        output, _ = process.communicate(timeout=30)
    # uvicorn ends in order and sends itself the signal then: the first process of a container is not ended by that.
    assert process.returncode == (0 if first else -signal.SIGTERM), output
    assert f"streak: http://0.0.0.0:{port}" in output
    assert "Traceback" not in output
    assert _files(image.root) == before


@pytest.mark.timeout(180)
def test_it_is_not_healthy_where_nothing_answers(image: Image) -> None:
    """The health check fails when nobody listens."""
    env = {**image.environment(), "PORT": str(_free_port())}
    assert subprocess.run(_told(image, image.health), env=env, capture_output=True, check=False).returncode == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize("module", ["maintain", "migrate", "push", "auth"])
def test_the_other_programs_are_there(image: Image, module: str) -> None:
    """The image runs the maintenance, the migrations, the push API and the minting of tokens as well."""
    with _started(image, ["python", "-m", f"examples.streak.{module}", "--help"]) as process:
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 0, output
    assert f"examples.streak.{module}" in output
