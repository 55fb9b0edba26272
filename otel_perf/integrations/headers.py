"""What a request says of itself: one pass over its headers, and the span attributes that come of it.

Everything here is bytes of a stranger: nothing raises for them, and what is kept is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, MutableMapping
from functools import lru_cache
from typing import Any, NamedTuple

from otel_perf import conventions as c

__all__ = ["Seen", "attributes", "read", "well_formed"]

# As long as the longest that a propagator reads.
_MAX_CARRIED = 8192
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_PORTS = {"http": 80, "https": 443}


class Seen(NamedTuple):
    """The headers that are used."""

    request_id: str | None
    host: bytes | None
    user_agent: bytes | None
    #: The propagators' own headers; None where there are none of them.
    carrier: dict[str, str] | None


def well_formed(value: bytes) -> str | None:
    """A request id of 1 to 128 letters, digits, dots, underscores and hyphens; None for anything else."""
    return value.decode("ascii") if _ID.fullmatch(value) is not None else None


def read(pairs: Iterable[tuple[bytes, bytes]], fields: Mapping[bytes, str]) -> Seen:
    """Reads headers in one pass; `fields` are the headers that the propagators ask for."""
    given: bytes | None = None
    host: bytes | None = None
    agent: bytes | None = None
    carrier: dict[str, str] | None = None
    for name, value in pairs:
        if name == b"host":
            host = value
        elif name == b"user-agent":
            agent = value
        elif name == b"x-request-id":
            given = value
        elif name in fields:
            if carrier is None:
                carrier = {}
            _carry(carrier, fields[name], value)
    return Seen(well_formed(given) if given is not None else None, host, agent, carrier)


def _carry(carrier: dict[str, str], field: str, value: bytes) -> None:
    text = value.decode("latin-1")
    before = carrier.get(field)
    if before is None:
        carrier[field] = text
    elif len(before) < _MAX_CARRIED:
        # The way lists are combined. A second traceparent makes the first invalid, as the standard wants it.
        carrier[field] = f"{before},{text}"


@lru_cache(maxsize=256)
def _authority(host: bytes) -> tuple[str, int | None] | None:
    found = _HOST.fullmatch(host)
    if found is None:
        return None
    address, name, port = found.groups()
    number = int(port) if port is not None else None
    if number is not None and number > 65535:
        return None
    return (address or name).decode("ascii").lower(), number


def attributes(scope: MutableMapping[str, Any], seen: Seen, scheme: str) -> dict[str, Any]:
    """The span attributes of a request, not yet redacted."""
    found: dict[str, Any] = {c.URL_PATH: scope["path"]}
    query = scope.get("query_string")
    if query:
        found[c.URL_QUERY] = query.decode("latin-1")
    if seen.user_agent is not None:
        found[c.USER_AGENT] = seen.user_agent.decode("latin-1")
    client = scope.get("client")
    if client is not None:
        found[c.CLIENT_ADDRESS] = client[0]
    server = _authority(seen.host) if seen.host is not None else None
    if server is None:
        listening = scope.get("server")
        if listening is None or listening[0] is None:
            return found
        server = (listening[0], listening[1])
    found[c.SERVER_ADDRESS] = server[0]
    found[c.SERVER_PORT] = server[1] or _PORTS[scheme]
    return found
