"""Where a process runs, told by variables and files: each platform, what wins, and Google's detector on request."""

from __future__ import annotations

import http.server
import json
import threading
from pathlib import Path

import pytest

import otel_perf
from otel_perf.telemetry import platform, runtime

A, B = "a" * 64, "b" * 64


def found(root: Path, **variables: str) -> dict[str, str | int]:
    return platform.attributes(lambda name: variables.get(name, ""), root)


def test_elsewhere(tmp_path):
    """Where nothing is told nothing is said."""
    assert found(tmp_path) == {}


def test_a_service_of_cloud_run(tmp_path):
    """The service, its revision, and a default for the name."""
    told = found(tmp_path, K_SERVICE="shop", K_REVISION="shop-00001-abc", K_CONFIGURATION="shop", PORT="8080")
    assert told == {
        "cloud.provider": "gcp", "cloud.platform": "gcp_cloud_run", "faas.name": "shop",
        "faas.version": "shop-00001-abc", "service.name": "shop",
    }  # fmt: skip


def test_a_function(tmp_path):
    """Cloud Run functions are told by their target."""
    assert found(tmp_path, K_SERVICE="f", FUNCTION_TARGET="main")["cloud.platform"] == "gcp_cloud_functions"


def test_a_job_of_cloud_run(tmp_path):
    """The job, its execution and the task, which is the instance."""
    told = found(tmp_path, CLOUD_RUN_JOB="nightly", CLOUD_RUN_EXECUTION="nightly-x7", CLOUD_RUN_TASK_INDEX="3")
    assert told == {
        "cloud.provider": "gcp", "cloud.platform": "gcp_cloud_run", "faas.name": "nightly", "service.name": "nightly",
        "gcp.cloud_run.job.execution": "nightly-x7", "gcp.cloud_run.job.task_index": 3, "faas.instance": "nightly-x7-3",
    }  # fmt: skip


def test_a_pod(tmp_path):
    """The downward API wins over what is there in each pod; the container comes from the control group."""
    secret = tmp_path / "var/run/secrets/kubernetes.io/serviceaccount"
    secret.mkdir(parents=True)
    (secret / "namespace").write_text("shop\n")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"0::/kubepods/burstable/podx/cri-containerd-{A}.scope\n")
    told = found(tmp_path, KUBERNETES_SERVICE_HOST="10.0.0.1", HOSTNAME="web-1")
    assert told == {"k8s.pod.name": "web-1", "k8s.namespace.name": "shop", "container.id": A}
    told = found(
        tmp_path, KUBERNETES_SERVICE_HOST="10.0.0.1", HOSTNAME="node-7", POD_NAME="web-2", POD_NAMESPACE="other",
        NODE_NAME="node-7", POD_UID="u",
    )  # fmt: skip
    assert told == {
        "k8s.pod.name": "web-2", "k8s.namespace.name": "other", "k8s.node.name": "node-7", "k8s.pod.uid": "u",
        "container.id": A,
    }  # fmt: skip


def test_the_container_by_its_mounts(tmp_path):
    """With version 2 the path says nothing; what is mounted for the container does, not that of the sandbox."""
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/\n")
    (tmp_path / "proc/self/mountinfo").write_text(
        f"1 2 0:1 /run/containerd/io.containerd.grpc.v1.cri/sandboxes/{B}/hostname /etc/hostname rw\n"
        f"1 2 0:1 /var/lib/docker/containers/{A}/resolv.conf /etc/resolv.conf rw\n"
    )
    assert found(tmp_path, KUBERNETES_SERVICE_HOST="x")["container.id"] == A


def test_knative_is_not_cloud_run(tmp_path):
    """The same variables in a cluster of one's own are a function, and not Google's."""
    told = found(tmp_path, KUBERNETES_SERVICE_HOST="x", K_SERVICE="shop", K_REVISION="r", HOSTNAME="pod")
    assert told == {"faas.name": "shop", "faas.version": "r", "service.name": "shop", "k8s.pod.name": "pod"}


def test_what_wins(telemetry, monkeypatch):
    """Settings win over OTEL_RESOURCE_ATTRIBUTES, and that over the platform."""
    monkeypatch.setenv("K_SERVICE", "from-platform")
    monkeypatch.setenv("K_REVISION", "r-1")
    telemetry.restart(service_name=None)
    attributes = runtime.current.resource.attributes
    assert (attributes["service.name"], attributes["faas.version"]) == ("from-platform", "r-1")
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=from-variable,faas.version=r-2,faas.name=other")
    telemetry.restart(service_name=None)
    attributes = runtime.current.resource.attributes
    assert (attributes["service.name"], attributes["faas.version"]) == ("from-variable", "r-2")
    telemetry.restart(service_name="from-settings", resource_attributes={"faas.version": "r-3"})
    attributes = runtime.current.resource.attributes
    assert (attributes["service.name"], attributes["faas.version"]) == ("from-settings", "r-3")
    assert attributes["faas.name"] == "other"


class _Metadata(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        told = {
            "instance": {"id": "i-1", "region": "projects/7/regions/europe-west1", "attributes": {}},
            "project": {"projectId": "shop-project"},
        }  # fmt: skip
        body = json.dumps(told).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def test_googles_detector_on_request(telemetry, monkeypatch):
    """`OTEL_EXPERIMENTAL_RESOURCE_DETECTORS=gcp` asks the metadata server: project, region, instance."""
    metadata = pytest.importorskip("opentelemetry.resourcedetector.gcp_resource_detector._metadata")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Metadata)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setattr(metadata, "_GCP_METADATA_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("K_SERVICE", "shop")
    monkeypatch.setenv("K_REVISION", "r-1")
    monkeypatch.setenv("K_CONFIGURATION", "shop")
    monkeypatch.setenv("OTEL_EXPERIMENTAL_RESOURCE_DETECTORS", "gcp")
    metadata.get_metadata.cache_clear()
    metadata.is_available.cache_clear()
    try:
        telemetry.restart(service_name=None)
        attributes = runtime.current.resource.attributes
    finally:
        metadata.get_metadata.cache_clear()
        metadata.is_available.cache_clear()
        server.shutdown()
        thread.join()
        server.server_close()
    assert attributes["cloud.account.id"] == "shop-project"
    assert attributes["cloud.region"] == "europe-west1"
    assert attributes["faas.instance"] == "i-1"
    assert attributes["service.name"] == "shop"


def test_nothing_is_asked_unless_wanted(monkeypatch):
    """Without that variable no connection is made, on Google's platform either."""
    import socket

    def refused(*_: object, **__: object) -> None:
        raise AssertionError("somebody connects")

    monkeypatch.setenv("K_SERVICE", "shop")
    monkeypatch.setattr(socket.socket, "connect", refused)
    otel_perf.configure()
    assert runtime.current is not None
    assert runtime.current.resource.attributes["cloud.platform"] == "gcp_cloud_run"
