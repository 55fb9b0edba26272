"""Where HTTP calls go: what is the same for all calls to a host, found once and kept."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from opentelemetry import propagate

from otel_perf import peers, redaction
from otel_perf.telemetry import propagation, runtime
from otel_perf.telemetry.recipients import Recipients

__all__ = ["Origin", "Plan", "plan"]

_PORTS = {"http": 80, "https": 443}
_KEPT = 1024
_LONGEST_KEPT = 256


class Origin:
    """Where a call goes: what is the same for all calls to one scheme, host and port."""

    __slots__ = ("host", "peers", "port", "scheme", "trusted", "url")

    def __init__(self, url: str, recipients: Recipients) -> None:
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            parts, host, port = urlsplit(""), "", None
        self.scheme = redaction.text(parts.scheme, 16)
        self.host = redaction.text(host, 256)
        self.port = port or _PORTS.get(parts.scheme)
        #: The beginning of a URL, without whoever logs in there.
        self.url = f"{self.scheme}://{f'[{self.host}]' if ':' in self.host else self.host}" if host else redaction.MASK
        if port is not None:
            self.url += f":{port}"
        self.peers = peers.find(host)
        self.trusted = recipients.allows(host)


class Plan:
    """What calls need of one runtime, one propagator and the peers that are declared."""

    __slots__ = ("_origins", "_recipients", "generation", "inject", "propagator", "runtime")

    def __init__(self, in_force: runtime.Runtime | None, propagator: Any) -> None:
        self.runtime = in_force
        self.propagator = propagator
        self.generation: int = peers.generation
        self.inject = propagation.injector(propagator)
        self._recipients = Recipients(in_force.settings.propagate_to if in_force is not None else ())
        self._origins: dict[tuple[str, str], Origin] = {}

    def origin(self, url: str) -> tuple[Origin, str]:
        """Where a URL leads, and what stands behind that in it."""
        parts = url.split("/", 3)
        if len(parts) < 3:
            return Origin(url[:_LONGEST_KEPT], self._recipients), ""
        key = (parts[0], parts[2])
        found = self._origins.get(key)
        if found is None:
            found = Origin(f"{parts[0]}//{parts[2]}", self._recipients)
            if len(parts[2]) <= _LONGEST_KEPT:
                if len(self._origins) >= _KEPT:  # it is found anew in no time, and holds what is in use
                    self._origins.clear()
                self._origins[key] = found
        return found, parts[3] if len(parts) == 4 else ""


_latest = Plan(None, None)


def plan(in_force: runtime.Runtime) -> Plan:
    """The plan for what is in force now."""
    global _latest
    known = _latest
    propagator = propagate.get_global_textmap()
    if known.runtime is not in_force or known.propagator is not propagator or known.generation != peers.generation:
        known = _latest = Plan(in_force, propagator)
    return known
