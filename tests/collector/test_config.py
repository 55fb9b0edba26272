"""The configuration files, as the real programs and the rules of the pipeline see them."""

from __future__ import annotations

import os
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml

from collector import servers
from collector.pipeline import PORTS

_COLLECTOR = servers.CONFIG.parent
_BASE = "otelcol.yaml"
_OTLP = "otelcol.cloudtrace-otlp.yaml"
_LEGACY = "otelcol.cloudtrace-legacy.yaml"
_SETS = [(_BASE,), (_BASE, _OTLP), (_BASE, _LEGACY), (_BASE, _OTLP, _LEGACY)]
_SCRAPES = ["collector", "collector-scrape", "app"]


def _load(name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((servers.CONFIG / name).read_text(encoding="utf-8"))
    return loaded


def _pipelines() -> dict[str, dict[str, list[str]]]:
    every: dict[str, dict[str, list[str]]] = {}
    for name in (_BASE, _OTLP, _LEGACY):
        every |= _load(name)["service"]["pipelines"]
    return every


@pytest.mark.parametrize("names", _SETS, ids="+".join)
def test_the_collector_takes_each_set_of_files(names: tuple[str, ...], otelcol_binary: Path) -> None:
    """The real Collector validates the base, each profile over it, and both at once."""
    command = [str(otelcol_binary), "validate"]
    for name in names:
        command += ["--config", str(servers.CONFIG / name)]
    env = {**os.environ, "GOOGLE_CLOUD_PROJECT": "a-project"}
    checked = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_the_collector_refuses_a_wrong_key(otelcol_binary: Path, tmp_path: Path) -> None:
    """Validation means something: an unknown key fails it."""
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("processors: {memory_limiter: {no_such_key: 1}}\n", encoding="utf-8")
    command = [str(otelcol_binary), "validate", "--config", str(servers.CONFIG / _BASE), "--config", str(wrong)]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode != 0
    assert "no_such_key" in checked.stderr


def test_jaeger_takes_its_file(jaeger_binary: Path) -> None:
    """The real Jaeger validates its configuration."""
    command = [str(jaeger_binary), "validate", "--config", str(servers.CONFIG / "jaeger.yaml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stderr


def test_prometheus_takes_its_file(promtool_binary: Path, tmp_path: Path) -> None:
    """The real promtool checks the configuration with every target file beside it."""
    servers.prometheus_folder(tmp_path, {name: ["127.0.0.1:1"] for name in _SCRAPES}, "token")
    command = [str(promtool_binary), "check", "config", str(tmp_path / "prometheus.yml")]
    checked = subprocess.run(command, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_the_target_files_are_those_that_prometheus_reads() -> None:
    """Every target file of prometheus.yml is known, and each folder for compose has only such files."""
    jobs = _load("prometheus.yml")["scrape_configs"]
    read = {file for job in jobs for sd in job["file_sd_configs"] for file in sd["files"]}
    assert read == {f"targets/{name}.json" for name in _SCRAPES}
    for folder in ("push", "scrape"):
        there = {f"targets/{path.name}" for path in (servers.CONFIG / "targets" / folder).iterdir()}
        assert "targets/collector.json" in there
        assert there <= read


def test_the_app_is_scraped_with_a_token_and_nothing_else_is() -> None:
    """The token goes to the service that asks for it, never to another target."""
    for job in _load("prometheus.yml")["scrape_configs"]:
        assert ("authorization" in job) == (job["job_name"] == "app")


def test_every_pipeline_limits_memory_first_and_redacts() -> None:
    """In each pipeline memory_limiter comes first, and redaction after what adds attributes of its own."""
    for name, parts in _pipelines().items():
        assert parts["processors"][0] == "memory_limiter", name
        assert "redaction" in parts["processors"], name


def test_nothing_samples() -> None:
    """Every trace must arrive: no pipeline drops any on purpose."""
    for name, parts in _pipelines().items():
        assert not [part for part in parts["processors"] if "sampl" in part or "filter" in part], name


def test_a_profile_repeats_the_lists_that_it_replaces() -> None:
    """A profile's list of extensions holds all of the base's, since lists replace each other when merged."""
    base = _load(_BASE)["service"]["extensions"]
    for name in (_OTLP, _LEGACY):
        assert set(_load(name)["service"].get("extensions", base)) >= set(base), name


def test_profiles_do_not_touch_the_pipelines_of_others() -> None:
    """Each profile has a pipeline of its own, so that both can be merged in one run."""
    names = [name for file in (_BASE, _OTLP, _LEGACY) for name in _load(file)["service"]["pipelines"]]
    assert len(names) == len(set(names))


def test_every_exporter_of_traces_keeps_its_queue_on_disk() -> None:
    """A restart of the Collector, or of a backend, loses no trace."""
    exporters: dict[str, Any] = {}
    for name in (_BASE, _OTLP, _LEGACY):
        exporters |= _load(name)["exporters"]
    sending = {name for parts in _pipelines().values() for name in parts["exporters"] if name in exporters}
    for name in sending - {"prometheus", "prometheus_remote_write"}:
        assert exporters[name]["sending_queue"]["storage"] == "file_storage/queue", name
        assert "batch" in exporters[name]["sending_queue"], name


def _listening(node: object, key: str = "") -> list[str]:
    """Return the addresses that a part of a configuration listens on or sends to."""
    if isinstance(node, dict):
        return [found for name, value in node.items() for found in _listening(value, str(name))]
    if isinstance(node, list):
        return [found for value in node for found in _listening(value, key)]
    return [str(node)] if key in ("endpoint", "host") else []


@pytest.mark.parametrize("name", [_BASE, "jaeger.yaml"])
def test_servers_listen_on_loopback_unless_told(name: str) -> None:
    """Every address of a server comes from a variable whose default is on loopback."""
    loaded = _load(name)
    served = {part: loaded.get(part) for part in ("extensions", "receivers", "service")}
    served["scrape"] = loaded["exporters"].get("prometheus")
    addresses = [address for address in _listening(served) if "PROMETHEUS_URL" not in address]
    assert addresses
    for address in addresses:
        assert re.match(r"\$\{env:(OTELCOL|JAEGER)_HOST:-127\.0\.0\.1\}", address), address


def test_defaults_of_ports_are_those_of_the_stack() -> None:
    """A port's default in a file is the one that the stack knows under the same name."""
    text = "".join(path.read_text(encoding="utf-8") for path in sorted(servers.CONFIG.glob("*.yaml")))
    found = dict(re.findall(r"\$\{env:(\w+_PORT):-(\d+)\}", text))
    assert found
    assert {name: PORTS[name][0] for name in found} == {name: int(port) for name, port in found.items()}


def _go_sources() -> list[Path]:
    folders = (_COLLECTOR / "otelcol", _COLLECTOR / "jaeger")
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.is_file()]


def test_the_sources_are_whole() -> None:
    """What an install needs is there: sums of both modules and the generated program."""
    names = {str(path.relative_to(_COLLECTOR)) for path in _go_sources()}
    assert {
        "otelcol/builder.yaml",
        "otelcol/distribution/main.go",
        "otelcol/distribution/components.go",
        "otelcol/distribution/go.mod",
        "otelcol/distribution/go.sum",
        "otelcol/googleclientauth/factory.go",
        "jaeger/go.mod",
        "jaeger/go.sum",
    } <= names


def test_the_sources_name_no_machine_and_no_registry() -> None:
    """Local modules are replaced by relative folders, and no proxy is named."""
    for path in _go_sources():
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"proxy\.golang|sum\.golang|/root/|/home/|/work/", text), path
        for target in re.findall(r"^replace .* => (\S+)", text, flags=re.MULTILINE):
            assert target.startswith((".", "github.com/")), path


def test_the_generated_module_is_that_of_the_manifest() -> None:
    """Every module of builder.yaml is required by the generated go.mod in the same version."""
    manifest = yaml.safe_load((_COLLECTOR / "otelcol" / "builder.yaml").read_text(encoding="utf-8"))
    module = (_COLLECTOR / "otelcol" / "distribution" / "go.mod").read_text(encoding="utf-8")
    listed = [part["gomod"] for parts in manifest.values() if isinstance(parts, list) for part in parts]
    assert len(listed) > 30
    assert [line for line in listed if f"\t{line}\n" not in module] == []


def test_queue_batches_fit_what_receivers_take() -> None:
    """A batch is sent before the queue is full, and its smallest size is not above its largest."""
    for name in (_BASE, _OTLP, _LEGACY):
        for exporter in _load(name)["exporters"].values():
            queue = exporter.get("sending_queue")
            if queue:
                sizes = [queue["batch"]["min_size"], queue["batch"]["max_size"], queue["queue_size"]]
                assert all(smaller <= larger for smaller, larger in pairwise(sizes))
