"""Where this process runs, from variables and files alone: nothing is asked over the network.

Names are those of the semantic conventions (`cloud.*`, `faas.*`, `gcp.cloud_run.*`, `k8s.*`, `container.*`). Sources:
https://cloud.google.com/run/docs/container-contract for services and jobs of Cloud Run; https://knative.dev/docs, whose
variables those are, so that they mean Cloud Run only where there is no Kubernetes around;
https://kubernetes.io/docs/concepts/workloads/pods/downward-api for what a pod is told about itself.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

__all__ = ["attributes"]

_NAMESPACE = "var/run/secrets/kubernetes.io/serviceaccount/namespace"
_ID = re.compile(r"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")
_MOST = 65_536


def attributes(variable: Callable[[str], str], root: Path = Path("/")) -> dict[str, str | int]:
    """What is known of the platform; `variable` answers the value of an environment variable, or an empty text."""
    if variable("KUBERNETES_SERVICE_HOST"):
        return {**_function(variable), **_pod(variable, root)}
    job = variable("CLOUD_RUN_JOB")
    if job:
        return {**_google("gcp_cloud_run"), "faas.name": job, "service.name": job, **_job(variable)}
    if variable("K_SERVICE"):
        function = variable("FUNCTION_TARGET")
        return {**_google("gcp_cloud_functions" if function else "gcp_cloud_run"), **_function(variable)}
    return {}


def _google(platform: str) -> dict[str, str]:
    return {"cloud.provider": "gcp", "cloud.platform": platform}


def _function(variable: Callable[[str], str]) -> dict[str, str]:
    """A service of Cloud Run or of Knative; K_CONFIGURATION, which owns the revisions, has no name in conventions."""
    service = variable("K_SERVICE")
    return _known({"faas.name": service, "faas.version": variable("K_REVISION"), "service.name": service})


def _job(variable: Callable[[str], str]) -> dict[str, str | int]:
    execution, index = variable("CLOUD_RUN_EXECUTION"), variable("CLOUD_RUN_TASK_INDEX")
    found: dict[str, str | int] = {}
    if execution:
        found["gcp.cloud_run.job.execution"] = execution
    if index.isdecimal():
        found["gcp.cloud_run.job.task_index"] = int(index)
        if execution:
            found["faas.instance"] = f"{execution}-{index}"  # as one task is one instance
    return found


def _pod(variable: Callable[[str], str], root: Path) -> dict[str, str]:
    """A pod: what the downward API was told to say, else what is there in each."""

    def first(*names: str) -> str:
        return next((value for value in map(variable, names) if value), "")

    return _known(
        {
            "k8s.pod.name": first("POD_NAME", "K8S_POD_NAME", "HOSTNAME"),
            "k8s.pod.uid": first("POD_UID", "K8S_POD_UID"),
            "k8s.namespace.name": first("POD_NAMESPACE", "K8S_NAMESPACE_NAME") or _text(root / _NAMESPACE).strip(),
            "k8s.node.name": first("NODE_NAME", "K8S_NODE_NAME"),
            "k8s.container.name": variable("K8S_CONTAINER_NAME"),
            "container.id": _container(root),
        }
    )


def _container(root: Path) -> str:
    """The id of the container: the last one in the path of the control group, else of what is mounted for it."""
    for line in _text(root / "proc/self/cgroup").splitlines():
        ids = _ID.findall(line)
        if ids:
            return str(ids[-1])
    for line in _text(root / "proc/self/mountinfo").splitlines():
        # What containerd mounts there is of the pod's sandbox (`/sandboxes/`), whose id is another container's.
        if "/containers/" in line and (ids := _ID.findall(line)):
            return str(ids[-1])
    return ""


def _known(found: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in found.items() if value}


def _text(file: Path) -> str:
    try:
        with file.open(encoding="utf-8", errors="replace") as opened:
            return opened.read(_MOST)
    except OSError:
        return ""
