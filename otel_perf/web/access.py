"""Who may read the performance page: clients on this machine, and whoever brings the token or passes the app's check.

A request that shows the marks of a proxy is not local, whatever its socket says, and neither is one whose Host header
names another machine: that is how a hostile web page reaches a service on loopback (DNS rebinding). A proxy on this
machine that leaves no mark cannot be told from a local client: `loopback=False` is for those.
"""

from __future__ import annotations

import hmac
import inspect
import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.requests import Request

__all__ = ["Access", "Allow"]

#: The app's own check; True lets the request in.
Allow = Callable[[Request], "bool | Awaitable[bool]"]

_PROXIED = frozenset((
    "forwarded", "via", "x-real-ip", "true-client-ip", "x-client-ip", "x-original-forwarded-for",
    "x-envoy-external-address", "fly-client-ip", "fastly-client-ip",
))  # fmt: skip
_PROXIED_BEGIN = ("x-forwarded-", "cf-")


@dataclass(frozen=True, slots=True)
class Access:
    """The rule of one mount."""

    token: str | None = None
    allow: Allow | None = None
    loopback: bool = True

    async def permits(self, request: Request) -> bool:
        """Whether this request may read what otel_perf knows."""
        if (self.loopback and _is_local(request)) or self._has_token(request):
            return True
        if self.allow is None:
            return False
        answer = self.allow(request)
        return bool(await answer if inspect.isawaitable(answer) else answer)

    def _has_token(self, request: Request) -> bool:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if not self.token or scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given.strip().encode(), self.token.encode())


def _is_local(request: Request) -> bool:
    # Clients have spoken HTTP/1.1 for decades; nginx speaks 1.0 to what is behind it, and adds no header by itself.
    if request.scope.get("http_version") == "1.0" or any(map(_is_of_a_proxy, request.headers.keys())):
        return False
    client = request.client
    return client is not None and _is_loopback(client.host) and _is_loopback(_host_name(request))


def _is_of_a_proxy(header: str) -> bool:
    return header in _PROXIED or header.startswith(_PROXIED_BEGIN)


def _host_name(request: Request) -> str:
    host = request.headers.get("host", "")
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
        # A socket that takes both kinds of addresses tells IPv4 clients so.
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback
    except ValueError:
        return False
