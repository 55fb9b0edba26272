"""What a request says of itself: its headers, and the span attributes that come of them.

Everything here is bytes of a stranger: nothing raises for them, and what is kept is bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, MutableMapping, Sequence
from functools import lru_cache
from typing import Any

from otel_perf import conventions as c
from otel_perf import paths, redaction

__all__ = ["attributes", "is_event_stream", "joined", "well_formed"]

# As long as the longest that a propagator reads.
_MAX_CARRIED = 8192
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_HOST = re.compile(rb"(?:\[([0-9A-Fa-f:.]{2,45})\]|([A-Za-z0-9._-]{1,253}))(?::([0-9]{1,5}))?")
_LONGEST_PART = 20  # of a path, before it is looked at
# What does not belong into a user agent. Each alternative begins where a word does, so a text is read once.
_AGENT_VALUE = re.compile(
    r"""(?P<url>(?<!\w)\w{2,16}://[^\s'"<>();,]+)"""
    r"""|(?P<key>(?<![\w.-])(?:[\w.-]+=|[\w-]*?(?:pass(?:word|wd)?|secret|token|key|auth\w*|bearer|session|credential)"""
    r"""[\w-]*:)\s*(?:(?:bearer|basic)\s+)?)[^\s;,)]+"""
    r"""|(?<![\w.+-])[\w.+-]{1,64}@[\w-]+(?:\.[\w-]+)*""",
    re.IGNORECASE,
)
_PORTS = {"http": 80, "https": 443}

# Bound once: they are looked up for every request.
_METHOD, _SCHEME, _PATH, _REQUEST_ID, _VERSION = (
    c.HTTP_METHOD, c.URL_SCHEME, c.URL_PATH, c.REQUEST_ID, c.PROTOCOL_VERSION,
)  # fmt: skip
_AGENT, _CLIENT, _SERVER, _PORT = c.USER_AGENT, c.CLIENT_ADDRESS, c.SERVER_ADDRESS, c.SERVER_PORT
_MAX_LENGTH = redaction.MAX_LENGTH


def well_formed(value: bytes) -> str | None:
    """A request id of 1 to 128 letters, digits, dots, underscores and hyphens; None for anything else."""
    return value.decode("ascii") if _ID.fullmatch(value) is not None else None


def joined(pairs: Iterable[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by their names, those that come more than once joined the way lists are.

    A second traceparent makes the first invalid so, as the standard wants it; a second host or request id is as little
    to be believed.
    """
    found: dict[bytes, bytes] = {}
    for name, value in pairs:
        before = found.get(name)
        if before is None:
            found[name] = value
        elif len(before) < _MAX_CARRIED:
            found[name] = b"%s,%s" % (before, value)
    return found


def is_event_stream(pairs: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether these are the headers of a `text/event-stream`, which has no end of its own."""
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in pairs)


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


@lru_cache(maxsize=1024)
def _address(address: object) -> str:
    return redaction.text(str(address), 256)


def _long_path(path: str) -> str:
    return redaction.text(paths.without_tokens(path, _LONGEST_PART))


_path = lru_cache(maxsize=1024)(_long_path)


@lru_cache(maxsize=256)
def _agent(user_agent: bytes) -> str:
    agent = redaction.text(user_agent.decode("latin-1"))
    # An error's rules would mask the versions of browsers: here it is pairs, addresses and what looks like a key.
    return _AGENT_VALUE.sub(_masked, agent) if "=" in agent or ":" in agent or "@" in agent else agent


def _masked(found: re.Match[str]) -> str:
    if found["url"] is not None:
        return redaction.url(found["url"])
    return f"{found['key'] or ''}{redaction.MASK}"


def attributes(
    scope: MutableMapping[str, Any], seen: dict[bytes, bytes], labels: Sequence[Any], request_id: str | None
) -> dict[str, Any]:
    """The span attributes that a request starts with, redacted; `labels` are those of its duration."""
    method, _, _, scheme, version, _ = labels
    path: str = scope["path"]
    found: dict[str, Any] = {
        _METHOD: method,
        _SCHEME: scheme,
        # Shorter ones have room for no key worth the name; the cache is written in C, which counts here.
        _PATH: path
        if len(path) <= 24 and path.isprintable()
        else _path(path)
        if len(path) <= 256
        else _long_path(path),
        _REQUEST_ID: request_id,
        _VERSION: version,
    }
    if version is None:
        del found[_VERSION]
    if method == "_OTHER":
        found[c.HTTP_METHOD_ORIGINAL] = redaction.text(scope["method"])
    query: bytes = scope.get("query_string")  # type: ignore[assignment]  # ASGI says bytes; an empty one counts as none
    if query:
        found[c.URL_QUERY] = redaction.text(redaction.query_string(query.decode("latin-1")))
    agent = seen.get(b"user-agent")
    if agent is not None:
        found[_AGENT] = _agent(agent) if len(agent) <= _MAX_LENGTH else _agent.__wrapped__(agent)
    client = scope.get("client")
    if client is not None and client[0] is not None:
        found[_CLIENT] = _address(client[0])
    host = seen.get(b"host")
    # Longer ones than a name can be are not kept in the cache.
    server = _authority(host) if host is not None and len(host) <= 270 else None
    if server is None:
        listening = scope.get("server")
        if listening is None or listening[0] is None:
            return found
        server = _address(listening[0]), listening[1]
    found[_SERVER], port = server
    found[_PORT] = port or _PORTS[scheme]
    return found
