"""Which hosts get the trace context with a call: those that the setting `propagate_to` names, and no others.

The context says which traces there are, and baggage can hold anything: neither is for strangers. By default it goes to
`private` hosts: names without a dot, loopback, private and link-local addresses, and names that no public server has.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

from otel_perf.sources import SettingsError

__all__ = ["Recipients"]

_KEPT = 1024
_LONGEST = 253
_PRIVATE_ENDS = (".internal", ".local", ".localhost", ".svc")
_PATTERN = re.compile(r"[a-z0-9_*-]+(?:\.[a-z0-9_*-]+)*\.?")
# Without a dot, and still an address to the resolver: 134744072 is 8.8.8.8.
_NUMBER = re.compile(r"0x[0-9a-f]*|[0-9]+")


class Recipients:
    """The rule of one setting, compiled; what was decided for a host is kept."""

    __slots__ = ("_hosts", "_known", "_networks", "_private", "everywhere")

    def __init__(self, patterns: Sequence[str]) -> None:
        """Compiles the patterns.

        Raises:
            SettingsError: for one that no host can fit.
        """
        self.everywhere = "*" in patterns
        self._private = "private" in patterns
        self._networks: list[IPv4Network | IPv6Network] = []
        self._known: dict[str, bool] = {}
        hosts: list[str] = []
        for pattern in patterns:
            if pattern in {"*", "private"} or (pattern == "none" and len(patterns) == 1):
                continue
            found = _host_pattern(pattern)
            if isinstance(found, str):
                hosts.append(found)
            else:
                self._networks.append(found)
        self._hosts = re.compile("|".join(hosts)) if hosts else None

    def allows(self, host: str) -> bool:
        """Whether calls to this host carry the context."""
        if self.everywhere:
            return True
        found = self._known.get(host)
        if found is None:
            found = self._decide(host.lower().removesuffix(".")) if 0 < len(host) <= _LONGEST else False
            if len(host) <= _LONGEST:
                if len(self._known) >= _KEPT:  # it is decided anew in no time, and holds what is in use
                    self._known.clear()
                self._known[host] = found
        return found

    def _decide(self, host: str) -> bool:
        address = _address(host)
        if self._hosts is not None and self._hosts.fullmatch(host):
            return True
        if address is not None and any(address in network for network in self._networks):
            return True
        if not self._private:
            return False
        if address is not None:
            return address.is_loopback or address.is_private or address.is_link_local
        if "." in host:
            return host.endswith(_PRIVATE_ENDS)
        return _NUMBER.fullmatch(host) is None


def _host_pattern(pattern: str) -> str | IPv4Network | IPv6Network:
    written = pattern.lower()
    try:
        if "/" in written or _address(written.strip("[]")) is not None:
            return ip_network(written.strip("[]"), strict=False)
    except ValueError:
        pass
    if len(written) > _LONGEST or not _PATTERN.fullmatch(written):
        raise SettingsError(
            f"propagate_to={pattern!r} cannot be used: expected a host such as api.example.com or *.example.com, a "
            "network such as 10.0.0.0/8, private, none, or * for all hosts; without scheme, port and path"
        )
    # Runs of stars are one, so that a long name cannot be read in many ways.
    parts = [re.escape(part) for part in re.split(r"\*+", written.removesuffix("."))]
    if len(parts) > 4:
        raise SettingsError(f"propagate_to={pattern!r} cannot be used: expected no more than 3 stars in a pattern")
    return ".*".join(parts)


def _address(host: str) -> IPv4Address | IPv6Address | None:
    if ":" not in host and not host[-1:].isdecimal():
        return None
    try:
        found = ip_address(host)
    except ValueError:
        return None
    mapped = found.ipv4_mapped if isinstance(found, IPv6Address) else None
    return found if mapped is None else mapped
