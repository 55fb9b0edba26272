"""The files to deploy with: they parse, what they name exists, and the script says what is missing."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from examples.streak.auth import User, mint, verify
from examples.streak.settings import Settings
from tests.streak.variables import VARIABLES

ROOT = Path(__file__).parents[2]
STREAK = ROOT / "examples" / "streak"
DEPLOY = STREAK / "deploy"
SCRIPT = DEPLOY / "cloud_scheduler.sh"
SECRET = "0123456789abcdef-for-tests"
TOKEN = mint(SECRET, "scheduler", admin=True)
GIVEN = {
    "PROJECT": "my-project",
    "REGION": "europe-west1",
    "STREAK_URL": "https://streak.example.com/",
    "STREAK_ADMIN_TOKEN": TOKEN,
}


def _manifest(name: str) -> dict[str, Any]:
    """Read a manifest as the command in its head makes it."""
    text = (DEPLOY / name).read_text(encoding="utf-8")
    rules = re.search(r'sed "([^"]+)"', text)
    assert rules
    for rule in rules[1].split("; "):
        _, old, new, _ = rule.split("/")
        text = text.replace(old, new.removeprefix("$").lower())
    manifest: dict[str, Any] = yaml.safe_load(text)
    assert not re.search(r"PROJECT_ID|REGION|VERSION", json.dumps(manifest))
    return manifest


SERVICE = _manifest("cloud_run.yaml")
JOB = _manifest("cloud_run_job.yaml")
_REVISION = SERVICE["spec"]["template"]
_TASK = JOB["spec"]["template"]["spec"]["template"]["spec"]
_CONTAINERS = {container["name"]: container for container in _REVISION["spec"]["containers"]}
_MAINTENANCE = _TASK["containers"][0]


def _plain(container: Mapping[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in container["env"] if "value" in entry}


def _secret(container: Mapping[str, Any]) -> dict[str, str]:
    return {
        entry["name"]: entry["valueFrom"]["secretKeyRef"]["name"] for entry in container["env"] if "valueFrom" in entry
    }


def test_what_is_told_is_read() -> None:
    """Each variable that a container of ours is given is one that the code reads."""
    for container in (_CONTAINERS["streak"], _MAINTENANCE):
        assert {entry["name"] for entry in container["env"]} <= VARIABLES
        Settings.from_environment(_plain(container))


def test_secrets_come_from_secret_manager() -> None:
    """What is or holds a secret is a reference, and the two that share a database share the secret."""
    wanted = {"DATABASE_URL", "REDIS_URL", "STREAK_SECRET", "OTEL_PERF_ACCESS_TOKEN"}
    assert _secret(_CONTAINERS["streak"]).keys() == wanted
    assert _secret(_MAINTENANCE).items() <= _secret(_CONTAINERS["streak"]).items()
    for container in (*_CONTAINERS.values(), _MAINTENANCE):
        assert not [name for name in _plain(container) if re.search("SECRET|TOKEN|PASSWORD|URL", name)]


def test_probes_ask_a_route_that_there_is() -> None:
    """The probes ask the health of the service on the port that it is told, and the Collector's."""
    streak, otelcol = _CONTAINERS["streak"], _CONTAINERS["otelcol"]
    port = streak["ports"][0]["containerPort"]
    for probe in ("startupProbe", "livenessProbe"):
        assert streak[probe]["httpGet"] == {"path": "/api/health", "port": port}
        assert streak[probe]["timeoutSeconds"] < streak[probe]["periodSeconds"]
    health = _collector()["extensions"]["health_check"]["endpoint"]
    assert otelcol["startupProbe"]["httpGet"] == {"path": "/", "port": int(health.rpartition(":")[2])}
    # Only one container may have a port.
    assert "ports" not in otelcol


def test_the_service_sends_to_the_collector_beside_it() -> None:
    """The service sends to where the Collector listens, which begins first, with the configuration of this folder."""
    listens = _collector()["receivers"]["otlp"]["protocols"]["http"]["endpoint"]
    assert _plain(_CONTAINERS["streak"])["OTEL_EXPORTER_OTLP_ENDPOINT"] == f"http://{listens}"
    order = json.loads(_REVISION["metadata"]["annotations"]["run.googleapis.com/container-dependencies"])
    assert order == {"streak": ["otelcol"]}
    volume = _REVISION["spec"]["volumes"][0]
    mounted = {mount["name"]: mount["mountPath"] for mount in _CONTAINERS["otelcol"]["volumeMounts"]}
    path = f"{mounted[volume['name']]}/{volume['secret']['items'][0]['path']}"
    assert _CONTAINERS["otelcol"]["args"] == [f"--config={path}"]
    compose = yaml.safe_load((ROOT / "docker-compose.otel.yml").read_text(encoding="utf-8"))
    assert _CONTAINERS["otelcol"]["image"] == f"docker.io/{compose['services']['otelcol']['image']}"


def test_limits_are_given() -> None:
    """Each container has its share of CPU and memory; CPU is there between requests too."""
    for container in (*_CONTAINERS.values(), _MAINTENANCE):
        limits = container["resources"]["limits"]
        assert re.fullmatch(r"\d+", limits["cpu"])
        assert re.fullmatch(r"\d+Mi", limits["memory"])
    assert _REVISION["metadata"]["annotations"]["run.googleapis.com/cpu-throttling"] == "false"
    assert 0 < _REVISION["spec"]["containerConcurrency"] <= 100


def test_the_job_runs_the_maintenance() -> None:
    """The job runs a module that exists, in the image of the service, one at a time."""
    assert _MAINTENANCE["command"][:2] == ["python", "-m"]
    assert importlib.util.find_spec(_MAINTENANCE["command"][2])
    assert _MAINTENANCE["image"] == _CONTAINERS["streak"]["image"]
    assert JOB["spec"]["template"]["spec"]["taskCount"] == 1
    assert _TASK["serviceAccountName"] == _REVISION["spec"]["serviceAccountName"]


def _collector() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((DEPLOY / "otelcol.yaml").read_text(encoding="utf-8"))
    return loaded


def test_the_collector_takes_its_configuration(otelcol_binary: Path) -> None:
    """The Collector finds nothing wrong with the configuration."""
    told = [otelcol_binary, "validate", "--config", DEPLOY / "otelcol.yaml"]
    env = {**os.environ, "GOOGLE_CLOUD_PROJECT": "my-project"}
    checked = subprocess.run(told, env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_indexes_are_where_firebase_looks() -> None:
    """The indexes that `firebase deploy` is told of are there; it refuses what is above its own configuration."""
    told = json.loads((STREAK / "firebase.json").read_text(encoding="utf-8"))["firestore"]["indexes"]
    path = (STREAK / told).resolve()
    assert path.is_relative_to(STREAK)
    assert json.loads(path.read_text(encoding="utf-8"))["indexes"]


@pytest.fixture
def gcloud(tmp_path: Path) -> Path:
    """A gcloud that writes down how it was called and with which flags; it knows the job once `known` is there."""
    program = tmp_path / "bin" / "gcloud"
    program.parent.mkdir()
    program.write_text(
        f"""#!/usr/bin/env bash
cd '{tmp_path}'
echo "$CLOUDSDK_CORE_DISABLE_FILE_LOGGING" >> logging
if [ "$3" = describe ]; then [ -e known ]; exit; fi
printf '%s\\n' "$@" > arguments
for argument; do
  case $argument in
    --flags-file=*)
      file=${{argument#*=}}
      cat "$file" > flags; stat -c '%a' "$file" > mode; echo "$file" > name ;;
  esac
done
exit "${{FAKE_EXIT:-0}}"
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return tmp_path


def _run(*arguments: str, path: Path | None = None, **given: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{path / 'bin'}:{os.defpath}" if path else os.defpath, **given}
    return subprocess.run([SCRIPT, *arguments], env=env, capture_output=True, text=True, check=False)


def test_the_script_is_good_shell() -> None:
    """Bash reads it, and it can be run."""
    assert subprocess.run(["bash", "-n", SCRIPT], capture_output=True, check=False).returncode == 0
    assert SCRIPT.stat().st_mode & stat.S_IXUSR


def test_the_script_explains_itself() -> None:
    """--help names each variable, and needs none of them."""
    shown = _run("--help")
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in GIVEN)


@pytest.mark.parametrize("missing", GIVEN)
def test_the_script_names_what_is_missing(gcloud: Path, missing: str) -> None:
    """Without a variable nothing is done, and it is named."""
    refused = _run(path=gcloud, **{name: value for name, value in GIVEN.items() if name != missing})
    assert refused.returncode == 2
    assert f"{missing} is not set" in refused.stderr
    assert not (gcloud / "arguments").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("STREAK_URL", "http://streak.example.com"),
        ("STREAK_URL", "https://streak.example.com/api"),
        ("STREAK_ADMIN_TOKEN", mint(SECRET, "ada")),
        ("STREAK_ADMIN_TOKEN", f'{TOKEN}"\n  X: "y'),
    ],
)
def test_the_script_refuses_what_cannot_work(gcloud: Path, name: str, value: str) -> None:
    """An address without TLS or with a path, a user's token and a token that is none are refused, and not repeated."""
    refused = _run(path=gcloud, **{**GIVEN, name: value})
    assert refused.returncode == 2
    assert name in refused.stderr
    assert value not in refused.stderr
    assert not (gcloud / "arguments").exists()


@pytest.mark.parametrize("verb", ["create", "update"])
def test_the_script_makes_the_job(gcloud: Path, verb: str) -> None:
    """The job is made, or changed when it is there; the token is in a file that is closed to others, and goes again."""
    if verb == "update":
        (gcloud / "known").touch()
    done = _run(path=gcloud, **GIVEN)
    assert done.returncode == 0, done.stderr
    arguments = (gcloud / "arguments").read_text(encoding="utf-8").splitlines()
    assert arguments[:5] == ["scheduler", "jobs", verb, "http", "streak-maintenance-daily"]
    told = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    assert (told["--schedule"], told["--time-zone"]) == ("5 4 * * *", "Etc/UTC")
    assert told["--uri"] == "https://streak.example.com/api/admin/maintenance"
    assert told["--attempt-deadline"] == "30m"
    assert int(told["--max-retry-attempts"]) > 0
    assert TOKEN not in (gcloud / "arguments").read_text(encoding="utf-8") + done.stdout + done.stderr
    headers = yaml.safe_load((gcloud / "flags").read_text(encoding="utf-8"))
    assert headers.keys() == {"--headers" if verb == "create" else "--update-headers"}
    (sent,) = (flag["Authorization"] for flag in headers.values())
    assert verify(SECRET, sent.removeprefix("Bearer ")) == User("scheduler", admin=True)
    assert (gcloud / "mode").read_text(encoding="utf-8").strip() == "600"
    # Each call, since each tells or is told of the headers: gcloud keeps a log of its own.
    assert (gcloud / "logging").read_text(encoding="utf-8") == "1\n" * 2
    assert not Path((gcloud / "name").read_text(encoding="utf-8").strip()).exists()


def test_the_script_fails_when_gcloud_does(gcloud: Path) -> None:
    """A refusal of gcloud is one of the script, which leaves no token behind."""
    failed = _run(path=gcloud, FAKE_EXIT="7", **GIVEN)
    assert failed.returncode == 7
    assert not Path((gcloud / "name").read_text(encoding="utf-8").strip()).exists()
